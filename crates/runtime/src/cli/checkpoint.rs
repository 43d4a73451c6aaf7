//! `checkpoint` and `restore`, and their flags.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;

use linux::process::PidFd;
use types::{Context, Error, Result};

use super::activation::{Readiness, is_awaited};
use super::args::Args;
use super::create::{HandOver, read_terminal};
use super::{Cli, exit_code, foreground};
use crate::{CheckpointOptions, Container, CriuOptions, RestoreOptions, check_empty_namespace};

/// The default directory of images, below the working directory.
const IMAGES_DEFAULT: &str = "checkpoint";

impl Cli<'_> {
    pub(super) fn checkpoint(&self, args: &mut Args) -> Result<()> {
        let options = CheckpointOptions {
            leave_running: args.flag(&["--leave-running"]),
            pre_dump: args.flag(&["--pre-dump"]),
            parent: args.value(&["--parent-path"]).filter(|path| !path.is_empty()).map(PathBuf::from),
            page_server: args.value(&["--page-server"]).map(|text| page_server(&text)).transpose()?,
            status: args.number(&["--status-fd"])?.map_or(Ok(None), status)?,
            link_remap: args.flag(&["--link-remap"]),
            tcp_skip_in_flight: args.flag(&["--tcp-skip-in-flight"]),
            criu: criu_options(args)?,
        };
        let container = self.load(args)?;
        args.end()?;
        let goes_on = options.leave_running || options.pre_dump;
        container.checkpoint(options)?;
        if !goes_on {
            for error in container.delete(false)? {
                self.log.warning(&error.chain());
            }
        }
        Ok(())
    }

    pub(super) fn restore(&self, args: &mut Args) -> Result<ExitCode> {
        let detach = args.flag(&["-d", "--detach"]);
        // Accepted and ignored: orphans of the container end with its pid namespace, whoever reaps them.
        args.flag(&["--no-subreaper"]);
        // criu changes the root by itself.
        args.flag(&["--no-pivot"]);
        let bundle = args.bundle();
        let hand_over = HandOver::read(args);
        let lsm_profile = args.value(&["--lsm-profile"]).filter(|label| !label.is_empty());
        let lsm_mount_context = args.value(&["--lsm-mount-context"]).filter(|label| !label.is_empty());
        let criu = criu_options(args)?;
        let id = args.id()?;
        args.end()?;
        let terminal = read_terminal(&bundle)?;
        hand_over.check(terminal, detach)?;
        let signals = (!detach).then(foreground::Signals::take).transpose()?;
        let restored = Container::restore(RestoreOptions {
            id: &id,
            bundle: &bundle,
            state_root: &self.root,
            stdio: hand_over.stdio(terminal, detach),
            systemd: self.systemd()?,
            criu,
            takes_notices: is_awaited(),
            lsm_profile,
            lsm_mount_context,
        })?;
        restored.warnings.iter().for_each(|words| self.log.warning(words));
        let console = restored.console.as_ref().map(AsFd::as_fd);
        if let Err(error) = hand_over.carry_out(console, restored.pidfd.as_fd(), restored.pid) {
            // No caller knows of the container yet.
            self.take_down(restored.container)?;
            return Err(error);
        }
        // In the foreground this process is the service's main process.
        let main = if detach { restored.pid } else { std::process::id() };
        let told = Readiness::listen(&restored.container)
            .and_then(|readiness| readiness.map_or(Ok(()), |readiness| readiness.was_given(main)));
        if let Err(error) = told {
            // The service manager cannot be told; the container runs all the same.
            self.log.warning(&error.chain());
        }
        let Some(signals) = signals else { return Ok(ExitCode::SUCCESS) };
        let console = restored.console.filter(|_| !hand_over.gives_console_away());
        let status = foreground::attend(&signals, console, None, &restored.pidfd);
        // A container without its foreground process is not left behind.
        self.take_down(restored.container)?;
        Ok(exit_code(status?))
    }
}

fn criu_options(args: &mut Args) -> Result<CriuOptions> {
    let mut path = |name: &str| args.value(&[name]).filter(|path| !path.is_empty()).map(PathBuf::from);
    let (images, work) = (path("--image-path"), path("--work-path"));
    for name in args.values(&["--empty-ns"]) {
        check_empty_namespace(&name)?;
    }
    Ok(CriuOptions {
        work,
        tcp_established: args.flag(&["--tcp-established"]),
        external_unix_sockets: args.flag(&["--ext-unix-sk"]),
        shell_job: args.flag(&["--shell-job"]),
        file_locks: args.flag(&["--file-locks"]),
        auto_dedup: args.flag(&["--auto-dedup"]),
        lazy_pages: args.flag(&["--lazy-pages"]),
        cgroups: args.value(&["--manage-cgroups-mode"]).unwrap_or_default().parse()?,
        ..CriuOptions::new(images.unwrap_or_else(|| PathBuf::from(IMAGES_DEFAULT)))
    })
}

/// Parses `ADDRESS:PORT`; an IPv6 address is in brackets.
fn page_server(text: &str) -> Result<(String, u16)> {
    let bad = || Error::invalid_argument(format!("--page-server {text:?}: ADDRESS:PORT is expected"));
    let (address, port) = text.rsplit_once(':').ok_or_else(bad)?;
    let address = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
    match port.parse() {
        Ok(port) if port != 0 && !address.is_empty() => Ok((address.to_owned(), port)),
        _ => Err(bad()),
    }
}

/// A copy of the caller's descriptor; -1 means none.
fn status(number: i32) -> Result<Option<OwnedFd>> {
    if number == -1 {
        return Ok(None);
    }
    let own = PidFd::open(std::process::id())?;
    let status = own.descriptor(number).context(|| format!("--status-fd {number}"))?;
    let flags = rustix::fs::fcntl_getfl(&status)
        .map_err(std::io::Error::from)
        .context(|| format!("--status-fd {number}"))?;
    let is_read_only = (flags & rustix::fs::OFlags::RWMODE) == rustix::fs::OFlags::RDONLY;
    if is_read_only {
        return Err(Error::invalid_argument(format!("--status-fd {number} cannot be written to")));
    }
    Ok(Some(status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_server_has_an_address_and_a_port() {
        assert_eq!(page_server("10.0.0.1:27").unwrap(), ("10.0.0.1".into(), 27));
        assert_eq!(page_server("[::1]:27").unwrap(), ("::1".into(), 27));
        for wrong in ["", "10.0.0.1", ":27", "host:", "host:0", "host:65536"] {
            assert!(page_server(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn cgroups_are_managed_as_runc_has_it() {
        use crate::CgroupMode;
        assert_eq!("".parse::<CgroupMode>().unwrap(), CgroupMode::Default);
        assert_eq!("strict".parse::<CgroupMode>().unwrap(), CgroupMode::Strict);
        assert!("hard".parse::<CgroupMode>().is_err());
    }

    #[test]
    fn each_flag_is_one_of_criu() {
        use crate::criu::{ImageDirs, Options};
        let dir = tempfile::TempDir::new().unwrap();
        let dirs = ImageDirs::open(dir.path(), None, "dump.log").unwrap();
        let request = |flags: &[&str]| {
            let mut args = Args::new(["runtime"].iter().chain(flags).map(Into::into).collect());
            let options = criu_options(&mut args).unwrap();
            args.end().unwrap();
            options.request(&dirs, "dump.log", &types::spec::runtime::Spec::default())
        };
        type Row = (&'static str, fn(&mut Options) -> &mut Option<bool>);
        let rows: [Row; 6] = [
            ("--tcp-established", |options| &mut options.tcp_established),
            ("--ext-unix-sk", |options| &mut options.ext_unix_sk),
            ("--shell-job", |options| &mut options.shell_job),
            ("--file-locks", |options| &mut options.file_locks),
            ("--auto-dedup", |options| &mut options.auto_dedup),
            ("--lazy-pages", |options| &mut options.lazy_pages),
        ];
        for (flag, field) in rows {
            let mut expected = request(&[]);
            assert_eq!(field(&mut expected).replace(true), Some(false), "{flag}");
            assert_eq!(request(&[flag]), expected, "{flag}");
        }
    }
}

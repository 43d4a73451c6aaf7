//! `exec`: a further process, described by a file or by flags that change the first process's description.

use std::fs;
use std::os::fd::AsFd;
use std::process::ExitCode;

use types::spec::runtime::{Process, Spec};
use types::{Context, Error, Result};

use super::args::Args;
use super::create::HandOver;
use super::{Cli, exit_code, foreground};
use crate::ExecOptions;

impl Cli<'_> {
    pub(super) fn exec(&self, args: &mut Args) -> Result<ExitCode> {
        let detach = args.flag(&["-d", "--detach"]);
        let tty = args.flag(&["-t", "--tty"]);
        let process_file = args.value(&["-p", "--process"]).filter(|path| !path.is_empty());
        let hand_over = HandOver::read(args);
        let preserve_fds = self.preserve(args.number(&["--preserve-fds"])?.unwrap_or(0), 0)?;
        let ignore_paused = args.flag(&["--ignore-paused"]);
        let cgroups = args.values(&["--cgroup"]).iter().map(|text| text.parse()).collect::<Result<_>>()?;
        let changes = Changes::read(args)?;
        let container = self.load(args)?;
        let mut process = match process_file {
            Some(path) => read_process(&path)?,
            None => changes.apply(container.spec()?, args.rest())?,
        };
        process.terminal |= tty;
        hand_over.check(process.terminal, detach)?;
        let stdio = hand_over.stdio(process.terminal, detach);
        let signals = (!detach).then(foreground::Signals::take).transpose()?;
        let options = ExecOptions { stdio, preserve_fds, ignore_paused, cgroups };
        let exec = container
            .exec(&process, options)
            .map_err(|error| error.context(format!("exec in container {}", container.id())))?;
        exec.warnings.iter().for_each(|words| self.log.warning(words));
        self.log.debug(&format!(
            "exec in container {}: process {} has gone on to its program",
            container.id(),
            exec.pid
        ));
        let handed =
            hand_over.carry_out(exec.console.as_ref().map(AsFd::as_fd), exec.pidfd.as_fd(), exec.pid);
        if let Err(error) = handed {
            // No caller knows of the process yet. It may have ended already.
            let _ = exec.pidfd.kill();
            return Err(error);
        }
        let Some(signals) = signals else { return Ok(ExitCode::SUCCESS) };
        let console = exec.console.filter(|_| !hand_over.gives_console_away());
        foreground::attend(&signals, console, None, &exec.pidfd).map(exit_code)
    }
}

/// Flags of exec that change the first process's description.
struct Changes {
    user: Option<String>,
    environment: Vec<String>,
    cwd: Option<String>,
    additional_gids: Vec<String>,
    capabilities: Vec<String>,
    no_new_privileges: Option<bool>,
    apparmor: Option<String>,
    selinux_label: Option<String>,
}

impl Changes {
    fn read(args: &mut Args) -> Result<Changes> {
        Ok(Changes {
            user: args.value(&["-u", "--user"]).filter(|user| !user.is_empty()),
            environment: args.values(&["-e", "--env"]),
            cwd: args.value(&["--cwd"]).filter(|path| !path.is_empty()),
            additional_gids: args.values(&["-g", "--additional-gids"]),
            capabilities: args.values(&["-c", "--cap"]),
            no_new_privileges: args.choice(&["--no-new-privs"]),
            apparmor: args.value(&["--apparmor"]).filter(|profile| !profile.is_empty()),
            selinux_label: args.value(&["--process-label"]).filter(|label| !label.is_empty()),
        })
    }

    fn apply(self, spec: Spec, command: Vec<String>) -> Result<Process> {
        let mut process = spec.process.unwrap_or_default();
        if command.is_empty() {
            return Err(Error::invalid_argument("the command is missing"));
        }
        process.args = command;
        process.terminal = false;
        process.env.extend(self.environment);
        if let Some(cwd) = self.cwd {
            process.cwd = cwd;
        }
        let number = |text: &str| {
            text.parse::<u32>().map_err(|_| Error::invalid_argument(format!("{text:?} is not a numeric id")))
        };
        if let Some(user) = self.user {
            let (uid, gid) = user.split_once(':').map_or((&*user, None), |(uid, gid)| (uid, Some(gid)));
            process.user.uid = number(uid)?;
            // Without a group it keeps the first process's, as with runc.
            process.user.gid = gid.map_or(Ok(process.user.gid), number)?;
        }
        for gid in &self.additional_gids {
            process.user.additional_gids.push(number(gid)?);
        }
        if !self.capabilities.is_empty() {
            let sets = process.capabilities.get_or_insert_default();
            // As with runc: added capabilities are not inheritable by themselves.
            let has_inheritable = !sets.inheritable.is_empty();
            let ambient = Some(&mut sets.ambient).filter(|_| has_inheritable);
            for set in
                [&mut sets.bounding, &mut sets.effective, &mut sets.permitted].into_iter().chain(ambient)
            {
                set.extend(self.capabilities.iter().cloned());
            }
        }
        process.no_new_privileges = self.no_new_privileges.unwrap_or(process.no_new_privileges);
        if let Some(profile) = self.apparmor {
            process.apparmor_profile = profile;
        }
        if let Some(label) = self.selinux_label {
            process.selinux_label = label;
        }
        Ok(process)
    }
}

fn read_process(path: &str) -> Result<Process> {
    let bytes = fs::read(path).context(|| format!("read {path}"))?;
    serde_json::from_slice(&bytes)
        .map_err(|error| Error::invalid_argument(format!("read {path}")).with_source(error))
}

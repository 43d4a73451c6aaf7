//! Creates containers: name, snapshot, volumes, spec, and the record that binds them.

use std::path::Path;
use std::pin::pin;
use std::time::Duration;
use std::{fs, io};

use api::engine::{Create, Created, Lap, Restart, Streams};
use linux::beneath::Root;
use metadata::{Container, Image, Runtime};
use rustix::fs::OFlags;
use serde_json::{Value, json};
use stdx::Laps;
use task::OUR_RUNTIME;
use transfer::Described;
use types::spec::image::{ExecConfig, Healthcheck};
use types::spec::runtime::{Mount, Spec};
use types::{ContainerId, Context, Error, ErrorKind, Labels, Opaque, Platform, Result, Timestamp, label};

use super::binds::look_for_sources;
use super::exposed::{expose, publish_all};
use super::log_driver;
use super::{EXPIRE_LABEL, OWN_EXPIRE_LABEL, Starter, signal_number};
use crate::leftovers::TREE_LABEL;
use crate::networks::{NetworkMode, mac_address};
use crate::record::{EXTENSION, Extension};
use crate::spec::{self, Inputs};
use crate::volumes::VOLUME;
use crate::{Engine, etc, health, info, remove_folder};

/// containerd's type URL of a spec (`typeurl` of a plain Go struct: the value is JSON).
const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
/// Path of the init program in a container with `--init`.
const INIT: &str = "/sbin/hoist-init";
/// Prefixes of labels that the daemon interprets.
const RESERVED: [&str; 2] = ["containerd.io/", "hoist.engine/"];
/// How long a snapshot is kept before its container's record exists.
const TREE_GRACE: Duration = Duration::from_secs(600);

/// A container to be created: the checked request, and what its image declares.
struct NewContainer {
    id: ContainerId,
    create: Create,
    image: Image,
    described: Described,
    /// The image's run configuration.
    config: ExecConfig,
    /// The container whose network namespace it joins, if any.
    joined: Option<(ContainerId, Extension)>,
    snapshotter: String,
    /// The whole command line, without the init program.
    command: Vec<String>,
    stop_signal: String,
    health: Option<Healthcheck>,
}

impl NewContainer {
    /// The hostname of the container whose network it joins, or the requested one. Otherwise the host's if it shares
    /// the host's network or UTS namespace, or the short id.
    fn hostname(&self) -> String {
        let joined = self.joined.as_ref().and_then(|(_, other)| other.create.hostname.as_ref());
        if let Some(asked) = joined.or(self.create.hostname.as_ref()) {
            return asked.clone();
        }
        if NetworkMode::of(&self.create) == NetworkMode::Host || self.create.extras.uts == spec::HOST {
            return rustix::system::uname().nodename().to_string_lossy().into_owned();
        }
        self.id.as_str()[..12].to_owned()
    }

    /// Whether our init program is its first process. A joined PID namespace already has an init.
    fn has_init(&self) -> bool {
        self.create.extras.init && matches!(self.create.extras.pid.as_str(), "" | "private")
    }
}

impl Engine {
    /// Creates a container, and starts it if requested, unless the client has disconnected (`gone`) by then. `NotFound`
    /// if the image does not exist.
    pub async fn create(&self, mut create: Create, gone: impl Future<Output = ()> + Send) -> Result<Value> {
        drop_empty(&mut create);
        let (start, streams, laps) = (create.start, create.streams.clone(), Laps::start());
        let warnings = warnings(&create);
        let clock = laps.clone();
        look_for_sources(&create).await?;
        let id = self.blocking(move |engine| engine.create_record(create, &clock)).await?;
        if start && let Err(error) = self.start_made(&id, &streams, &laps, gone).await {
            // A container that never ran is removed: otherwise its name would stay taken and a repeated `run` would
            // fail.
            if let Err(second) = self.discard_unstarted(&id).await {
                tracing::warn!(%id, "keep a container that could not be started: {}", second.chain());
            }
            return Err(error);
        }
        Ok(json!(Created { id: id.to_string(), laps: wire(&laps), warnings }))
    }

    /// Starts a container that was just created. A client that disconnects before it runs no longer wants it, as if it
    /// had stopped it by hand.
    async fn start_made(
        &self,
        id: &ContainerId,
        streams: &Streams,
        laps: &Laps,
        gone: impl Future<Output = ()> + Send,
    ) -> Result<()> {
        // Like a start by the restart policy, this one gives way to a client that stops the container.
        let mut starting = pin!(self.start_for(Starter::Policy, id.as_str(), streams, laps));
        let is_gone = tokio::select! {
            biased;
            () = gone => true,
            started = &mut starting => {
                // Another client may have started it first.
                if started? || self.task_of(id)?.is_some() {
                    return Ok(());
                }
                false
            }
        };
        if is_gone {
            let own = id.clone();
            let stop = |extension: &mut Extension| extension.stopped_by_hand = true;
            self.blocking(move |engine| engine.change(&own, stop).map(drop)).await?;
            if starting.await? {
                // The container was started before it could be cancelled.
                return self.stop_container(id.as_str(), Some(0), None).await.map(drop);
            }
        }
        Err(Error::new(ErrorKind::Cancelled, "it was stopped before it was started"))
    }

    async fn discard_unstarted(&self, id: &ContainerId) -> Result<()> {
        let _lock = self.0.locks.lock(id.as_str()).await;
        if self.task_of(id)?.is_some() {
            return Err(Error::failed_precondition("something of it may be running"));
        }
        self.check_nothing_is_left(id)?;
        let own = id.clone();
        self.blocking(move |engine| engine.discard(&own, true)).await
    }

    fn create_record(&self, create: Create, laps: &Laps) -> Result<ContainerId> {
        let mut new = self.plan(create)?;
        laps.lap("find the image");
        let shared = self.take_volumes(&mut new.create)?;
        let mut own_volumes = self.name_volumes(&mut new.create, &new.config.volumes)?;
        own_volumes.extend(shared);
        let held = self.lock_volumes(&new.create.mounts)?;
        let id = &new.id;
        let reserve = || {
            self.make_anonymous(&own_volumes)?;
            self.reserve_name(new.create.name.as_deref(), id.as_str())
        };
        let name = match reserve() {
            Ok(name) => name,
            Err(error) => {
                drop(held);
                let _ = self.remove_volumes(&own_volumes);
                return Err(error);
            }
        };
        let made = self.make(&new, &name, &own_volumes, laps);
        drop(held);
        if let Err(error) = made {
            self.release_name(&name, id.as_str());
            let _ = self.remove_volumes(&own_volumes);
            // Report the first error.
            let _ = self.remove_tree(id, &new.snapshotter);
            let _ = remove_folder(&self.files(id.as_str()));
            return Err(error);
        }
        Ok(new.id)
    }

    /// Validates the request as far as no snapshot is needed for it, and finds the image.
    fn plan(&self, mut create: Create) -> Result<NewContainer> {
        check_flags(&mut create)?;
        self.name_joined(&mut create)?;
        let image = self.find_image(&create.image)?;
        let snapshotter = create.snapshotter.clone().unwrap_or_else(|| self.parts().snapshotter.clone());
        let described = self.described_to_run(&image, &snapshotter, create.platform.as_deref())?;
        let config = described.config.config.clone().unwrap_or_default();
        let joined = self.join(&mut create)?;
        if create.publish_all {
            let exposed = config.exposed_ports.keys().chain(&create.extras.exposed);
            publish_all(&mut create.ports, exposed)?;
        }
        Ok(NewContainer {
            id: ContainerId::new(linux::random::hex(32)?)?,
            command: spec::command(&create, &config)?,
            stop_signal: stop_signal(&create, &config)?,
            health: health::check(create.extras.health.as_ref(), config.healthcheck.as_ref())?,
            create,
            image,
            described,
            config,
            joined,
            snapshotter,
        })
    }

    /// Describes an image for the platform of the container: the requested one, or this host's.
    fn described_to_run(
        &self,
        image: &Image,
        snapshotter: &str,
        platform: Option<&str>,
    ) -> Result<Described> {
        if let Some(platform) = platform {
            let platform = platform.parse().map_err(|error: Error| error.context("--platform"))?;
            return self.described_as(image, snapshotter, &platform);
        }
        match self.described_for(image, snapshotter, &Platform::host()) {
            // The error of `described_as` names the platforms that were pulled.
            Err(error) if error.is(ErrorKind::NotFound) => {
                self.described_as(image, snapshotter, &Platform::host())
            }
            described => described,
        }
    }

    /// Makes a container's snapshot, files and record, in this order. After a failure the caller removes what was made.
    fn make(&self, new: &NewContainer, name: &str, own_volumes: &[String], laps: &Laps) -> Result<()> {
        let tree = self.prepare_tree(new)?;
        laps.lap("prepare the tree");
        let hostname = new.hostname();
        let files = self.files(new.id.as_str());
        make_files(&files)?;
        let spec = self.spec_to_record(new, &hostname, &files, &tree)?;
        let resolv_conf = etc::resolv_conf(&new.create);
        etc::write(&files, &hostname, &new.create, &resolv_conf)?;
        laps.lap("find the user, write the spec");
        let mut create = new.create.clone();
        create.hostname = Some(hostname);
        create.streams = Streams::default();
        let labels = with_labels_of(&new.config, &mut create.labels);
        let extension = Extension {
            name: name.to_owned(),
            image: new.image.name.clone(),
            image_digest: new.described.manifest.config.digest.to_string(),
            platform: new.described.config.platform.to_string(),
            command: new.command.clone(),
            stop_signal: new.stop_signal.clone(),
            health: new.health.clone(),
            started: None,
            exit: None,
            restarts: 0,
            short_runs: 0,
            stopped_by_hand: false,
            paused_for_copy: false,
            resolv_conf: etc::digest(resolv_conf.as_bytes()),
            own_volumes: own_volumes.to_vec(),
            create,
        };
        let now = Timestamp::now();
        let container = Container {
            id: new.id.clone(),
            labels,
            image: new.image.name.clone(),
            runtime: Runtime { name: OUR_RUNTIME.into(), options: None },
            spec: Some(Opaque {
                type_url: SPEC_TYPE.into(),
                value: serde_json::to_vec(&spec).expect("plain data"),
            }),
            snapshotter: new.snapshotter.clone(),
            snapshot_key: new.id.to_string(),
            sandbox_id: String::new(),
            extensions: [(EXTENSION.to_owned(), extension.to_opaque())].into(),
            created: now,
            updated: now,
        };
        self.parts().metadata.containers(&self.0.caller).create(container)?;
        laps.lap("record the container");
        Ok(())
    }

    /// Prepares the snapshot. A label protects it from the garbage collector until the record exists, but not forever.
    fn prepare_tree(&self, new: &NewContainer) -> Result<Vec<types::Mount>> {
        let snapshots = self.parts().metadata.snapshots(&self.0.caller, &new.snapshotter)?;
        let expiry = Timestamp::now().plus(TREE_GRACE).to_string();
        let labels =
            [(EXPIRE_LABEL, expiry.clone()), (OWN_EXPIRE_LABEL, expiry), (TREE_LABEL, new.id.to_string())];
        let labels = labels.map(|(name, value)| (name.to_owned(), value)).into();
        // Reaches the disk together with the container's record, or not at all.
        snapshots.prepare_relaxed(new.id.as_str(), new.described.top.as_deref(), labels)
    }

    /// The spec of a container whose snapshot exists. Creates its volumes and fills them from the snapshot.
    fn spec_to_record(
        &self,
        new: &NewContainer,
        hostname: &str,
        files: &Path,
        tree: &[types::Mount],
    ) -> Result<Spec> {
        let NewContainer { id, create, config, .. } = new;
        let user = create.user.as_ref().unwrap_or(&config.user);
        let open = || linux::mount::open_to_read(tree);
        let top = new.described.top.as_deref();
        let (user, home) = self.0.users.resolve(top, user, &create.extras.groups, open)?;
        let mut mounts = self.mounts(create, tree)?;
        if new.has_init() {
            mounts.push(init_mount(&(self.parts().init)().map_err(|error| error.context("--init"))?));
        }
        // The container that owns the network, and whose files have its host names.
        let (owner, network, files) = match &new.joined {
            Some((other, extension)) => {
                (other, NetworkMode::of(&extension.create), self.files(other.as_str()))
            }
            None => (id, NetworkMode::of(create), files.to_owned()),
        };
        let namespace = self.parts().network.namespace_path(owner.as_str());
        let mut spec = spec::build(Inputs {
            create,
            image: config,
            hostname,
            user,
            home: &home,
            network: match network {
                NetworkMode::Host => spec::Network::Host,
                NetworkMode::None => spec::Network::Alone,
                NetworkMode::Bridge | NetworkMode::Of(_) => spec::Network::At(&namespace),
            },
            files: &files,
            cgroup: self.cgroup_of(id.as_str(), &create.extras),
            mounts,
        })?;
        if new.has_init()
            && let Some(process) = &mut spec.process
        {
            process.args.splice(0..0, [INIT.to_owned(), "--".to_owned()]);
        }
        self.check_devices(create, &spec)?;
        Ok(spec)
    }

    /// The requested mounts. Creates volumes and fills them from the snapshot.
    fn mounts(&self, create: &Create, tree: &[types::Mount]) -> Result<Vec<Mount>> {
        let mut mounts = Vec::new();
        for wanted in &create.mounts {
            if !wanted.target.starts_with('/') {
                return Err(Error::invalid_argument(format!(
                    "mount target {:?} is not an absolute path",
                    wanted.target
                )));
            }
            if is_root(&wanted.target) {
                return Err(Error::invalid_argument(format!(
                    "mount target {:?} is the root of the container, which its image is",
                    wanted.target
                )));
            }
            let access = if wanted.read_only { "ro" } else { "rw" };
            let (kind, source, mut options) = match wanted.kind.as_str() {
                "tmpfs" => {
                    let mut options = vec!["noexec", "nosuid", "nodev"];
                    // The mode goes into the spec, because at later starts the mount point exists: the first start made
                    // it.
                    if !has_mode(&wanted.options) && !is_there(tree, &wanted.target)? {
                        options.push("mode=1777");
                    }
                    ("tmpfs", "tmpfs".to_owned(), options)
                }
                VOLUME => {
                    let copies = !wanted.options.iter().any(|option| option == NO_COPY);
                    let tree = || copies.then(|| linux::mount::open_to_read(tree)).transpose();
                    let data = self.open_volume(&wanted.source, &wanted.target, tree)?;
                    ("bind", data.display().to_string(), vec!["rbind", "rprivate"])
                }
                // Making a mount private first would lose the master that it should follow.
                _ if !wanted.options.is_empty() => ("bind", wanted.source.clone(), vec!["rbind"]),
                _ => ("bind", wanted.source.clone(), vec!["rbind", "rprivate"]),
            };
            options.push(access);
            options.extend(wanted.options.iter().map(String::as_str).filter(|option| *option != NO_COPY));
            mounts.push(Mount {
                destination: wanted.target.clone(),
                kind: kind.into(),
                source,
                options: options.iter().map(ToString::to_string).collect(),
                ..Mount::default()
            });
        }
        Ok(mounts)
    }
}

/// `InvalidArgument` for flags that are invalid for any image, `NotFound` for an unknown network. Normalizes flags that
/// have several spellings.
fn check_flags(create: &mut Create) -> Result<()> {
    if create.auto_remove && create.restart != Restart::No {
        return Err(Error::invalid_argument(
            "conflicting options: --rm and --restart; a container that is removed when it ends cannot be restarted",
        ));
    }
    log_driver::limits(&create.extras.log)?;
    create.network = create.network.parse::<NetworkMode>()?.to_string();
    mac_address(create)?;
    create.extras.exposed = expose(&create.extras.exposed)?;
    let extras = &mut create.extras;
    if extras.uts == spec::HOST && create.hostname.is_some() {
        return Err(Error::invalid_argument(
            "conflicting options: hostname and the UTS mode; with --uts host its name is the machine's",
        ));
    }
    if extras.cgroup_parent.split('/').any(|name| name == "." || name == "..") {
        return Err(Error::invalid_argument(format!(
            "--cgroup-parent {:?}: it is a path from the root of the cgroups, without . and ..",
            extras.cgroup_parent
        )));
    }
    match extras.runtime.as_str() {
        // runc is Docker's default, and our shim does what runc does.
        "" | "runc" | RUNC_RUNTIME | OUR_RUNTIME => {}
        other => {
            return Err(Error::invalid_argument(format!(
                "--runtime {other:?}: it is {OUR_RUNTIME}, whose shim keeps the logs and streams of these containers; others \
                 are for `hoist ctr run --runtime`"
            )));
        }
    }
    Ok(())
}

/// Warns of flags without effect, such as those that cgroup version 2 does not have, in Docker's words.
fn warnings(create: &Create) -> Vec<String> {
    let extras = &create.extras;
    let mut warnings = Vec::new();
    if NetworkMode::of(create) == NetworkMode::Host && (create.publish_all || !create.ports.is_empty()) {
        warnings.push("Published ports are discarded when using host network mode".to_owned());
    }
    if info::cgroup_version() != Some("1") {
        let asked = [
            (extras.swappiness.is_some(), "memory swappiness", "Memory swappiness"),
            (extras.oom_kill_disable, "OomKillDisable", "OomKillDisable"),
        ];
        let lost = asked.iter().filter(|(is_said, ..)| *is_said).map(|(_, what, name)| {
            format!("Your kernel does not support {what} with cgroups of version 2. {name} discarded.")
        });
        warnings.extend(lost);
    }
    warnings
}

/// Treats empty strings as absent, as Docker does: scripts write `-u "$RUN_AS"`.
fn drop_empty(create: &mut Create) {
    let said = [
        &mut create.user,
        &mut create.hostname,
        &mut create.workdir,
        &mut create.platform,
        &mut create.name,
        &mut create.snapshotter,
        &mut create.extras.stop_signal,
    ];
    for text in said {
        text.take_if(|text| text.is_empty());
    }
}

/// containerd's runtime name of runc's shim.
const RUNC_RUNTIME: &str = "io.containerd.runc.v2";

/// Volume option: the volume is not filled from the image.
const NO_COPY: &str = "nocopy";

fn init_mount(program: &Path) -> Mount {
    Mount {
        destination: INIT.into(),
        kind: "bind".into(),
        source: program.display().to_string(),
        options: ["rbind", "rprivate", "ro", "nosuid", "nodev"].map(str::to_owned).to_vec(),
        ..Mount::default()
    }
}

/// Adds the image's labels to the requested ones in `own`. Returns the labels for the record: without image labels that
/// are invalid in a record or that the daemon would interpret.
fn with_labels_of(image: &ExecConfig, own: &mut Labels) -> Labels {
    let mut recorded = own.clone();
    for (key, value) in &image.labels {
        if own.contains_key(key) {
            continue;
        }
        let label = Labels::from([(key.clone(), value.clone())]);
        if label::check(&label).is_ok() && !RESERVED.iter().any(|reserved| key.starts_with(reserved)) {
            recorded.extend(label.clone());
        }
        own.extend(label);
    }
    recorded
}

/// The stop signal. A requested one must be valid; an invalid one in the image is ignored.
fn stop_signal(create: &Create, image: &ExecConfig) -> Result<String> {
    if let Some(own) = &create.extras.stop_signal {
        signal_number(own).map_err(|error| error.context("--stop-signal"))?;
        return Ok(own.clone());
    }
    Ok(if image.stop_signal.is_empty() { "SIGTERM".into() } else { image.stop_signal.clone() })
}

fn wire(laps: &Laps) -> Vec<Lap> {
    let microseconds = |took: Duration| u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    let laps = laps.laps().into_iter();
    laps.map(|(step, took)| Lap { step: step.into(), microseconds: microseconds(took) }).collect()
}

/// Makes the directory of a container's files, with its missing parents.
fn make_files(files: &Path) -> Result<()> {
    let make = || match fs::create_dir(files) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if let Some(all) = files.parent() {
                fs::create_dir_all(all)?;
                linux::placement::scatter(all);
            }
            fs::create_dir(files)
        }
        made => made,
    };
    make().context(|| format!("create {}", files.display()))
}

/// Whether a path names its root, lexically: `/`, `/a/..`.
fn is_root(path: &str) -> bool {
    let mut depth = 0_usize;
    for name in path.split('/') {
        match name {
            "" | "." => {}
            ".." => depth = depth.saturating_sub(1),
            _ => depth += 1,
        }
    }
    depth == 0
}

fn has_mode(options: &[String]) -> bool {
    options.iter().any(|option| option.starts_with("mode="))
}

/// Whether a snapshot has a file at a path.
fn is_there(tree: &[types::Mount], path: &str) -> Result<bool> {
    let root = Root::from_fd(linux::mount::open_to_read(tree)?, Path::new("the image"));
    root.find(Path::new(path), OFlags::PATH).map(|found| found.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CVE-2026-53488: labels of an image became the container's, and made the daemon restart it and execute a program
    /// of the host as its logger.
    #[test]
    fn an_image_tells_the_daemon_nothing_by_its_labels() {
        let labels = |pairs: &[(&str, &str)]| -> Labels {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let long = "x".repeat(label::LABEL_LEN_MAX);
        let of_image = [
            ("containerd.io/restart.status", "running"),
            ("containerd.io/restart.loguri", "binary:///bin/sh?-c=id"),
            ("containerd.io/gc.ref.content", "sha256:0"),
            ("hoist.engine/container", "another"),
            ("", "nameless"),
            ("long", long.as_str()),
            ("vendor", "image"),
            ("tier", "image"),
        ];
        let image = ExecConfig { labels: labels(&of_image), ..ExecConfig::default() };
        let mut shown = labels(&[("tier", "own"), ("containerd.io/mine", "own")]);
        let recorded = with_labels_of(&image, &mut shown);
        let expected = [("tier", "own"), ("containerd.io/mine", "own"), ("vendor", "image")];
        assert_eq!(
            recorded,
            labels(&expected),
            "what is asked for counts, and what means something is not the image's"
        );
        assert_eq!(shown.len(), of_image.len() + 1, "people see all of them");
    }
}

//! Making containers: name, tree, volumes, spec, and the record that binds them.

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

/// containerd's type of a spec (`typeurl` of a plain Go struct: the value is JSON).
const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
/// The path in a container with `--init` of the program that is its first process.
const INIT: &str = "/sbin/hoist-init";
/// How labels begin that have a meaning for the daemon.
const RESERVED: [&str; 2] = ["containerd.io/", "hoist.engine/"];
/// How long a tree is kept without the record that will need it.
const TREE_GRACE: Duration = Duration::from_secs(600);

/// A container that is to be made: what was asked for, checked, and what its image says.
struct Making {
    id: ContainerId,
    create: Create,
    image: Image,
    described: Described,
    /// How the image says that it runs.
    config: ExecConfig,
    /// The container whose network it has, if that is another's.
    joined: Option<(ContainerId, Extension)>,
    snapshotter: String,
    /// The whole command line, without what `--init` puts before it.
    command: Vec<String>,
    stop_signal: String,
    health: Option<Healthcheck>,
}

impl Making {
    /// The name of the container whose network it has, or what was asked for; otherwise the machine's where it shares the
    /// machine's network or names, or the beginning of its id.
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

    /// Whether its first process is one of ours. Where it sees the processes of others, one is there already.
    fn has_init(&self) -> bool {
        self.create.extras.init && matches!(self.create.extras.pid.as_str(), "" | "private")
    }
}

impl Engine {
    /// Makes a container, and starts it if asked to, unless the caller is `gone` before it runs. `NotFound` if the image is not
    /// here.
    pub async fn create(&self, mut create: Create, gone: impl Future<Output = ()> + Send) -> Result<Value> {
        forget_empty(&mut create);
        let (start, streams, laps) = (create.start, create.streams.clone(), Laps::start());
        let warnings = warnings(&create);
        let clock = laps.clone();
        look_for_sources(&create).await?;
        let id = self.blocking(move |engine| engine.create_record(create, &clock)).await?;
        if start && let Err(error) = self.start_made(&id, &streams, &laps, gone).await {
            // A container that never ran is not kept: it would hold its name, and `run` under that name be refused.
            if let Err(second) = self.discard_unstarted(&id).await {
                tracing::warn!(%id, "keep a container that could not be started: {}", second.chain());
            }
            return Err(error);
        }
        Ok(json!(Created { id: id.to_string(), laps: wire(&laps), warnings }))
    }

    /// Starts a container that was just made. A caller who goes before it runs does not want it any more, as if he had stopped
    /// it by hand.
    async fn start_made(
        &self,
        id: &ContainerId,
        streams: &Streams,
        laps: &Laps,
        gone: impl Future<Output = ()> + Send,
    ) -> Result<()> {
        // As a policy's, this start gives way to who stops the container.
        let mut starting = pin!(self.start_for(Starter::Policy, id.as_str(), streams, laps));
        let is_gone = tokio::select! {
            biased;
            () = gone => true,
            started = &mut starting => {
                // Somebody else may have been first.
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
                // It was too late for that.
                return self.stop_container(id.as_str(), Some(0), None).await.map(drop);
            }
        }
        Err(Error::new(ErrorKind::Cancelled, "it was stopped before it was started"))
    }

    async fn discard_unstarted(&self, id: &ContainerId) -> Result<()> {
        let _turn = self.0.turns.take(id.as_str()).await;
        if self.task_of(id)?.is_some() {
            return Err(Error::failed_precondition("something of it may be running"));
        }
        self.check_nothing_is_left(id)?;
        let own = id.clone();
        self.blocking(move |engine| engine.discard(&own, true)).await
    }

    fn create_record(&self, create: Create, laps: &Laps) -> Result<ContainerId> {
        let mut making = self.plan(create)?;
        laps.lap("find the image");
        let shared = self.take_volumes(&mut making.create)?;
        let mut own_volumes = self.name_volumes(&mut making.create, &making.config.volumes)?;
        own_volumes.extend(shared);
        let held = self.hold_volumes(&making.create.mounts)?;
        let id = &making.id;
        let reserve = || {
            self.make_anonymous(&own_volumes)?;
            self.reserve_name(making.create.name.as_deref(), id.as_str())
        };
        let name = match reserve() {
            Ok(name) => name,
            Err(error) => {
                drop(held);
                let _ = self.remove_volumes(&own_volumes);
                return Err(error);
            }
        };
        let made = self.make(&making, &name, &own_volumes, laps);
        drop(held);
        if let Err(error) = made {
            self.release_name(&name, id.as_str());
            let _ = self.remove_volumes(&own_volumes);
            // The error that counts is the first.
            let _ = self.remove_tree(id, &making.snapshotter);
            let _ = remove_folder(&self.files(id.as_str()));
            return Err(error);
        }
        Ok(making.id)
    }

    /// Checks what was asked for as far as that needs nothing of the container, and finds its image.
    fn plan(&self, mut create: Create) -> Result<Making> {
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
        Ok(Making {
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

    /// What an image says for the platform that a container is to be of: this machine's, unless another was asked for.
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
            // Another platform of it may be here, and this one be had.
            Err(error) if error.is(ErrorKind::NotFound) => {
                self.described_as(image, snapshotter, &Platform::host())
            }
            described => described,
        }
    }

    /// Makes a container's tree, its files and its record, in this order. What is there when a step fails is for the
    /// caller to take away.
    fn make(&self, making: &Making, name: &str, own_volumes: &[String], laps: &Laps) -> Result<()> {
        let tree = self.prepare_tree(making)?;
        laps.lap("prepare the tree");
        let hostname = making.hostname();
        let files = self.files(making.id.as_str());
        make_files(&files)?;
        let spec = self.spec_to_record(making, &hostname, &files, &tree)?;
        let resolv_conf = etc::resolv_conf(&making.create);
        etc::write(&files, &hostname, &making.create, &resolv_conf)?;
        laps.lap("find the user, write the spec");
        let mut create = making.create.clone();
        create.hostname = Some(hostname);
        create.streams = Streams::default();
        let labels = with_labels_of(&making.config, &mut create.labels);
        let extension = Extension {
            name: name.to_owned(),
            image: making.image.name.clone(),
            image_digest: making.described.manifest.config.digest.to_string(),
            platform: making.described.config.platform.to_string(),
            command: making.command.clone(),
            stop_signal: making.stop_signal.clone(),
            health: making.health.clone(),
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
            id: making.id.clone(),
            labels,
            image: making.image.name.clone(),
            runtime: Runtime { name: OUR_RUNTIME.into(), options: None },
            spec: Some(Opaque {
                type_url: SPEC_TYPE.into(),
                value: serde_json::to_vec(&spec).expect("plain data"),
            }),
            snapshotter: making.snapshotter.clone(),
            snapshot_key: making.id.to_string(),
            sandbox_id: String::new(),
            extensions: [(EXTENSION.to_owned(), extension.to_opaque())].into(),
            created: now,
            updated: now,
        };
        self.parts().metadata.containers(&self.0.caller).create(container)?;
        laps.lap("record the container");
        Ok(())
    }

    /// Makes the tree of a container, which the collector leaves alone until the record is there, and for a while only.
    fn prepare_tree(&self, making: &Making) -> Result<Vec<types::Mount>> {
        let snapshots = self.parts().metadata.snapshots(&self.0.caller, &making.snapshotter)?;
        let expiry = Timestamp::now().plus(TREE_GRACE).to_string();
        let labels =
            [(EXPIRE_LABEL, expiry.clone()), (OWN_EXPIRE_LABEL, expiry), (TREE_LABEL, making.id.to_string())];
        let labels = labels.map(|(name, value)| (name.to_owned(), value)).into();
        // On disk with the container's record, or not at all.
        snapshots.prepare_relaxed(making.id.as_str(), making.described.top.as_deref(), labels)
    }

    /// The spec of a container whose tree is there. Volumes are made on the way, and filled from the tree.
    fn spec_to_record(
        &self,
        making: &Making,
        hostname: &str,
        files: &Path,
        tree: &[types::Mount],
    ) -> Result<Spec> {
        let Making { id, create, config, .. } = making;
        let user = create.user.as_ref().unwrap_or(&config.user);
        let open = || linux::mount::open_to_read(tree);
        let top = making.described.top.as_deref();
        let (user, home) = self.0.users.resolve(top, user, &create.extras.groups, open)?;
        let mut mounts = self.mounts(create, tree)?;
        if making.has_init() {
            mounts.push(init_mount(&(self.parts().init)().map_err(|error| error.context("--init"))?));
        }
        // The container whose network it is, and whose hosts know the names in it.
        let (owner, network, files) = match &making.joined {
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
        if making.has_init()
            && let Some(process) = &mut spec.process
        {
            process.args.splice(0..0, [INIT.to_owned(), "--".to_owned()]);
        }
        self.check_devices(create, &spec)?;
        Ok(spec)
    }

    /// Mounts that people asked for. Volumes are made, and filled from the tree.
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
                    // The mode is in the spec: at later starts the directory is there, made by the first.
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
                // A mount that is made private first has no master any more that it could follow.
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

/// `InvalidArgument` for flags that cannot be, whatever the image, and `NotFound` for a network that there is not. Those
/// that can be said in several ways are written in one.
fn check_flags(create: &mut Create) -> Result<()> {
    if create.auto_remove && create.restart != Restart::No {
        return Err(Error::invalid_argument(
            "conflicting options: --rm and --restart; what goes when it ends cannot be started again by itself",
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
        // runc is Docker's default, and the shim does what runc does.
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

/// What has no effect where cgroups are of version 2, in Docker's words.
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

/// As with Docker, what is empty was not said: scripts write `-u "$RUN_AS"`.
fn forget_empty(create: &mut Create) {
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

/// containerd's name of runc's shim.
const RUNC_RUNTIME: &str = "io.containerd.runc.v2";

/// An option of a volume: it is not filled from the image.
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

/// Adds the labels of the image to those that were asked for. Returns those of the record: without labels of the image that
/// no record can have, or that would tell the daemon what to do with it.
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

/// What a person asks for is a signal; what an image asks for may be none, and then it is not taken.
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

/// Makes the directory of a container's files, which have nothing to do with those of others.
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

/// Whether a path names the root of whatever it is in.
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

/// Whether a tree has something at a path.
fn is_there(tree: &[types::Mount], path: &str) -> Result<bool> {
    let root = Root::from_fd(linux::mount::open_to_read(tree)?, Path::new("the image"));
    root.find(Path::new(path), OFlags::PATH).map(|found| found.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CVE-2026-53488: labels of an image that became the container's had the daemon start it again, and execute a
    /// program of the machine for its output.
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

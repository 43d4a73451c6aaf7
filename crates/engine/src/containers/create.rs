//! Making containers: name, tree, volumes, spec, and the record that binds them.

use std::path::Path;
use std::pin::pin;
use std::time::Duration;
use std::{fs, io};

use api::engine::{Create, Created, Lap, Restart, Streams};
use linux::beneath::Root;
use metadata::{Container, Runtime};
use rustix::fs::OFlags;
use serde_json::{Value, json};
use stdx::Laps;
use task::OUR_RUNTIME;
use types::spec::image::ExecConfig;
use types::spec::runtime::Mount;
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
use crate::{Engine, etc, health, info, random_hex, remove_folder};

/// containerd's type of a spec (`typeurl` of a plain Go struct: the value is JSON).
const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
/// Where the first process of a container with `--init` is in it.
const INIT: &str = "/sbin/hoist-init";
/// Labels with a meaning for the daemon begin so.
const RESERVED: [&str; 2] = ["containerd.io/", "hoist.engine/"];
/// How long a tree is kept without the record that will need it.
const TREE_GRACE: Duration = Duration::from_secs(600);

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
            // What never ran is not kept under its name, as Docker's `run` does not start again by itself.
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

    fn create_record(&self, mut create: Create, laps: &Laps) -> Result<ContainerId> {
        if create.auto_remove && create.restart != Restart::No {
            return Err(Error::invalid_argument(
                "conflicting options: --rm and --restart; what goes when it ends cannot be started again by itself",
            ));
        }
        check_flags(&mut create)?;
        self.name_joined(&mut create)?;
        let image = self.find_image(&create.image)?;
        let snapshotter = self.snapshotter_for(&create).to_owned();
        let described = match &create.platform {
            Some(platform) => {
                let platform = platform.parse().map_err(|error: Error| error.context("--platform"))?;
                self.described_as(&image, &snapshotter, &platform)?
            }
            None => match self.described_for(&image, &snapshotter, &Platform::host()) {
                // Another platform of it may be here, and this one be had.
                Err(error) if error.is(ErrorKind::NotFound) => {
                    self.described_as(&image, &snapshotter, &Platform::host())?
                }
                described => described?,
            },
        };
        laps.lap("find the image");
        let id = ContainerId::new(random_hex(32)?)?;
        let declared = described.config.config.as_ref().map(|config| config.volumes.clone());
        let shared = self.take_volumes(&mut create)?;
        let mut own_volumes = self.name_volumes(&mut create, &declared.unwrap_or_default())?;
        own_volumes.extend(shared);
        let held = self.hold_volumes(&create.mounts)?;
        let reserve = || {
            self.make_anonymous(&own_volumes)?;
            self.reserve_name(create.name.as_deref(), id.as_str())
        };
        let name = match reserve() {
            Ok(name) => name,
            Err(error) => {
                drop(held);
                let _ = self.remove_volumes(&own_volumes);
                return Err(error);
            }
        };
        let made = self.make((&id, &name), (create, &own_volumes), (&image, &described), laps);
        drop(held);
        if made.is_err() {
            self.release_name(&name, id.as_str());
            let _ = self.remove_volumes(&own_volumes);
            // The error that counts is the first.
            let _ = self.remove_tree(&id, &snapshotter);
            let _ = remove_folder(&self.files(id.as_str()));
        }
        made.map(|()| id)
    }

    fn snapshotter_for<'a>(&'a self, create: &'a Create) -> &'a str {
        create.snapshotter.as_deref().unwrap_or(&self.parts().snapshotter)
    }

    fn make(
        &self,
        (id, name): (&ContainerId, &str),
        (mut create, own_volumes): (Create, &[String]),
        (image, described): (&metadata::Image, &transfer::Described),
        laps: &Laps,
    ) -> Result<()> {
        let parts = self.parts();
        let snapshotter = self.snapshotter_for(&create).to_owned();
        let snapshots = parts.metadata.snapshots(&self.0.caller, &snapshotter)?;
        let expiry = Timestamp::now().plus(TREE_GRACE).to_string();
        let labels =
            [(EXPIRE_LABEL, expiry.clone()), (OWN_EXPIRE_LABEL, expiry), (TREE_LABEL, id.to_string())];
        let labels = labels.map(|(name, value)| (name.to_owned(), value)).into();
        // On disk with the container's record, or not at all.
        let tree = snapshots.prepare_relaxed(id.as_str(), described.top.as_deref(), labels)?;
        laps.lap("prepare the tree");

        let exec_config = described.config.config.clone().unwrap_or_default();
        let joined = self.join(&mut create)?;
        let hostname = joined.as_ref().and_then(|(_, other)| other.create.hostname.as_ref());
        let hostname = hostname.or(create.hostname.as_ref()).cloned();
        let has_names_of_host =
            NetworkMode::of(&create) == NetworkMode::Host || create.extras.uts == spec::HOST;
        let hostname = hostname.unwrap_or_else(|| match has_names_of_host {
            true => rustix::system::uname().nodename().to_string_lossy().into_owned(),
            false => id.as_str()[..12].to_owned(),
        });
        let wanted_user = create.user.clone().unwrap_or_else(|| exec_config.user.clone());
        let (user, home) =
            self.0.users.resolve(described.top.as_deref(), &wanted_user, &create.extras.groups, || {
                linux::mount::open_to_read(&tree)
            })?;
        let files = self.files(id.as_str());
        make_files(&files)?;
        let mut mounts = self.mounts(&create, &tree)?;
        // Where there are processes of others is one already.
        let has_init = create.extras.init && matches!(create.extras.pid.as_str(), "" | "private");
        if has_init {
            mounts.push(init_mount(&(parts.init)().map_err(|error| error.context("--init"))?));
        }
        create.extras.exposed = expose(&create.extras.exposed)?;
        if create.publish_all {
            let exposed = exec_config.exposed_ports.keys().chain(&create.extras.exposed);
            publish_all(&mut create.ports, exposed)?;
        }
        // Whose network it is knows the names in it.
        let known = joined.as_ref().map_or_else(|| files.clone(), |(other, _)| self.files(other.as_str()));
        let (owner, network) = match &joined {
            Some((other, extension)) => (other, NetworkMode::of(&extension.create)),
            None => (id, NetworkMode::of(&create)),
        };
        let namespace = parts.network.namespace_path(owner.as_str());
        let mut spec = spec::build(Inputs {
            create: &create,
            image: &exec_config,
            hostname: &hostname,
            user,
            home: &home,
            network: match network {
                NetworkMode::Host => spec::Network::Host,
                NetworkMode::None => spec::Network::Alone,
                NetworkMode::Bridge | NetworkMode::Of(_) => spec::Network::At(&namespace),
            },
            files: &known,
            cgroup: self.cgroup_of(id.as_str(), &create.extras),
            mounts,
        })?;
        let command = spec.process.as_ref().map(|process| process.args.clone()).unwrap_or_default();
        if has_init && let Some(process) = &mut spec.process {
            process.args.splice(0..0, [INIT.to_owned(), "--".to_owned()]);
        }
        self.check_devices(&create, &spec)?;
        let resolv_conf = etc::resolv_conf(&create);
        etc::write(&files, &hostname, &create, &resolv_conf)?;
        laps.lap("find the user, write the spec");
        create.hostname = Some(hostname);
        create.streams = Streams::default();
        let labels = with_labels_of(&exec_config, &mut create.labels);
        let extension = Extension {
            name: name.to_owned(),
            image: image.name.clone(),
            image_digest: described.manifest.config.digest.to_string(),
            platform: described.config.platform.to_string(),
            command,
            stop_signal: stop_signal(&create, &exec_config)?,
            health: health::check(create.extras.health.as_ref(), exec_config.healthcheck.as_ref())?,
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
            id: id.clone(),
            labels,
            image: image.name.clone(),
            runtime: Runtime { name: OUR_RUNTIME.into(), options: None },
            spec: Some(Opaque {
                type_url: SPEC_TYPE.into(),
                value: serde_json::to_vec(&spec).expect("plain data"),
            }),
            snapshotter,
            snapshot_key: id.to_string(),
            sandbox_id: String::new(),
            extensions: [(EXTENSION.to_owned(), extension.to_opaque())].into(),
            created: now,
            updated: now,
        };
        parts.metadata.containers(&self.0.caller).create(container)?;
        laps.lap("record the container");
        Ok(())
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
                    // Also of one that is started again, whose directory has been made.
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
                // What is private first has no master any more that it could follow.
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

/// `InvalidArgument` for flags that cannot be, whatever the image.
fn check_flags(create: &mut Create) -> Result<()> {
    log_driver::limits(&create.extras.log)?;
    create.network = create.network.parse::<NetworkMode>()?.to_string();
    mac_address(create)?;
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
        // What Docker calls its first: the shim does what runc does.
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

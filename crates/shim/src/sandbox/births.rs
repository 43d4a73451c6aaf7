//! Containers and further processes on their way: created, added, started.
//!
//! Whatever fails on the way, nothing runs that nobody knows of.

use std::collections::BTreeMap;
use std::path::PathBuf;

use api::shim::events::{self, topic};
use api::shim::runc;
use api::shim::task;
use linux::cgroup::OomWatch;
use linux::signal::{self, Signal};
use types::{Context, Error, Result};

use super::{Sandbox, options};
use crate::container::Container;
use crate::oci::{self, Frozen, Oci};
use crate::poll::{Interest, Source};
use crate::process::{Process, ProcessKey, Stage};
use crate::publisher::JournalKey;
use crate::record::{self, RuntimeRecord};
use crate::rootfs;
use crate::stdio::open::{Inside, Outside, Owner};
use crate::stdio::{StdioConfig, Stream};

/// A container's parts, on their way into the shim's tables.
pub(super) struct Made {
    pub(super) bundle: PathBuf,
    pub(super) oci: Oci,
    pub(super) stage: Stage,
    pub(super) config: StdioConfig,
    pub(super) stdio: Inside,
}

impl Sandbox {
    pub(crate) fn create(&mut self, request: task::CreateTaskRequest) -> Result<task::CreateTaskResponse> {
        types::ContainerId::new(&request.id)?;
        if self.closing {
            return Err(Error::unavailable("the shim is about to end; start another"));
        }
        self.check_pod_is_ready()?;
        if self.containers.contains_key(&request.id) {
            return Err(Error::already_exists(format!("container {}", request.id)));
        }
        let options: runc::Options = options("runtime", request.options.as_ref())?;
        let bundle = PathBuf::from(&request.bundle);
        match self.create_in(&request, &options, bundle.clone()) {
            Ok(pid) => Ok(task::CreateTaskResponse { pid }),
            Err(error) => {
                if !request.rootfs.is_empty()
                    && let Err(leftover) = rootfs::unmount(&bundle)
                {
                    self.log.warn(leftover.chain());
                }
                Err(error.context(format!("create container {}", request.id)))
            }
        }
    }

    fn create_in(
        &mut self,
        request: &task::CreateTaskRequest,
        options: &runc::Options,
        bundle: PathBuf,
    ) -> Result<u32> {
        let config = StdioConfig {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let namespace = self.namespace.clone();
        let owner =
            Owner { namespace: &namespace, container: &request.id, uid: options.io_uid, gid: options.io_gid };
        let root = oci::state_root(options, &bundle, &namespace);
        let rootfs_mounted = !request.rootfs.is_empty();
        // Before anything is made that somebody may have to take down.
        record::write(
            &bundle,
            record::RUNTIME,
            &RuntimeRecord {
                version: 1,
                binary: options.binary_name.clone(),
                root: root.clone(),
                systemd_cgroup: options.systemd_cgroup,
                rootfs_mounted,
            },
        )?;
        rootfs::mount(&bundle, &request.rootfs)?;
        let outside = self.at_home(|| Outside::open(&config, owner))?;
        if !request.checkpoint.is_empty() {
            let images = PathBuf::from(&request.checkpoint);
            let frozen = Frozen { images, root, options: options.clone(), outside: Some(outside) };
            self.add_frozen(request, config, bundle, frozen)?;
            return Ok(0);
        }
        let create = oci::Create { id: &request.id, bundle: &bundle, root: &root, options };
        let (ends, streams) = outside.split(request.terminal, owner)?;
        let mut created = Oci::create(create, ends.into())?;
        for warning in &created.warnings {
            self.log.warn(format_args!("container {}: {warning}", request.id));
        }
        let pid = created.pid.as_raw_nonzero().get() as u32;
        let settled = streams.join(created.console.take()).and_then(|stdio| {
            record::write_bytes(&bundle, record::INIT_PID, pid.to_string().as_bytes())?;
            Ok(stdio)
        });
        let stdio = settled.inspect_err(|_| self.undo(created.oci.delete(), &request.id))?;

        let oci = created.oci;
        let stage = Stage::Created { pid: created.pid };
        let key = self.add_container(request, options, Made { bundle, oci, stage, config, stdio });
        self.watch(&request.id, key, created.owns_pids)?;
        self.publish_create(request, key, pid);
        Ok(pid)
    }

    /// Says what went wrong when a container was taken down that nobody got to know.
    pub(super) fn undo(&mut self, deleted: Result<Vec<String>>, id: &str) {
        for words in deleted.unwrap_or_else(|error| vec![error.chain()]) {
            self.log.warn(format_args!("take down container {id}: {words}"));
        }
    }

    /// Puts a container among the others. Answers with its key.
    pub(super) fn add_container(
        &mut self,
        request: &task::CreateTaskRequest,
        options: &runc::Options,
        made: Made,
    ) -> u32 {
        let init = self.add_process(Process {
            container: request.id.clone(),
            exec_id: String::new(),
            stage: made.stage,
            config: made.config,
            stdio: made.stdio,
            waiting: Vec::new(),
        });
        let key = self.key();
        let container = Container {
            id: request.id.clone(),
            key,
            bundle: made.bundle,
            owns_pids: false,
            oci: made.oci,
            init,
            execs: BTreeMap::new(),
            paused: false,
            rootfs_mounted: !request.rootfs.is_empty(),
            oom: None,
            oom_seen: linux::cgroup::Oom::default(),
            exit_held: false,
            io_owner: (options.io_uid, options.io_gid),
        };
        self.publisher.open_journal(JournalKey(key), &container.bundle, &mut self.log);
        self.containers.insert(request.id.clone(), container);
        key
    }

    /// Follows what becomes of a container that has processes.
    pub(super) fn watch(&mut self, id: &str, key: u32, owns_pids: bool) -> Result<()> {
        let watch = self.container(id)?.oci.watch_oom();
        let oom = self.watch_oom(key, watch, id);
        let container = self.container_mut(id)?;
        container.owns_pids = owns_pids;
        container.oom = oom;
        Ok(())
    }

    pub(super) fn publish_create(&mut self, request: &task::CreateTaskRequest, key: u32, pid: u32) {
        self.publish(
            key,
            topic::CREATE,
            &events::TaskCreate {
                container_id: request.id.clone(),
                bundle: request.bundle.clone(),
                rootfs: request.rootfs.clone(),
                io: Some(events::TaskIo {
                    stdin: request.stdin.clone(),
                    stdout: request.stdout.clone(),
                    stderr: request.stderr.clone(),
                    terminal: request.terminal,
                }),
                checkpoint: request.checkpoint.clone(),
                pid,
            },
        );
    }

    /// Log drivers are the host's programs, not the pod's.
    fn at_home<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        match &self.pod {
            Some(pod) => pod.at_home(work),
            None => work(),
        }
    }

    fn watch_oom(&mut self, key: u32, watch: Result<OomWatch>, id: &str) -> Option<OomWatch> {
        let watch = watch.and_then(|watch| {
            self.poll.add(&watch, Source::Oom(key), Interest::Read).context(|| "watch for lost memory")?;
            Ok(watch)
        });
        watch
            .inspect_err(|error| {
                self.log.debug(format_args!("container {id}: no report of lost memory: {}", error.chain()));
            })
            .ok()
    }

    fn add_process(&mut self, process: Process) -> ProcessKey {
        let key = ProcessKey(self.key());
        self.processes.insert(key, process);
        for stream in Stream::ALL {
            self.advance_copy(key, stream);
        }
        key
    }

    pub(crate) fn start(&mut self, request: &task::StartRequest) -> Result<task::StartResponse> {
        let key = self.find(&request.id, &request.exec_id)?;
        let pid = if request.exec_id.is_empty() {
            self.start_init(&request.id, key)?
        } else {
            self.start_exec(request, key).map_err(|error| {
                error.context(format!("exec {} in container {}", request.exec_id, request.id))
            })?
        };
        Ok(task::StartResponse { pid })
    }

    fn start_init(&mut self, id: &str, key: ProcessKey) -> Result<u32> {
        if matches!(self.process(key)?.stage, Stage::Frozen) {
            self.bring_back(id, key)?;
            return self.publish_start(id, key);
        }
        let Some(Stage::Created { pid }) = self.processes.get(&key).map(|process| process.stage.clone())
        else {
            return Err(Error::failed_precondition(format!("container {id} was started before")));
        };
        self.container_mut(id)?
            .oci
            .start()
            .map_err(|error| error.context(format!("start container {id}")))?;
        self.process_mut(key)?.stage = Stage::Running { pid };
        self.publish_start(id, key)
    }

    fn publish_start(&mut self, id: &str, key: ProcessKey) -> Result<u32> {
        let pid = self.process(key)?.pid_number();
        let container = self.container(id)?.key;
        self.publish(container, topic::START, &events::TaskStart { container_id: id.to_owned(), pid });
        Ok(pid)
    }

    fn start_exec(&mut self, request: &task::StartRequest, key: ProcessKey) -> Result<u32> {
        self.check_init_lives(&request.id, "exec")?;
        let namespace = self.namespace.clone();
        let process = self.process_mut(key)?;
        let Stage::Added { spec } = &process.stage else {
            return Err(Error::failed_precondition("the process was started before"));
        };
        let (spec, config) = (spec.clone(), process.config.clone());
        let container = self.container(&request.id)?;
        let (container_key, (uid, gid)) = (container.key, container.io_owner);
        let owner = Owner { namespace: &namespace, container: &request.id, uid, gid };
        let outside = self.at_home(|| Outside::open(&config, owner))?;
        let oci = &mut self.container_mut(&request.id)?.oci;
        let exec = oci::Exec { exec_id: &request.exec_id, spec: &spec };
        let (ends, streams) = outside.split(config.terminal, owner)?;
        let mut executed = oci.exec(exec, ends.into())?;
        let joined = streams.join(executed.console.take());
        let stdio = joined.inspect_err(|_| {
            // Nobody would know of it. It may have ended already.
            let _gone = signal::send(executed.pid, Signal::KILL);
        })?;
        for warning in &executed.warnings {
            self.log.warn(format_args!("exec {} in container {}: {warning}", request.exec_id, request.id));
        }
        let process = self.process_mut(key)?;
        process.stage = Stage::Running { pid: executed.pid };
        process.stdio = stdio;
        let pid = process.pid_number();
        self.publish(
            container_key,
            topic::EXEC_STARTED,
            &events::TaskExecStarted {
                container_id: request.id.clone(),
                exec_id: request.exec_id.clone(),
                pid,
            },
        );
        for stream in Stream::ALL {
            self.advance_copy(key, stream);
        }
        Ok(pid)
    }

    pub(crate) fn exec(&mut self, request: task::ExecProcessRequest) -> Result<()> {
        types::ExecId::new(&request.exec_id)?;
        self.check_init_lives(&request.id, "exec")?;
        let container = self.container(&request.id)?;
        if container.execs.contains_key(&request.exec_id) {
            return Err(Error::already_exists(format!(
                "exec {} in container {}",
                request.exec_id, request.id
            )));
        }
        let spec = request.spec.ok_or_else(|| Error::invalid_argument("exec without a process spec"))?;
        let key = self.add_process(Process {
            container: request.id.clone(),
            exec_id: request.exec_id.clone(),
            stage: Stage::Added { spec: spec.value },
            config: StdioConfig {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                terminal: request.terminal,
            },
            stdio: Inside::default(),
            waiting: Vec::new(),
        });
        let container = self.container_mut(&request.id)?;
        container.execs.insert(request.exec_id.clone(), key);
        let container = container.key;
        self.publish(
            container,
            topic::EXEC_ADDED,
            &events::TaskExecAdded { container_id: request.id, exec_id: request.exec_id },
        );
        Ok(())
    }
}

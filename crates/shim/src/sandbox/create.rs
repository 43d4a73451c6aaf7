//! Creation of containers.
//!
//! If a step fails, no process is left running that the daemon does not know of.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use api::shim::events::{self, topic};
use api::shim::runc;
use api::shim::task;
use linux::cgroup::OomWatch;
use types::{Context, Error, Result};

use super::jobs::WithStreams;
use super::{Sandbox, options};
use crate::container::Container;
use crate::oci::{self, Created, Oci};
use crate::poll::{Interest, Source};
use crate::process::{Process, ProcessKey, Stage};
use crate::publisher::JournalKey;
use crate::record::{self, RuntimeRecord};
use crate::rootfs;
use crate::service::{Outcome, ReplyTo, answer};
use crate::stdio::open::{Inside, Outside, Owner, Streams};
use crate::stdio::{StdioConfig, Stream};
use crate::worker::{Answer, Done, Worker};

/// A requested container that is not created yet.
pub(crate) struct PendingCreate {
    pub(super) request: task::CreateTaskRequest,
    pub(super) options: runc::Options,
    pub(super) config: StdioConfig,
    pub(super) bundle: PathBuf,
    /// The runtime's state directory.
    pub(super) root: PathBuf,
    pub(super) waits_for_others: bool,
}

/// Connects the first process to its streams, and writes the records that must exist before a client learns of the
/// container.
pub(super) fn settle(pending: &PendingCreate, streams: Streams, created: &mut Created) -> Result<Inside> {
    let stdio = streams.join(created.console.take())?;
    record::reserve(&pending.bundle, record::EXIT)?;
    record::write_bytes(
        &pending.bundle,
        record::INIT_PID,
        created.pid.as_raw_nonzero().to_string().as_bytes(),
    )?;
    Ok(stdio)
}

impl PendingCreate {
    pub(super) fn id(&self) -> &str {
        &self.request.id
    }

    fn has_rootfs(&self) -> bool {
        !self.request.rootfs.is_empty()
    }

    pub(super) fn create(&self) -> oci::Create<'_> {
        oci::Create { id: self.id(), bundle: &self.bundle, root: &self.root, options: &self.options }
    }

    pub(super) fn record(&self) -> RuntimeRecord {
        RuntimeRecord {
            version: 1,
            binary: self.options.binary_name.clone(),
            root: self.root.clone(),
            systemd_cgroup: self.options.systemd_cgroup,
            rootfs_mounted: self.has_rootfs(),
        }
    }

    pub(super) fn owner<'a>(&'a self, namespace: &'a str) -> Owner<'a> {
        let (uid, gid) = (self.options.io_uid, self.options.io_gid);
        Owner { namespace, container: self.id(), uid, gid }
    }
}

impl Sandbox {
    pub(crate) fn create(&mut self, request: task::CreateTaskRequest, reply: ReplyTo) -> Result<Outcome> {
        types::ContainerId::new(&request.id)?;
        if self.closing {
            return Err(Error::unavailable("the shim is about to end; start another"));
        }
        self.check_pod_takes(Path::new(&request.bundle))?;
        if self.containers.contains_key(&request.id) {
            return Err(Error::already_exists(format!("container {}", request.id)));
        }
        let options: runc::Options = options("runtime", request.options.as_ref())?;
        let pending = PendingCreate {
            config: StdioConfig {
                stdin: request.stdin.clone(),
                stdout: request.stdout.clone(),
                stderr: request.stderr.clone(),
                terminal: request.terminal,
            },
            bundle: PathBuf::from(&request.bundle),
            root: oci::state_root(&options, Path::new(&request.bundle), &self.namespace),
            waits_for_others: oci::waits_for_others(&options, Path::new(&request.bundle)),
            options,
            request,
        };
        match self.prepare_create(&pending) {
            Ok(outside) => {
                let id = pending.id().to_owned();
                let begin: WithStreams =
                    Box::new(|sandbox, outside, reply| sandbox.begin_create(pending, outside, reply));
                self.when_read(&id, None, outside, reply, begin)
            }
            Err(error) => Err(self.create_failed(pending.id(), &pending.bundle, pending.has_rootfs(), error)),
        }
    }

    /// Unmounts the root file system of a container whose creation failed.
    fn create_failed(&mut self, id: &str, bundle: &Path, has_rootfs: bool, error: Error) -> Error {
        if has_rootfs && let Err(leftover) = rootfs::unmount(bundle) {
            self.log.warn(leftover.chain());
        }
        error.context(format!("create container {id}"))
    }

    fn prepare_create(&self, pending: &PendingCreate) -> Result<Outside> {
        oci::look_for(&pending.options)?;
        // Written before there is anything that `delete` may have to clean up.
        record::write(&pending.bundle, record::RUNTIME, &pending.record())?;
        rootfs::mount(&pending.bundle, &pending.request.rootfs)?;
        self.on_host(|| Outside::open(&pending.config, pending.owner(&self.namespace)))
    }

    fn begin_create(
        &mut self,
        pending: PendingCreate,
        outside: Result<Outside>,
        reply: ReplyTo,
    ) -> Result<Outcome> {
        let (id, bundle, has_rootfs) =
            (pending.id().to_owned(), pending.bundle.clone(), pending.has_rootfs());
        outside
            .and_then(|outside| self.try_create(pending, outside, reply))
            .map_err(|error| self.create_failed(&id, &bundle, has_rootfs, error))
    }

    fn try_create(&mut self, pending: PendingCreate, outside: Outside, reply: ReplyTo) -> Result<Outcome> {
        if !pending.request.checkpoint.is_empty() {
            self.add_frozen(pending, outside)?;
            return answer(Ok(task::CreateTaskResponse { pid: 0 }));
        }
        let namespace = self.namespace.clone();
        let owner = pending.owner(&namespace);
        let (ends, streams) = outside.split(pending.config.terminal, owner)?;
        if !pending.waits_for_others {
            let created = Oci::create(pending.create(), ends.into())?;
            return self.finish_create(pending, streams, created, reply);
        }
        let worker = Worker::begin_process(ends, |stdio| {
            Oci::create(pending.create(), stdio).map(Created::into_done)
        })?;
        let id = pending.id().to_owned();
        self.begin_step(&id.clone(), None, worker, reply, move |sandbox, answer, reply| {
            let (bundle, has_rootfs) = (pending.bundle.clone(), pending.has_rootfs());
            let made = sandbox.take_created(&pending.record(), pending.create(), answer);
            let answered = made.and_then(|created| sandbox.finish_create(pending, streams, created, reply));
            answered.map_err(|error| sandbox.create_failed(&id, &bundle, has_rootfs, error))
        })
    }

    /// The container that a worker reported, or was creating when it died.
    pub(super) fn take_created(
        &mut self,
        record: &RuntimeRecord,
        create: oci::Create<'_>,
        answer: Answer,
    ) -> Result<Created> {
        let made = match answer {
            Answer::Done(done) => Created::from_done(create, done),
            Answer::Failed(error) => return Err(error),
            Answer::Lost(error) => Err(error),
        };
        made.inspect_err(|_| self.take_down_unknown(record, create))
    }

    fn finish_create(
        &mut self,
        pending: PendingCreate,
        streams: Streams,
        mut created: Created,
        reply: ReplyTo,
    ) -> Result<Outcome> {
        let id = pending.id();
        for warning in &created.warnings {
            self.log.warn(format_args!("container {id}: {warning}"));
        }
        let pid = created.pid.as_raw_nonzero().get() as u32;
        let stdio = match settle(&pending, streams, &mut created) {
            Ok(stdio) => stdio,
            Err(error) => {
                return self.take_back(pending, created.oci, error, reply, |sandbox, pending, error| {
                    sandbox.create_failed(pending.id(), &pending.bundle, pending.has_rootfs(), error)
                });
            }
        };
        let stage = Stage::Created { pid: created.pid };
        let key = self.add_container(&pending, created.oci, stage, stdio);
        self.watch(id, key, created.owns_pids)?;
        self.publish_create(&pending.request, key, pid);
        answer(Ok(task::CreateTaskResponse { pid }))
    }

    /// Deletes a container whose creation failed with `error`. If that takes a job, `complete` is applied to the error
    /// afterwards.
    pub(super) fn take_back(
        &mut self,
        pending: PendingCreate,
        mut oci: Oci,
        error: Error,
        reply: ReplyTo,
        complete: fn(&mut Sandbox, &PendingCreate, Error) -> Error,
    ) -> Result<Outcome> {
        if !pending.waits_for_others {
            self.undo(oci.delete(false), pending.id());
            return Err(error);
        }
        // Its poststop hooks run, which may take any time.
        let work = || Ok(Done { warnings: oci.delete(true)?, ..Done::default() });
        let worker = Worker::begin(work)
            .inspect_err(|_| self.take_down_unknown(&pending.record(), pending.create()))?;
        let id = pending.id().to_owned();
        self.begin_step(&id, None, worker, reply, move |sandbox, answer, _| {
            if matches!(answer, Answer::Lost(_)) {
                sandbox.take_down_unknown(&pending.record(), pending.create());
            }
            sandbox.undo(answer.result().map(|done| done.warnings), pending.id());
            Err(complete(sandbox, &pending, error))
        })
    }

    /// Deletes, without hooks, the remains of a container whose creation failed.
    fn take_down_unknown(&mut self, record: &RuntimeRecord, create: oci::Create<'_>) {
        if let Err(leftover) = oci::take_down(create.id, create.bundle, record) {
            self.log.warn(format_args!("take down container {}: {}", create.id, leftover.chain()));
        }
    }

    /// Logs errors of deleting a container whose creation failed.
    fn undo(&mut self, deleted: Result<Vec<String>>, id: &str) {
        for words in deleted.unwrap_or_else(|error| vec![error.chain()]) {
            self.log.warn(format_args!("take down container {id}: {words}"));
        }
    }

    /// Adds a container to the sandbox. Returns its key.
    pub(super) fn add_container(
        &mut self,
        pending: &PendingCreate,
        oci: Oci,
        stage: Stage,
        stdio: Inside,
    ) -> u32 {
        let init = self.add_process(Process {
            container: pending.id().to_owned(),
            exec_id: String::new(),
            stage,
            config: pending.config.clone(),
            stdio,
            waiting: Vec::new(),
        });
        let key = self.key();
        let container = Container {
            id: pending.id().to_owned(),
            key,
            bundle: pending.bundle.clone(),
            owns_pids: false,
            waits_for_others: pending.waits_for_others,
            oci,
            init,
            execs: BTreeMap::new(),
            paused: false,
            rootfs_mounted: pending.has_rootfs(),
            oom: None,
            oom_seen: linux::cgroup::Oom::default(),
            exit_held: false,
            io_owner: (pending.options.io_uid, pending.options.io_gid),
        };
        self.publisher.open_journal(JournalKey(key), &container.bundle, &mut self.log);
        self.containers.insert(pending.id().to_owned(), container);
        key
    }

    /// Watches a container that has processes for OOM events.
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

    /// Runs work in the host's namespaces, as for log drivers, which are the host's programs and not the pod's.
    pub(super) fn on_host<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        match &self.pod {
            Some(pod) => pod.on_host(work),
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

    pub(super) fn add_process(&mut self, process: Process) -> ProcessKey {
        let key = ProcessKey(self.key());
        self.processes.insert(key, process);
        for stream in Stream::ALL {
            self.advance_copy(key, stream);
        }
        key
    }
}

//! Containers and further processes on their way: created, added, started.
//!
//! Whatever fails on the way, nothing runs that nobody knows of.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use api::shim::events::{self, topic};
use api::shim::runc;
use api::shim::task;
use linux::cgroup::OomWatch;
use linux::process::PidFd;
use linux::signal::Signal;
use prost::Message;
use types::{Context, Error, ErrorKind, Result};

use super::jobs::WithStreams;
use super::{Sandbox, options, wait_response};
use crate::container::Container;
use crate::oci::{self, Created, Executed, Oci};
use crate::poll::{Interest, Source};
use crate::process::{Exit, Process, ProcessKey, Stage};
use crate::publisher::JournalKey;
use crate::record::{self, RuntimeRecord};
use crate::rootfs;
use crate::service::{Outcome, ReplyTo, answer};
use crate::stdio::open::{Inside, Outside, Owner, Streams};
use crate::stdio::{StdioConfig, Stream};
use crate::worker::{Answer, Done, Worker};

/// A container that was asked for.
pub(crate) struct Birth {
    pub(super) request: task::CreateTaskRequest,
    pub(super) options: runc::Options,
    pub(super) config: StdioConfig,
    pub(super) bundle: PathBuf,
    /// The runtime's state directory.
    pub(super) root: PathBuf,
    pub(super) waits_for_others: bool,
}

/// Joins the streams of a first process to it, and puts on disk what must be there before anybody hears of it.
pub(super) fn settle(birth: &Birth, streams: Streams, created: &mut Created) -> Result<Inside> {
    let stdio = streams.join(created.console.take())?;
    record::reserve(&birth.bundle, record::EXIT)?;
    record::write_bytes(
        &birth.bundle,
        record::INIT_PID,
        created.pid.as_raw_nonzero().to_string().as_bytes(),
    )?;
    Ok(stdio)
}

impl Birth {
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
        let birth = Birth {
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
        match self.prepare_birth(&birth) {
            Ok(outside) => {
                let id = birth.id().to_owned();
                let begin: WithStreams =
                    Box::new(|sandbox, outside, reply| sandbox.begin_birth(birth, outside, reply));
                self.when_read(&id, None, outside, reply, begin)
            }
            Err(error) => Err(self.stillborn(birth.id(), &birth.bundle, birth.has_rootfs(), error)),
        }
    }

    /// Takes down what was made for a container that does not come to be.
    fn stillborn(&mut self, id: &str, bundle: &Path, has_rootfs: bool, error: Error) -> Error {
        if has_rootfs && let Err(leftover) = rootfs::unmount(bundle) {
            self.log.warn(leftover.chain());
        }
        error.context(format!("create container {id}"))
    }

    fn prepare_birth(&self, birth: &Birth) -> Result<Outside> {
        oci::look_for(&birth.options)?;
        // Before anything is made that somebody may have to take down.
        record::write(&birth.bundle, record::RUNTIME, &birth.record())?;
        rootfs::mount(&birth.bundle, &birth.request.rootfs)?;
        self.at_home(|| Outside::open(&birth.config, birth.owner(&self.namespace)))
    }

    fn begin_birth(&mut self, birth: Birth, outside: Result<Outside>, reply: ReplyTo) -> Result<Outcome> {
        let (id, bundle, has_rootfs) = (birth.id().to_owned(), birth.bundle.clone(), birth.has_rootfs());
        outside
            .and_then(|outside| self.try_birth(birth, outside, reply))
            .map_err(|error| self.stillborn(&id, &bundle, has_rootfs, error))
    }

    fn try_birth(&mut self, birth: Birth, outside: Outside, reply: ReplyTo) -> Result<Outcome> {
        if !birth.request.checkpoint.is_empty() {
            self.add_frozen(birth, outside)?;
            return answer(Ok(task::CreateTaskResponse { pid: 0 }));
        }
        let namespace = self.namespace.clone();
        let owner = birth.owner(&namespace);
        let (ends, streams) = outside.split(birth.config.terminal, owner)?;
        if !birth.waits_for_others {
            let created = Oci::create(birth.create(), ends.into())?;
            return self.finish_birth(birth, streams, created, reply);
        }
        let worker =
            Worker::begin_process(ends, |stdio| Oci::create(birth.create(), stdio).map(Created::into_done))?;
        let id = birth.id().to_owned();
        self.begin_step(&id.clone(), None, worker, reply, move |sandbox, answer, reply| {
            let (bundle, has_rootfs) = (birth.bundle.clone(), birth.has_rootfs());
            let made = sandbox.take_created(&birth.record(), birth.create(), answer);
            let born = made.and_then(|created| sandbox.finish_birth(birth, streams, created, reply));
            born.map_err(|error| sandbox.stillborn(&id, &bundle, has_rootfs, error))
        })
    }

    /// The container that a worker made, or was at when it got lost.
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

    fn finish_birth(
        &mut self,
        birth: Birth,
        streams: Streams,
        mut created: Created,
        reply: ReplyTo,
    ) -> Result<Outcome> {
        let id = birth.id();
        for warning in &created.warnings {
            self.log.warn(format_args!("container {id}: {warning}"));
        }
        let pid = created.pid.as_raw_nonzero().get() as u32;
        let stdio = match settle(&birth, streams, &mut created) {
            Ok(stdio) => stdio,
            Err(error) => {
                return self.take_back(birth, created.oci, error, reply, |sandbox, birth, error| {
                    sandbox.stillborn(birth.id(), &birth.bundle, birth.has_rootfs(), error)
                });
            }
        };
        let stage = Stage::Created { pid: created.pid };
        let key = self.add_container(&birth, created.oci, stage, stdio);
        self.watch(id, key, created.owns_pids)?;
        self.publish_create(&birth.request, key, pid);
        answer(Ok(task::CreateTaskResponse { pid }))
    }

    /// Takes down a container that nobody gets to know, because of `error`, to which `complete` is applied if that is
    /// told later.
    pub(super) fn take_back(
        &mut self,
        birth: Birth,
        mut oci: Oci,
        error: Error,
        reply: ReplyTo,
        complete: fn(&mut Sandbox, &Birth, Error) -> Error,
    ) -> Result<Outcome> {
        if !birth.waits_for_others {
            self.undo(oci.delete(false), birth.id());
            return Err(error);
        }
        // Its hooks are run, and may wait for as long as they like.
        let work = || Ok(Done { warnings: oci.delete(true)?, ..Done::default() });
        let worker =
            Worker::begin(work).inspect_err(|_| self.take_down_unknown(&birth.record(), birth.create()))?;
        let id = birth.id().to_owned();
        self.begin_step(&id, None, worker, reply, move |sandbox, answer, _| {
            if matches!(answer, Answer::Lost(_)) {
                sandbox.take_down_unknown(&birth.record(), birth.create());
            }
            sandbox.undo(answer.result().map(|done| done.warnings), birth.id());
            Err(complete(sandbox, &birth, error))
        })
    }

    /// Takes down, without hooks, what is left of a container that nobody gets to know.
    fn take_down_unknown(&mut self, record: &RuntimeRecord, create: oci::Create<'_>) {
        if let Err(leftover) = oci::take_down(create.id, create.bundle, record) {
            self.log.warn(format_args!("take down container {}: {}", create.id, leftover.chain()));
        }
    }

    /// Says what went wrong when a container was taken down that nobody got to know.
    fn undo(&mut self, deleted: Result<Vec<String>>, id: &str) {
        for words in deleted.unwrap_or_else(|error| vec![error.chain()]) {
            self.log.warn(format_args!("take down container {id}: {words}"));
        }
    }

    /// Puts a container among the others. Answers with its key.
    pub(super) fn add_container(&mut self, birth: &Birth, oci: Oci, stage: Stage, stdio: Inside) -> u32 {
        let init = self.add_process(Process {
            container: birth.id().to_owned(),
            exec_id: String::new(),
            stage,
            config: birth.config.clone(),
            stdio,
            waiting: Vec::new(),
        });
        let key = self.key();
        let container = Container {
            id: birth.id().to_owned(),
            key,
            bundle: birth.bundle.clone(),
            owns_pids: false,
            waits_for_others: birth.waits_for_others,
            oci,
            init,
            execs: BTreeMap::new(),
            paused: false,
            rootfs_mounted: birth.has_rootfs(),
            oom: None,
            oom_seen: linux::cgroup::Oom::default(),
            exit_held: false,
            io_owner: (birth.options.io_uid, birth.options.io_gid),
        };
        self.publisher.open_journal(JournalKey(key), &container.bundle, &mut self.log);
        self.containers.insert(birth.id().to_owned(), container);
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

    pub(crate) fn start(&mut self, request: task::StartRequest, reply: ReplyTo) -> Result<Outcome> {
        let key = self.find(&request.id, &request.exec_id)?;
        if request.exec_id.is_empty() {
            return self.start_init(&request.id, key, reply);
        }
        match self.prepare_exec(&request, key) {
            Ok(outside) => {
                // Who asks for its end from here on asks about this try.
                if let Stage::Added { failed, .. } = &mut self.process_mut(key)?.stage {
                    *failed = false;
                }
                let id = request.id.clone();
                let begin: WithStreams =
                    Box::new(move |sandbox, outside, reply| sandbox.begin_exec(request, key, outside, reply));
                self.when_read(&id, Some(key), outside, reply, begin)
            }
            Err(error) => Err(self.exec_failed(&request, error)),
        }
    }

    fn start_init(&mut self, id: &str, key: ProcessKey, reply: ReplyTo) -> Result<Outcome> {
        if matches!(self.process(key)?.stage, Stage::Frozen) {
            return self.bring_back(id, key, reply);
        }
        if !matches!(self.process(key)?.stage, Stage::Created { .. }) {
            return Err(Error::failed_precondition(format!("container {id} was started before")));
        }
        let container = self.container_mut(id)?;
        if !container.waits_for_others {
            let started = container.oci.start();
            return answer(self.finish_start(id, key, started));
        }
        let worker = Worker::begin(|| container.oci.start().map(|()| Done::default()))?;
        let about = id.to_owned();
        self.begin_job(id, None, worker, reply, move |sandbox, answer| {
            if matches!(answer, Answer::Lost(_)) {
                // It may run, half started.
                let killed =
                    sandbox.container_mut(&about).and_then(|container| container.oci.kill(Signal::KILL));
                sandbox.note_late_kill(&about, killed);
            }
            sandbox.finish_start(&about, key, answer.result().map(drop))
        })
    }

    fn finish_start(
        &mut self,
        id: &str,
        key: ProcessKey,
        started: Result<()>,
    ) -> Result<task::StartResponse> {
        started.map_err(|error| error.context(format!("start container {id}")))?;
        let process = self.process_mut(key)?;
        // It may have ended while a worker waited for a hook.
        if let Stage::Created { pid } = process.stage {
            process.stage = Stage::Running { pid };
        }
        self.publish_start(id, key)
    }

    pub(super) fn publish_start(&mut self, id: &str, key: ProcessKey) -> Result<task::StartResponse> {
        let pid = self.process(key)?.pid_number();
        let container = self.container(id)?.key;
        self.publish(container, topic::START, &events::TaskStart { container_id: id.to_owned(), pid });
        Ok(task::StartResponse { pid })
    }

    fn prepare_exec(&self, request: &task::StartRequest, key: ProcessKey) -> Result<Outside> {
        self.check_init_lives(&request.id, "exec")?;
        let process = self.process(key)?;
        let Stage::Added { .. } = &process.stage else {
            return Err(Error::failed_precondition("the process was started before"));
        };
        let owner = self.container(&request.id)?.owner(&self.namespace);
        self.at_home(|| Outside::open(&process.config, owner))
    }

    fn begin_exec(
        &mut self,
        request: task::StartRequest,
        key: ProcessKey,
        outside: Result<Outside>,
        reply: ReplyTo,
    ) -> Result<Outcome> {
        let exec = request.clone();
        outside
            .and_then(|outside| self.try_exec(request, key, outside, reply))
            .map_err(|error| self.exec_failed(&exec, error))
    }

    fn try_exec(
        &mut self,
        request: task::StartRequest,
        key: ProcessKey,
        outside: Outside,
        reply: ReplyTo,
    ) -> Result<Outcome> {
        // It may have ended while somebody waited for a reader.
        self.check_init_lives(&request.id, "exec")?;
        let process = self.process(key)?;
        let Stage::Added { spec, .. } = &process.stage else {
            return Err(Error::failed_precondition("the process was started before"));
        };
        let spec = spec.clone();
        let owner = self.container(&request.id)?.owner(&self.namespace);
        let (ends, streams) = outside.split(process.config.terminal, owner)?;
        let container = self.container_mut(&request.id)?;
        let exec = oci::Exec { exec_id: &request.exec_id, spec: &spec };
        if !container.waits_for_others {
            let executed = container.oci.exec(exec, ends.into())?;
            return answer(self.finish_exec(&request, key, streams, executed));
        }
        let worker =
            Worker::begin_process(ends, |stdio| container.oci.exec(exec, stdio).map(Executed::into_done))?;
        self.begin_job(&request.id.clone(), Some(key), worker, reply, move |sandbox, answer| {
            if matches!(answer, Answer::Lost(_)) {
                sandbox.end_lost_exec(&request);
            }
            let executed = answer.result().and_then(Executed::from_done);
            executed
                .and_then(|executed| sandbox.finish_exec(&request, key, streams, executed))
                .map_err(|error| sandbox.exec_failed(&request, error))
        })
    }

    /// The words for a start that failed. Who waits for the end of a process that never was hears of it now, as by
    /// containerd's shim: clients wait before they start.
    fn exec_failed(&mut self, request: &task::StartRequest, error: Error) -> Error {
        if let Ok(key) = self.find(&request.id, &request.exec_id)
            && let Some(process) = self.processes.get_mut(&key)
            && let Stage::Added { failed, .. } = &mut process.stage
        {
            *failed = true;
            let waiting = std::mem::take(&mut process.waiting);
            let response = wait_response(Exit::NEVER).encode_to_vec();
            self.replies.extend(waiting.into_iter().map(|reply| (reply, Ok(response.clone()))));
        }
        error.context(format!("exec {} in container {}", request.exec_id, request.id))
    }

    /// Ends a further process that a worker may have started before it got lost.
    fn end_lost_exec(&mut self, request: &task::StartRequest) {
        let ended =
            self.container_mut(&request.id).and_then(|container| container.oci.end_exec(&request.exec_id));
        self.note_late_kill(&request.id, ended);
        // What another brings into the world is a stranger too, until that one tells of it.
        if !self.is_busy(&request.id) {
            let ended = self.end_strangers(&request.id);
            self.note_late_kill(&request.id, ended);
        }
    }

    /// Ends children of the shim in a container that it does not know of. Where the container has process numbers of its
    /// own, nobody's orphans but a lost worker's come from there to the shim.
    fn end_strangers(&self, id: &str) -> Result<()> {
        let container = self.container(id)?;
        if !container.owns_pids {
            return Ok(());
        }
        let known: Vec<u32> = self.processes.values().map(Process::pid_number).collect();
        for pid in container.oci.cgroup()?.processes()?.into_iter().filter(|pid| !known.contains(pid)) {
            match PidFd::open(pid) {
                // Nobody but the shim takes the number from one of its children.
                Ok(process) if is_our_child(pid) => process.kill()?,
                Ok(_) => {}
                Err(error) if error.is(ErrorKind::NotFound) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn finish_exec(
        &mut self,
        request: &task::StartRequest,
        key: ProcessKey,
        streams: Streams,
        mut executed: Executed,
    ) -> Result<task::StartResponse> {
        // Not reaped, so that the number is its own.
        let kill = || PidFd::open(oci::pid_number(executed.pid))?.kill();
        let joined = streams.join(executed.console.take());
        let stdio = joined.inspect_err(|_| {
            // Nobody would know of it. It may have ended already.
            let _gone = kill();
        })?;
        if self.container(&request.id)?.exit_held {
            // The container was ended while this was on its way into it.
            self.note_late_kill(&request.id, kill());
        }
        for warning in &executed.warnings {
            self.log.warn(format_args!("exec {} in container {}: {warning}", request.exec_id, request.id));
        }
        let process = self.process_mut(key)?;
        process.stage = Stage::Running { pid: executed.pid };
        process.stdio = stdio;
        let pid = process.pid_number();
        let container = self.container(&request.id)?.key;
        self.publish(
            container,
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
        Ok(task::StartResponse { pid })
    }

    pub(crate) fn exec(&mut self, request: task::ExecProcessRequest) -> Result<()> {
        types::ExecId::new(&request.exec_id)?;
        let container = self.container(&request.id)?;
        // As long as an end is not told it has not happened: what is added then is refused when it is to start.
        if !container.exit_held {
            self.check_init_lives(&request.id, "exec")?;
        }
        // As by containerd's shim. One that was added before is refused when it is to start.
        if container.paused {
            return Err(Error::failed_precondition(format!(
                "container {}: cannot exec in a paused container; resume it first",
                request.id
            )));
        }
        if container.execs.contains_key(&request.exec_id) {
            return Err(Error::already_exists(format!("container {}: id {}", request.id, request.exec_id)));
        }
        let spec = request.spec.ok_or_else(|| Error::invalid_argument("exec without a process spec"))?;
        // Here already, as by containerd's shim: nothing is left of a process that could never start.
        oci::process(&spec.value).map_err(|error| {
            error.context(format!("exec {} in container {}", request.exec_id, request.id))
        })?;
        let key = self.add_process(Process {
            container: request.id.clone(),
            exec_id: request.exec_id.clone(),
            stage: Stage::Added { spec: spec.value, failed: false },
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

/// Whether a process is a child of the shim, which nobody else reaps.
pub(super) fn is_our_child(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    parent.is_some_and(|parent| parent.trim() == std::process::id().to_string())
}

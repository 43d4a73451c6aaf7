//! Ends of processes: reaped, recorded on disk, published; and OOM reports.

use linux::signal::Signal;
use prost::Message;
use rustix::process::Pid;
use types::{ErrorKind, Timestamp};

use api::shim::events::{self, topic};

use super::{Sandbox, wait_response};
use crate::process::{Exit, Process, ProcessKey, Stage};
use crate::publisher::wire_time;
use crate::record::{self, ExitRecord};
use crate::stdio::Stream;

impl Sandbox {
    /// Reaps every child that has ended: processes of containers, and orphans.
    pub(crate) fn reap(&mut self) {
        let mut ended = Vec::new();
        while let Ok(Some((pid, status))) = rustix::process::wait(rustix::process::WaitOptions::NOHANG) {
            let status = match (status.exit_status(), status.terminating_signal()) {
                (Some(code), _) => code,
                (None, Some(signal)) => 128 + signal,
                (None, None) => continue,
            };
            let at = Timestamp::now();
            self.note_worker_end(pid.as_raw_nonzero().get().cast_unsigned());
            self.note_holder_end(pid.as_raw_nonzero().get().cast_unsigned());
            if self.living(pid).is_none() {
                // It may be the child of a worker that has reported and ended.
                self.advance_jobs();
            }
            if let Some(key) = self.living(pid) {
                ended.push((key, Exit { status: status as u32, at }));
            }
        }
        // Execs first, so that they do not hold up the first process's exit event.
        ended.sort_by_key(|(key, _)| {
            self.processes.get(key).is_some_and(|process| process.exec_id.is_empty())
        });
        for (key, exit) in ended {
            self.take_exit(key, exit);
        }
        self.finish_deletes();
    }

    fn living(&self, pid: Pid) -> Option<ProcessKey> {
        self.processes
            .iter()
            .find(|(_, process)| process.is_alive() && process.pid() == Some(pid))
            .map(|(key, _)| *key)
    }

    fn take_exit(&mut self, key: ProcessKey, exit: Exit) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            self.advance_copy(key, stream);
        }
        let Some(process) = self.processes.get_mut(&key) else { return };
        process.stage = Stage::Stopped { pid: process.pid(), exit };
        // Its input has no reader any more.
        process.stdio.stdin_held = None;
        process.stdio.copies[Stream::Stdin as usize] = None;
        let (id, is_init) = (process.container.clone(), process.exec_id.is_empty());
        if is_init {
            self.take_init_exit(&id, exit);
        } else {
            self.publish_exit(key);
        }
        self.release_held_exit(&id);
    }

    fn take_init_exit(&mut self, id: &str, exit: Exit) {
        self.take_oom(id);
        let Some(container) = self.containers.get_mut(id) else { return };
        container.exit_held = true;
        container.paused = false;
        if !container.owns_pids
            && let Err(error) = container.oci.kill_all(Signal::KILL)
            && !error.is(ErrorKind::NotFound)
        {
            self.log.warn(format_args!("end what container {id} left: {}", error.chain()));
        }
        let record = ExitRecord {
            version: 1,
            id: id.to_owned(),
            pid: self.processes.get(&container.init).map_or(0, Process::pid_number),
            status: exit.status,
            exited_at: exit.at,
            oom_killed: container.oom_seen.kills > 0,
            oom_kills: container.oom_seen.kills,
            oom_events: container.oom_seen.events,
        };
        if let Err(error) = record::write_reserved(&container.bundle, record::EXIT, &record) {
            self.log.warn(format_args!("container {id}: {}", error.chain()));
        }
    }

    /// Publishes the first process's exit, once all execs and jobs have ended.
    pub(super) fn release_held_exit(&mut self, id: &str) {
        if self.is_busy(id) {
            return;
        }
        let Some(container) = self.containers.get_mut(id) else { return };
        let alive = |key: &ProcessKey| self.processes.get(key).is_some_and(Process::is_alive);
        if container.exit_held && !container.execs.values().any(alive) {
            container.exit_held = false;
            let init = container.init;
            self.publish_exit(init);
        }
    }

    /// Publishes an exit, and answers the `Wait` calls for it.
    fn publish_exit(&mut self, key: ProcessKey) {
        let Some(process) = self.processes.get_mut(&key) else { return };
        let Some(exit) = process.exit() else { return };
        let response = wait_response(exit).encode_to_vec();
        let waiting = std::mem::take(&mut process.waiting);
        self.replies.extend(waiting.into_iter().map(|reply| (reply, Ok(response.clone()))));
        let Some(container) = self.containers.get(&process.container) else { return };
        let event = events::TaskExit {
            container_id: process.container.clone(),
            id: process.event_id().to_owned(),
            pid: process.pid_number(),
            exit_status: exit.status,
            exited_at: Some(wire_time(exit.at)),
        };
        let container = container.key;
        self.publish(container, topic::EXIT, &event);
    }

    /// The kernel reports that a container ran out of memory.
    pub(crate) fn oom(&mut self, key: u32) {
        let id = self.containers.values().find(|container| container.key == key);
        if let Some(id) = id.map(|container| container.id.clone()) {
            self.take_oom(&id);
        }
    }

    fn take_oom(&mut self, id: &str) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let Some(watch) = &mut container.oom else { return };
        match watch.take() {
            Ok(oom) => {
                container.oom_seen.events += oom.events;
                container.oom_seen.kills += oom.kills;
                let container = container.key;
                // A kill that is read later than its event is not published again: the event stood for it.
                if oom.events > 0 {
                    self.publish(container, topic::OOM, &events::TaskOom { container_id: id.to_owned() });
                }
            }
            Err(error) => {
                // It would be reported again and again.
                container.oom = None;
                self.log.warn(format_args!("container {id}: {}", error.chain()));
            }
        }
    }
}

//! The pod of a shim: `containerd.runtime.sandbox.v1.Sandbox`, without a root file system of its own.
//!
//! The shim itself is in the pod's namespaces, so that they are reachable by its pid (`/proc/PID/ns/…`), and a
//! container whose spec names no namespace of a kind is in the pod's. Namespaces that the shim cannot be in have a
//! holder, whose pid is reported instead ([`super::namespaces`]).
//!
//! ```text
//! none ──create──▶ created ──start──▶ ready ──stop──▶ stopped ──shutdown──▶ the shim ends
//!                     └───────────── stop ──────────────▲
//! ```
//!
//! Invariants
//! - A shim has one pod or none, from before its first container until after its last.
//! - While there is a pod, only `ShutdownSandbox` ends the shim.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use api::shim::sandbox as wire;
use api::shim::types::{Metric, Platform};
use linux::cgroup::Cgroup;
use linux::signal::Signal;
use prost::Message;
use types::spec::runtime::Spec;
use types::{Context, Error, ErrorKind, Result, SandboxId, Timestamp};

use super::Sandbox;
use super::holder::Holder;
use super::namespaces::Namespaces;
use crate::publisher::wire_time;
use crate::record::{self, HolderRecord, PodRecord};
use crate::service::{Outcome, ReplyTo};
use crate::stats;

pub(super) struct Pod {
    id: String,
    stage: Stage,
    created: Timestamp,
    namespaces: Namespaces,
    cgroup: Option<Cgroup>,
    /// Pending `WaitSandbox` calls.
    pub(super) waiting: Vec<ReplyTo>,
    stops: Vec<PendingStop>,
    /// The holder of its namespaces has ended.
    is_lost: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Created,
    Ready,
    Stopped { at: Timestamp },
}

/// A `StopSandbox` that waits for containers to end.
struct PendingStop {
    reply: ReplyTo,
    /// When they get SIGKILL; None afterwards.
    kill_at: Option<Instant>,
}

impl Pod {
    /// Runs work in the shim's original namespaces: for programs of the host.
    pub(super) fn on_host<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        self.namespaces.on_host(work)
    }

    /// The process whose namespaces are the pod's.
    fn pid(&self) -> u32 {
        self.namespaces.holder().map_or_else(std::process::id, Holder::pid)
    }

    fn stopped_at(&self) -> Option<Timestamp> {
        match self.stage {
            Stage::Stopped { at } => Some(at),
            Stage::Created | Stage::Ready => None,
        }
    }

    fn wait_response(at: Timestamp) -> Vec<u8> {
        wire::WaitSandboxResponse { exit_status: 0, exited_at: Some(wire_time(at)) }.encode_to_vec()
    }
}

/// Calls.
impl Sandbox {
    pub(crate) fn create_pod(
        &mut self,
        request: wire::CreateSandboxRequest,
    ) -> Result<wire::CreateSandboxResponse> {
        SandboxId::new(&request.sandbox_id)?;
        let id = request.sandbox_id.clone();
        if let Some(pod) = &self.pod {
            return Err(Error::already_exists(format!("sandbox {}: this shim has one already", pod.id)));
        }
        if self.closing || !self.containers.is_empty() || !self.jobs.is_empty() {
            return Err(Error::failed_precondition(format!(
                "sandbox {id}: this shim has containers, or is about to end; start another for the sandbox"
            )));
        }
        if !request.rootfs.is_empty() {
            return Err(Error::unimplemented(format!(
                "sandbox {id}: sandboxes of this shim have no root file system; create it without rootfs"
            )));
        }
        self.pod = Some(make(request).context(|| format!("create sandbox {id}"))?);
        Ok(wire::CreateSandboxResponse {})
    }

    pub(crate) fn start_pod(
        &mut self,
        request: &wire::StartSandboxRequest,
    ) -> Result<wire::StartSandboxResponse> {
        let pod = self.pod_mut(&request.sandbox_id)?;
        if pod.stage != Stage::Created {
            return Err(Error::failed_precondition(format!("sandbox {} was started before", pod.id)));
        }
        pod.stage = Stage::Ready;
        Ok(wire::StartSandboxResponse {
            pid: pod.pid(),
            created_at: Some(wire_time(pod.created)),
            spec: None,
        })
    }

    /// The platform of the pod's containers: the host's.
    pub(crate) fn pod_platform(&self, request: &wire::PlatformRequest) -> Result<wire::PlatformResponse> {
        self.pod(&request.sandbox_id)?;
        let host = types::Platform::host();
        let platform = Platform {
            os: host.os,
            architecture: host.architecture,
            variant: host.variant,
            ..Platform::default()
        };
        Ok(wire::PlatformResponse { platform: Some(platform) })
    }

    /// Stops the containers: SIGTERM, and SIGKILL after the request's timeout.
    pub(crate) fn stop_pod(&mut self, request: &wire::StopSandboxRequest, reply: ReplyTo) -> Result<Outcome> {
        let stopped = self.pod(&request.sandbox_id)?.stopped_at().is_some();
        if stopped {
            return Ok(Outcome::Now(wire::StopSandboxResponse {}.encode_to_vec()));
        }
        let patience = Duration::from_secs(request.timeout_secs.into());
        let signal = if patience.is_zero() { Signal::KILL } else { Signal::TERM };
        self.signal_all(signal);
        let kill_at = (!patience.is_zero()).then(|| Instant::now() + patience);
        self.pod_mut(&request.sandbox_id)?.stops.push(PendingStop { reply, kill_at });
        self.finish_stops();
        Ok(Outcome::Later)
    }

    pub(crate) fn wait_pod(&mut self, request: &wire::WaitSandboxRequest, reply: ReplyTo) -> Result<Outcome> {
        if let Some(at) = self.pod(&request.sandbox_id)?.stopped_at() {
            return Ok(Outcome::Now(Pod::wait_response(at)));
        }
        self.check_takes_wait()?;
        self.pod_mut(&request.sandbox_id)?.waiting.push(reply);
        Ok(Outcome::Later)
    }

    pub(crate) fn pod_status(
        &self,
        request: &wire::SandboxStatusRequest,
    ) -> Result<wire::SandboxStatusResponse> {
        let pod = self.pod(&request.sandbox_id)?;
        let info = if request.verbose { self.pod_info(pod) } else { BTreeMap::new() };
        Ok(wire::SandboxStatusResponse {
            sandbox_id: pod.id.clone(),
            pid: pod.pid(),
            state: if pod.stage == Stage::Ready { wire::READY } else { wire::NOT_READY }.to_owned(),
            info,
            created_at: Some(wire_time(pod.created)),
            exited_at: pod.stopped_at().map(wire_time),
            extra: None,
        })
    }

    fn pod_info(&self, pod: &Pod) -> BTreeMap<String, String> {
        let containers: Vec<&str> = self.containers.keys().map(String::as_str).collect();
        let namespaces: Vec<&str> = pod.namespaces.kinds().map(linux::ns::NsKind::name).collect();
        BTreeMap::from([
            ("containers".to_owned(), containers.join(" ")),
            ("namespaces".to_owned(), namespaces.join(" ")),
        ])
    }

    pub(crate) fn ping_pod(&self, request: &wire::PingRequest) -> Result<wire::PingResponse> {
        self.pod(&request.sandbox_id).map(|_| wire::PingResponse {})
    }

    /// Ends the pod, and the shim.
    pub(crate) fn shutdown_pod(
        &mut self,
        request: &wire::ShutdownSandboxRequest,
    ) -> Result<wire::ShutdownSandboxResponse> {
        self.pod(&request.sandbox_id)?;
        if !self.containers.is_empty() || !self.jobs.is_empty() {
            let left: Vec<&str> =
                self.containers.keys().map(String::as_str).chain(self.being_created()).collect();
            return Err(Error::failed_precondition(format!(
                "sandbox {} has containers: {}; delete their tasks first",
                request.sandbox_id,
                left.join(", ")
            )));
        }
        let Some(pod) = self.pod.take() else { return Ok(wire::ShutdownSandboxResponse {}) };
        if let Some(Err(error)) = pod.cgroup.as_ref().map(Cgroup::delete) {
            self.log.warn(format_args!("end sandbox {}: {}", pod.id, error.chain()));
        }
        let ended = Pod::wait_response(pod.stopped_at().unwrap_or_else(Timestamp::now));
        self.replies.extend(pod.waiting.into_iter().map(|reply| (reply, Ok(ended.clone()))));
        let stopped = wire::StopSandboxResponse {}.encode_to_vec();
        self.replies.extend(pod.stops.into_iter().map(|stop| (stop.reply, Ok(stopped.clone()))));
        self.closing = true;
        Ok(wire::ShutdownSandboxResponse {})
    }

    pub(crate) fn pod_metrics(
        &self,
        request: &wire::SandboxMetricsRequest,
    ) -> Result<wire::SandboxMetricsResponse> {
        let pod = self.pod(&request.sandbox_id)?;
        let Some(cgroup) = &pod.cgroup else {
            return Err(Error::unimplemented(format!(
                "sandbox {} has no cgroup to measure: its spec has no linux.cgroupsPath",
                pod.id
            )));
        };
        let figures = cgroup.stats().context(|| format!("measure sandbox {}", pod.id))?;
        let metrics = Metric {
            timestamp: Some(wire_time(Timestamp::now())),
            id: pod.id.clone(),
            data: Some(stats::pack(&figures)),
        };
        Ok(wire::SandboxMetricsResponse { metrics: Some(metrics) })
    }
}

/// Internals of the pod.
impl Sandbox {
    /// Checks that the pod is ready, and that the container is in the pod's user namespace if there is one.
    pub(super) fn check_pod_takes(&self, bundle: &Path) -> Result<()> {
        match &self.pod {
            Some(pod) if pod.stage != Stage::Ready => {
                Err(Error::failed_precondition(format!("sandbox {} is not running", pod.id)))
            }
            Some(pod) if !pod.stops.is_empty() || pod.is_lost => {
                Err(Error::failed_precondition(format!("sandbox {} is being stopped", pod.id)))
            }
            Some(pod) if pod.namespaces.has_users() && read_spec(bundle)?.namespace("user").is_none() => {
                Err(Error::failed_precondition(format!(
                    "sandbox {} has a user namespace, and the container's spec none; it is /proc/{}/ns/user",
                    pod.id,
                    pod.pid()
                )))
            }
            _ => Ok(()),
        }
    }

    /// Answers stops whose containers have ended, and kills containers whose timeout is over.
    pub(crate) fn finish_stops(&mut self) {
        let now = Instant::now();
        let Some(pod) = &mut self.pod else { return };
        let mut kill = false;
        for stop in &mut pod.stops {
            kill |= stop.kill_at.take_if(|at| now >= *at).is_some();
        }
        if pod.stops.is_empty() && !pod.is_lost || pod.stopped_at().is_some() {
            return;
        }
        if kill {
            self.signal_all(Signal::KILL);
        }
        let over = |container: &crate::container::Container| {
            self.processes.get(&container.init).is_none_or(|init| self.is_over(init))
        };
        if self.jobs.is_empty() && self.containers.values().all(over) {
            self.end_pod();
        }
    }

    /// A child was reaped. Without the holder of its namespaces the pod ends.
    pub(super) fn note_holder_end(&mut self, pid: u32) {
        let Some(pod) = &mut self.pod else { return };
        if pod.namespaces.holder().is_some_and(|holder| holder.pid() == pid) {
            pod.is_lost = true;
            self.log.warn(format_args!("sandbox {}: the holder of its namespaces was ended", pod.id));
            self.signal_all(Signal::KILL);
            self.finish_stops();
        }
    }

    fn end_pod(&mut self) {
        let Some(pod) = &mut self.pod else { return };
        let at = Timestamp::now();
        pod.stage = Stage::Stopped { at };
        let stopped = wire::StopSandboxResponse {}.encode_to_vec();
        let stops = std::mem::take(&mut pod.stops);
        self.replies.extend(stops.into_iter().map(|stop| (stop.reply, Ok(stopped.clone()))));
        let ended = Pod::wait_response(at);
        let waiting = std::mem::take(&mut pod.waiting);
        self.replies.extend(waiting.into_iter().map(|reply| (reply, Ok(ended.clone()))));
    }

    /// When [`Sandbox::finish_stops`] has to be called again.
    pub(super) fn stop_deadline(&self) -> Option<Instant> {
        self.pod.iter().flat_map(|pod| &pod.stops).filter_map(|stop| stop.kill_at).min()
    }

    fn signal_all(&mut self, signal: Signal) {
        if signal == Signal::KILL {
            self.kill_jobs(|_| true);
        }
        for container in self.containers.values_mut() {
            let alive = self.processes.get(&container.init).is_some_and(crate::process::Process::is_alive);
            if alive
                && let Err(error) = container.oci.kill(signal)
                && !error.is(ErrorKind::NotFound)
            {
                self.log.warn(format_args!("stop container {}: {}", container.id, error.chain()));
            }
        }
    }

    fn pod(&self, id: &str) -> Result<&Pod> {
        self.pod.as_ref().filter(|pod| pod.id == id).ok_or_else(|| no_pod(id))
    }

    fn pod_mut(&mut self, id: &str) -> Result<&mut Pod> {
        self.pod.as_mut().filter(|pod| pod.id == id).ok_or_else(|| no_pod(id))
    }
}

fn no_pod(id: &str) -> Error {
    Error::not_found(format!("sandbox {id} does not exist"))
}

/// Makes the pod's cgroup and namespaces from its spec.
fn make(request: wire::CreateSandboxRequest) -> Result<Pod> {
    let bundle = Path::new(&request.bundle_path);
    let spec = read_spec(bundle)?;
    let cgroup = make_cgroup(bundle, &request.sandbox_id, &spec)?;
    let entered = Namespaces::enter(&spec, &request.netns_path, bundle).and_then(|namespaces| {
        match record_holder(bundle, &request.sandbox_id, cgroup.as_ref(), &namespaces) {
            Ok(()) => Ok(namespaces),
            Err(error) => namespaces.leave().and(Err(error)),
        }
    });
    let namespaces = entered.inspect_err(|_| {
        // The first error is reported.
        let _left = cgroup.as_ref().map(Cgroup::delete);
    })?;
    Ok(Pod {
        id: request.sandbox_id,
        stage: Stage::Created,
        created: Timestamp::now(),
        namespaces,
        cgroup,
        waiting: Vec::new(),
        stops: Vec::new(),
        is_lost: false,
    })
}

/// Records the holder, before it may outlive the shim.
fn record_holder(bundle: &Path, id: &str, cgroup: Option<&Cgroup>, namespaces: &Namespaces) -> Result<()> {
    let Some(holder) = namespaces.holder() else { return Ok(()) };
    let record = PodRecord {
        version: 1,
        id: id.to_owned(),
        cgroup: cgroup.map(Cgroup::locations).unwrap_or_default(),
        holder: Some(HolderRecord::of(holder.pid())?),
    };
    record::write(bundle, record::POD, &record)?;
    holder.release()
}

/// The sandbox's spec, which is optional.
fn read_spec(bundle: &Path) -> Result<Spec> {
    let path = bundle.join("config.json");
    let text = match std::fs::read(&path) {
        Ok(text) if !text.is_empty() => text,
        Ok(_) => return Ok(Spec::default()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Spec::default()),
        Err(error) => return Err(error).context(|| format!("read {}", path.display())),
    };
    serde_json::from_slice(&text)
        .map_err(|error| Error::invalid_argument("the sandbox's spec is not an OCI spec").with_source(error))
}

fn make_cgroup(bundle: &Path, id: &str, spec: &Spec) -> Result<Option<Cgroup>> {
    let Some(linux) = spec.linux.as_ref().filter(|linux| !linux.cgroups_path.is_empty()) else {
        return Ok(None);
    };
    if !linux.cgroups_path.starts_with('/') {
        return Err(Error::invalid_argument(format!(
            "linux.cgroupsPath {:?}: the cgroup of a sandbox has an absolute path",
            linux.cgroups_path
        )));
    }
    let cgroup = Cgroup::create(&linux.cgroups_path)?;
    let record = PodRecord { version: 1, id: id.to_owned(), cgroup: cgroup.locations(), holder: None };
    let made = record::write(bundle, record::POD, &record)
        .and_then(|()| linux.resources.as_ref().map_or(Ok(()), |resources| cgroup.apply(resources)));
    match made {
        Ok(()) => Ok(Some(cgroup)),
        Err(error) => {
            // The first error is reported.
            let _left = cgroup.delete();
            Err(error)
        }
    }
}

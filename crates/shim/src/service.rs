//! Dispatch of calls: the task API, the sandbox API, and `Attach`, which is Hoist's own. Versions 2 and 3 of the task
//! API differ in the service's name only.

use std::time::Instant;

use api::shim::task::{SERVICE_V2, SERVICE_V3};
use api::shim::{attach, sandbox};
use prost::Message;
use ttrpc::{Request, StreamId};
use types::Result;

use crate::sandbox::Sandbox;

/// The address of a call's response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReplyTo {
    pub connection: u32,
    pub stream: StreamId,
    /// The caller's deadline.
    pub until: Option<Instant>,
}

/// A response, now or later. Later ones are in [`Sandbox::take_replies`].
pub(crate) enum Outcome {
    Now(Vec<u8>),
    Later,
}

/// Executes one call.
pub(crate) fn call(sandbox: &mut Sandbox, request: &Request, reply: ReplyTo) -> Result<Outcome> {
    match request.service.as_str() {
        SERVICE_V2 | SERVICE_V3 => call_task(sandbox, request, reply),
        sandbox::SERVICE => call_sandbox(sandbox, request, reply),
        attach::SERVICE if request.method == "Attach" => answer(sandbox.attach(&request.read()?)),
        attach::SERVICE => Err(request.unknown_method()),
        _ => Err(request.unknown_service()),
    }
}

fn call_task(sandbox: &mut Sandbox, request: &Request, reply: ReplyTo) -> Result<Outcome> {
    if sandbox.defers(request, reply) {
        return Ok(Outcome::Later);
    }
    match request.method.as_str() {
        "State" => answer(sandbox.state(&request.read()?)),
        "Create" => sandbox.create(request.read()?, reply),
        "Start" => sandbox.start(request.read()?, reply),
        "Delete" => sandbox.delete(&request.read()?, reply),
        "Pids" => answer(sandbox.pids(&request.read()?)),
        "Pause" => answer(sandbox.pause(&request.read()?)),
        "Resume" => answer(sandbox.resume(&request.read()?)),
        "Checkpoint" => sandbox.checkpoint(request.read()?, reply),
        "Kill" => answer(sandbox.kill(&request.read()?)),
        "Exec" => answer(sandbox.exec(request.read()?)),
        "ResizePty" => answer(sandbox.resize_pty(&request.read()?)),
        "CloseIO" => answer(sandbox.close_io(&request.read()?)),
        "Update" => answer(sandbox.update(&request.read()?)),
        "Wait" => sandbox.wait(&request.read()?, reply),
        "Stats" => answer(sandbox.stats(&request.read()?)),
        "Connect" => answer(sandbox.connect(&request.read()?)),
        "Shutdown" => answer(sandbox.shutdown(&request.read()?)),
        _ => Err(request.unknown_method()),
    }
}

fn call_sandbox(sandbox: &mut Sandbox, request: &Request, reply: ReplyTo) -> Result<Outcome> {
    match request.method.as_str() {
        "CreateSandbox" => answer(sandbox.create_pod(request.read()?)),
        "StartSandbox" => answer(sandbox.start_pod(&request.read()?)),
        "Platform" => answer(sandbox.pod_platform(&request.read()?)),
        "StopSandbox" => sandbox.stop_pod(&request.read()?, reply),
        "WaitSandbox" => sandbox.wait_pod(&request.read()?, reply),
        "SandboxStatus" => answer(sandbox.pod_status(&request.read()?)),
        "PingSandbox" => answer(sandbox.ping_pod(&request.read()?)),
        "ShutdownSandbox" => answer(sandbox.shutdown_pod(&request.read()?)),
        "SandboxMetrics" => answer(sandbox.pod_metrics(&request.read()?)),
        _ => Err(request.unknown_method()),
    }
}

pub(crate) fn answer<M: Message>(outcome: Result<M>) -> Result<Outcome> {
    outcome.map(|message| Outcome::Now(message.encode_to_vec()))
}

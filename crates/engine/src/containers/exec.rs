//! Exec: additional processes in a running container, and the terminal and stdin of any of its processes.

use std::os::fd::OwnedFd;

use api::engine::Exec;
use metadata::Container;
use serde_json::{Value, json};
use task::{Io, TerminalSize};
use types::spec::runtime::{Process, Spec};
use types::{Error, ExecId, Opaque, Result};

use super::once;
use crate::names::short;
use crate::record::Extension;
use crate::{Engine, spec, users};

/// containerd's type URL of a process (`typeurl` of a plain Go struct: the value is JSON).
pub(crate) const PROCESS_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

impl Engine {
    /// Starts an additional process in a running container.
    pub async fn exec(&self, exec: Exec) -> Result<Value> {
        let text = exec.id.clone();
        let container = self.blocking(move |engine| engine.find(&text)).await?;
        let task = self.running(&container.id)?;
        let wanted = exec.clone();
        let record = container.clone();
        let process = match exec.user.as_deref() {
            None | Some("") => None,
            // /etc/passwd is read through /proc/PID/root: two overlayfs mounts must not share an upper directory.
            Some(_) => self.root_of_task(&task, short(&container.id)).await?,
        };
        let (process, root) = process.unzip();
        let described = self.blocking(move |engine| engine.exec_process(&record, root, &wanted)).await?;
        drop(process);
        let id = ExecId::new(linux::random::hex(16)?)?;
        let io = Io {
            stdin: once(&exec.streams.stdin),
            stdout: once(&exec.streams.stdout),
            stderr: once(&exec.streams.stderr),
            terminal: exec.tty,
        };
        let spec = Opaque {
            type_url: PROCESS_TYPE.into(),
            value: serde_json::to_vec(&described).expect("plain data"),
        };
        task.exec(&id, task::Exec { spec, io }).await?;
        if let Err(error) = task.start(Some(&id)).await {
            // A process that failed to start has left its record with the shim.
            let _ = task.delete_exec(&id).await;
            return Err(error);
        }
        if exec.detach {
            let own = id.clone();
            // No client will ask for its exit, and the shim keeps the exit code until the process is deleted.
            tokio::spawn(async move {
                if task.wait(Some(&own)).await.is_ok() {
                    let _ = task.delete_exec(&own).await;
                }
            });
        }
        Ok(json!({"Id": container.id.as_str(), "ExecId": id.as_str()}))
    }

    /// The OCI process: the container's own, changed as requested. Users are looked up in `root`, the container's root;
    /// without it none may be requested.
    pub(crate) fn exec_process(
        &self,
        container: &Container,
        root: Option<OwnedFd>,
        exec: &Exec,
    ) -> Result<Process> {
        let spec = container.spec.as_ref().map(|spec| serde_json::from_slice::<Spec>(&spec.value));
        let spec = spec.and_then(std::result::Result::ok);
        let mut process = spec
            .and_then(|spec| spec.process)
            .ok_or_else(|| Error::data_loss("the container's spec cannot be read"))?;
        process.args.clone_from(&exec.command);
        process.terminal = exec.tty;
        let create = Extension::of(container)?.create;
        if let Some(user) = exec.user.as_ref().filter(|user| !user.is_empty()) {
            let root = || root.ok_or_else(|| Error::failed_precondition("the container does not run"));
            let (user, home) = users::resolve(user, &create.extras.groups, root)?;
            process.user = user;
            let own_home = |entry: &String| entry.starts_with("HOME=");
            if !exec.env.iter().any(own_home) && !create.env.iter().any(own_home) {
                process.env.retain(|entry| !own_home(entry));
                process.env.push(format!("HOME={home}"));
            }
        }
        // After the user is resolved, so that the devices' groups are added whoever the user is.
        self.give_devices(&create, &mut process);
        process
            .env
            .retain(|entry| !exec.env.iter().any(|own| own.split('=').next() == entry.split('=').next()));
        process.env.extend(exec.env.iter().filter(|entry| entry.contains('=')).cloned());
        if exec.tty && !process.env.iter().any(|entry| entry.starts_with("TERM=")) {
            process.env.push("TERM=xterm".to_owned());
        }
        if let Some(workdir) = exec.workdir.as_ref().filter(|workdir| !workdir.is_empty()) {
            spec::check_working_directory(workdir)?;
            process.cwd.clone_from(workdir);
        }
        if exec.privileged {
            let all = linux::cap::CapSet::bounding().names();
            let sets = process.capabilities.get_or_insert_default();
            (sets.bounding, sets.effective, sets.permitted) = (all.clone(), all.clone(), all);
        }
        Ok(process)
    }

    /// Sets the terminal size of a container's first process or of an exec'd process.
    pub async fn resize(&self, text: &str, exec: Option<&str>, size: TerminalSize) -> Result<Value> {
        let text = text.to_owned();
        let container = self.blocking(move |engine| engine.find(&text)).await?;
        let exec = exec.map(ExecId::new).transpose()?;
        self.running(&container.id)?.resize(exec.as_ref(), size).await?;
        Ok(json!({}))
    }

    /// Closes stdin of a container's first process or of an exec'd process.
    pub async fn close_stdin(&self, text: &str, exec: Option<&str>) -> Result<Value> {
        let text = text.to_owned();
        let container = self.blocking(move |engine| engine.find(&text)).await?;
        let exec = exec.map(ExecId::new).transpose()?;
        self.running(&container.id)?.close_stdin(exec.as_ref()).await?;
        Ok(json!({}))
    }
}

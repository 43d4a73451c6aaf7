//! A sandbox controller in another process (`docs/extend/sandbox-controller.md`).

use api::grpc::introspection::PluginsRequest;
use api::grpc::introspection::introspection_client::IntrospectionClient;
use api::grpc::sandbox::controller::controller_client::ControllerClient;
use api::grpc::sandbox::controller::{
    ControllerPlatformRequest, ControllerShutdownRequest, ControllerStartRequest, ControllerStatusRequest,
    ControllerStopRequest, ControllerWaitRequest,
};
use tempfile::TempDir;
use testkit::{Daemon, is_root};
use tonic::Code;

use super::{Example, SilentPlugin, new_sandbox};
use crate::typed::{ask, code, events, on, topic};

#[test]
fn a_proxy_sandbox_controller_runs_sandboxes() {
    if !is_root("the daemon") {
        return;
    }
    let mut records = Example::new(env!("CARGO_BIN_EXE_example-sandboxer"));
    records.start(&[]);
    let daemon = Daemon::start_with(&[], &records.config("records", "sandbox"));
    on(&daemon, async |channel| {
        let mut told = events(&channel, &["/sandboxes"]).await;
        let mut controller = ControllerClient::new(channel.clone());
        let (id, name) = ("pod".to_owned(), "records".to_owned());
        let create = new_sandbox(&id, &name);
        controller.create(ask(create.clone())).await.unwrap();
        assert_eq!(code(controller.create(ask(create))).await, Code::AlreadyExists);
        assert_eq!(topic(&mut told).await, "/sandboxes/create");
        let start = ControllerStartRequest { sandbox_id: id.clone(), sandboxer: name.clone() };
        controller.start(ask(start)).await.unwrap();
        assert_eq!(topic(&mut told).await, "/sandboxes/start");
        let platform = ControllerPlatformRequest { sandbox_id: id.clone(), sandboxer: name.clone() };
        let platform = controller.platform(ask(platform)).await.unwrap().into_inner().platform.unwrap();
        assert_eq!(platform.architecture, "riscv64");
        let wait = ControllerWaitRequest { sandbox_id: id.clone(), sandboxer: name.clone() };
        let mut waiting = (controller.clone(), controller.clone(), controller.clone());
        let stop = ControllerStopRequest { sandbox_id: id.clone(), sandboxer: name.clone(), timeout_secs: 1 };
        let (first, second, stopped) = tokio::join!(
            waiting.0.wait(ask(wait.clone())),
            waiting.1.wait(ask(wait)),
            waiting.2.stop(ask(stop))
        );
        assert!(first.is_ok() && second.is_ok() && stopped.is_ok());
        assert_eq!(topic(&mut told).await, "/sandboxes/exit");
        let shutdown = ControllerShutdownRequest { sandbox_id: id, sandboxer: name };
        controller.shutdown(ask(shutdown.clone())).await.unwrap();
        assert_eq!(code(controller.shutdown(ask(shutdown))).await, Code::NotFound);

        let filters = vec!["id==records".into()];
        let mut introspection = IntrospectionClient::new(channel);
        let listed = introspection.plugins(ask(PluginsRequest { filters })).await.unwrap().into_inner();
        assert_eq!(listed.plugins[0].r#type, "io.containerd.sandbox.controller.v1");
        assert_eq!(listed.plugins[0].exports["address"], records.socket().display().to_string());
    });
}

/// The daemon's `Wait` call for each sandbox does not use up the calls that it makes to the plugin at a time.
#[test]
fn a_proxy_sandbox_controller_has_more_sandboxes_than_calls_may_wait() {
    if !is_root("the daemon") {
        return;
    }
    let mut records = Example::new(env!("CARGO_BIN_EXE_example-sandboxer"));
    records.start(&[]);
    let daemon = Daemon::start_with(&[], &records.config("records", "sandbox"));
    on(&daemon, async |channel| {
        let mut told = events(&channel, &["/sandboxes/exit"]).await;
        let mut controller = ControllerClient::new(channel.clone());
        let name = || "records".to_owned();
        let ids: Vec<String> = (0..70).map(|n| format!("pod{n}")).collect();
        for id in &ids {
            controller.create(ask(new_sandbox(id, "records"))).await.unwrap();
            let start = ControllerStartRequest { sandbox_id: id.clone(), sandboxer: name() };
            controller.start(ask(start)).await.unwrap();
        }
        for id in &ids {
            let stop = ControllerStopRequest { sandbox_id: id.clone(), sandboxer: name(), timeout_secs: 1 };
            controller.stop(ask(stop)).await.unwrap();
            assert_eq!(topic(&mut told).await, "/sandboxes/exit");
        }
    });
}

/// Answers to HTTP/2 pings do not extend the plugin's `timeout` for a lookup.
#[test]
fn a_sandbox_controller_that_only_answers_pings_times_out() {
    let dir = TempDir::with_prefix_in("hp-", "/var/tmp").expect("a temporary directory");
    let (socket, _calls) = SilentPlugin::start(dir.path(), "Controller/Status");
    let daemon = Daemon::start_with(
        &[],
        &format!(
            "[proxy_plugins.silent]\ntype = \"sandbox\"\naddress = \"{}\"\ntimeout = \"1s\"\n\n",
            socket.display()
        ),
    );
    on(&daemon, async |channel| {
        let mut controller = ControllerClient::new(channel);
        let status = ControllerStatusRequest {
            sandbox_id: "pod".into(),
            sandboxer: "silent".into(),
            ..ControllerStatusRequest::default()
        };
        let asked = code(controller.status(ask(status.clone())));
        let answer = tokio::time::timeout(testkit::DEADLINE, asked).await;
        assert_eq!(answer, Ok(Code::DeadlineExceeded));
        assert_eq!(code(controller.status(ask(status))).await, Code::Unavailable);
    });
}

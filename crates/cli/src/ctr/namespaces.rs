//! `ctr namespaces`.

use std::collections::BTreeMap;

use api::grpc::namespaces::namespaces_client::NamespacesClient;
use api::grpc::namespaces::{
    CreateNamespaceRequest, DeleteNamespaceRequest, GetNamespaceRequest, ListNamespacesRequest, Namespace,
    UpdateNamespaceRequest,
};
use client::Channel;
use prost_types::FieldMask;
use types::{ErrorKind, Result, UnlessGone};

use super::command::{Call, Command, Flag, shown};
use super::connection::{Answer, Connection, service};
use super::table;
use crate::output::said;

pub(super) const VERBS: &[Command] = &[
    Command::new("create|c", "<name> [<key>=<value>]", "create a namespace", &[], |call| {
        Box::pin(create(call))
    }),
    Command::new(
        "list|ls",
        "[flags]",
        "list namespaces",
        &[Flag::switch("quiet,q", "print only the names")],
        |call| Box::pin(list(call)),
    ),
    Command::new(
        "remove|rm",
        "[flags] <name> [<name>, ...]",
        "remove namespaces",
        &[Flag::switch("cgroup,c", "also remove their cgroups, which must be empty")],
        |call| Box::pin(remove(call)),
    ),
    Command::new("label", "<name> [<key>=<value>, ...]", "set and clear labels", &[], |call| {
        Box::pin(label(call))
    }),
];

async fn client(call: &Call) -> Result<NamespacesClient<Channel>> {
    let connection = call.connect().await?;
    Ok(service!(connection, namespaces::namespaces_client::NamespacesClient))
}

/// The labels of the connection's namespace; none if it does not exist.
pub(super) async fn labels(connection: &Connection) -> Result<BTreeMap<String, String>> {
    let mut client = service!(connection, namespaces::namespaces_client::NamespacesClient);
    let request = GetNamespaceRequest { name: connection.namespace.clone() };
    match client.get(request).await.answer() {
        Ok(found) => Ok(found.namespace.unwrap_or_default().labels),
        Err(error) if error.is(ErrorKind::NotFound) => Ok(BTreeMap::new()),
        Err(error) => Err(error),
    }
}

async fn create(call: Call) -> Result<u8> {
    let name = call.word(0, "namespace")?.to_owned();
    let namespace = Namespace { name, labels: Call::labels(&call.words()[1..]) };
    let request = CreateNamespaceRequest { namespace: Some(namespace) };
    client(&call).await?.create(request).await.answer()?;
    Ok(0)
}

async fn list(call: Call) -> Result<u8> {
    let listed = client(&call).await?.list(ListNamespacesRequest::default()).await.answer()?.namespaces;
    if call.is("quiet") {
        table::lines(listed.iter().map(|namespace| &namespace.name));
    } else {
        let rows: Vec<_> =
            listed.iter().map(|namespace| vec![namespace.name.clone(), shown(&namespace.labels)]).collect();
        table::print(&["NAME", "LABELS"], &rows);
    }
    Ok(0)
}

async fn remove(call: Call) -> Result<u8> {
    let mut client = client(&call).await?;
    let mut code = 0;
    for name in call.words_from(0, "namespace")? {
        let mut removed = client.delete(DeleteNamespaceRequest { name: name.clone() }).await.answer();
        if call.is("cgroup") && removed.is_ok() {
            removed = remove_cgroup(name);
        }
        match removed {
            Ok(()) => table::lines([name]),
            // As with containerd's, success: the namespace does not exist.
            Err(error) if error.is(ErrorKind::NotFound) => table::lines([name]),
            Err(error) => {
                eprintln!("ctr: unable to delete {name}: {}", said(&error));
                code = 1;
            }
        }
    }
    Ok(code)
}

/// Deletes the parent cgroup of the namespace's containers on this machine.
fn remove_cgroup(name: &str) -> Result<()> {
    let cgroup = linux::cgroup::Cgroup::open(&format!("/{name}")).unless_gone()?;
    cgroup.map_or(Ok(()), |cgroup| cgroup.delete())
}

async fn label(call: Call) -> Result<u8> {
    let name = call.word(0, "namespace")?.to_owned();
    let labels = Call::labels(&call.words()[1..]);
    let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
    let request = UpdateNamespaceRequest {
        namespace: Some(Namespace { name, labels }),
        update_mask: Some(FieldMask { paths }),
    };
    client(&call).await?.update(request).await.answer()?;
    Ok(0)
}

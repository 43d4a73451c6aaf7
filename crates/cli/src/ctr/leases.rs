//! `ctr leases`.

use std::time::Duration;

use api::grpc::leases::{CreateRequest, DeleteRequest, ListRequest};
use types::label::gc::EXPIRE;
use types::{Context, Result, Timestamp};

use super::command::{Call, Command, Flag, shown};
use super::connection::{Answer, Connection, present, service};
use super::table;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

pub(super) const VERBS: &[Command] = &[
    Command::new(
        "list|ls",
        "[flags] [<filter>, ...]",
        "list leases",
        &[Flag::switch("quiet,q", "print only the ids")],
        |call| Box::pin(list(call)),
    ),
    Command::new(
        "create",
        "[flags] [<label>=<value>, ...]",
        "create a lease",
        &[
            Flag::value("id", "its id; without it the daemon makes one"),
            Flag::value("expires,x", "how long it holds; 0 for ever [24h]"),
        ],
        |call| Box::pin(create(call)),
    ),
    Command::new(
        "delete|del|remove|rm",
        "[flags] <lease id> ...",
        "delete leases",
        &[Flag::switch("sync", "wait until what they held alone is gone")],
        |call| Box::pin(delete(call)),
    ),
];

async fn list(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    let request = connection.request(ListRequest { filters: call.words().to_vec() })?;
    let leases =
        service!(connection, leases::leases_client::LeasesClient).list(request).await.answer()?.leases;
    if call.is("quiet") {
        table::lines(leases.iter().map(|lease| &lease.id));
    } else {
        let rows: Vec<_> = leases
            .iter()
            .map(|lease| {
                let labels = if lease.labels.is_empty() { "-".to_owned() } else { shown(&lease.labels) };
                vec![lease.id.clone(), table::second(lease.created_at.as_ref()), labels]
            })
            .collect();
        table::print(&["ID", "CREATED AT", "LABELS"], &rows);
    }
    Ok(0)
}

async fn create(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    let mut labels = Call::labels(call.words());
    let life = call.duration("expires")?.unwrap_or(DAY);
    if !life.is_zero() {
        labels.insert(EXPIRE.to_owned(), Timestamp::now().plus(life).to_string());
    }
    let request = CreateRequest { id: call.value("id").unwrap_or_default().to_owned(), labels };
    let request = connection.request(request)?;
    let made = service!(connection, leases::leases_client::LeasesClient).create(request).await.answer()?;
    table::lines([present(made.lease, "lease")?.id]);
    Ok(0)
}

async fn delete(call: Call) -> Result<u8> {
    let connection = call.connect().await?;
    for id in call.words_from(0, "lease id")? {
        let request = connection.request(DeleteRequest { id: id.clone(), sync: call.is("sync") })?;
        let deleted =
            service!(connection, leases::leases_client::LeasesClient).delete(request).await.answer();
        deleted.context(|| format!("delete lease {id}"))?;
        table::lines([id]);
    }
    Ok(0)
}

/// Creates a lease that retains the objects of a multi-step command until they are referenced. It expires by itself if
/// the command is killed.
pub(super) async fn hold(connection: &Connection) -> Result<(Connection, String)> {
    let labels = [(EXPIRE.to_owned(), Timestamp::now().plus(DAY).to_string())].into();
    let request = connection.request(CreateRequest { id: String::new(), labels })?;
    let made = service!(connection, leases::leases_client::LeasesClient).create(request).await.answer()?;
    let id = present(made.lease, "lease")?.id;
    Ok((connection.with_lease(&id), id))
}

/// Deletes a lease, and waits for a garbage collection.
pub(super) async fn release_and_collect(connection: &Connection, id: String) -> Result<()> {
    let request = connection.request(DeleteRequest { id, sync: true })?;
    service!(connection, leases::leases_client::LeasesClient).delete(request).await.answer()
}

pub(super) async fn release(connection: &Connection, id: String) -> Result<()> {
    let request = connection.request(DeleteRequest { id, sync: false })?;
    service!(connection, leases::leases_client::LeasesClient).delete(request).await.answer()
}

//! `ctr version`.

use types::Result;

use super::command::{Call, Command};
use super::connection::{Answer, service};
use super::table::lines;

pub(super) const COMMAND: Command =
    Command::new("version", "", "versions of the client and of the daemon", &[], |call| {
        Box::pin(version(call))
    });

async fn version(call: Call) -> Result<u8> {
    let revision = format!("  Revision: {}", env!("CARGO_PKG_VERSION"));
    lines(["Client:", &format!("  Version:  {}", api::grpc::VERSION), &revision, ""]);
    let connection = call.connect().await?;
    lines(["Server:"]);
    let server = service!(connection, version::version_client::VersionClient).version(()).await.answer()?;
    let identity = service!(connection, introspection::introspection_client::IntrospectionClient);
    let identity = { identity }.server(()).await.answer()?;
    lines([
        format!("  Version:  {}", server.version),
        format!("  Revision: {}", server.revision),
        format!("  UUID: {}", identity.uuid),
    ]);
    Ok(0)
}

//! The nftables table, and the rules in it that do not belong to a single container.

use std::net::Ipv4Addr;

use linux::nft::{Batch, Expr, Hook, Nft};
use types::Result;

use crate::bridge::Subnet;

const RAW: &str = "raw";
pub(crate) const PREROUTING: &str = "prerouting";
const FORWARD: &str = "forward";
pub(crate) const OUTPUT: &str = "output";
const POSTROUTING: &str = "postrouting";

const LOOPBACK: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 0);

/// Number of rules in the chain `forward`; none of them belongs to a container.
const FORWARD_RULES: usize = 4;

/// Number of rules in the table while no port is published.
const COMMON_RULES: usize = 8;

/// Whether the table has rules that users added.
pub(crate) fn are_others_there(bridge: &str) -> Result<bool> {
    Ok(Nft::open()?.rules(bridge)?.len() > COMMON_RULES)
}

/// Whether our rules are complete. False if they were flushed, with or without the table, or an earlier version made
/// them.
pub(crate) fn are_there(bridge: &str) -> Result<bool> {
    // At least: users may add rules of their own.
    Ok(Nft::open()?.rules_in(bridge, FORWARD)?.len() >= FORWARD_RULES)
}

/// Recreates the table in one transaction, with the rules of containers that `publish` adds.
pub(crate) fn make(bridge: &str, subnet: Subnet, publish: impl FnOnce(&mut Batch)) -> Result<()> {
    let table = bridge;
    let mut batch = Batch::new();
    // Deleting a table that does not exist is an error, hence the first add.
    batch.add_table(table).delete_table(table).add_table(table);
    batch.add_chain(table, RAW, Hook::Raw);
    batch.add_chain(table, PREROUTING, Hook::Prerouting);
    batch.add_chain(table, FORWARD, Hook::Forward);
    batch.add_chain(table, OUTPUT, Hook::Output);
    batch.add_chain(table, POSTROUTING, Hook::Postrouting);
    let martian = [Expr::ArrivesBy(bridge.into()), Expr::DestinationIn(LOOPBACK, 8), Expr::Drop];
    batch.add_rule(table, RAW, &martian, b"");
    for rule in forward(bridge) {
        batch.add_rule(table, FORWARD, &rule, b"");
    }
    for rule in postrouting(bridge, subnet) {
        batch.add_rule(table, POSTROUTING, &rule, b"");
    }
    publish(&mut batch);
    Nft::open()?.apply(&format!("make nft table {table}"), batch)
}

pub(crate) fn remove(bridge: &str) -> Result<()> {
    let mut nft = Nft::open()?;
    if !nft.has_table(bridge)? {
        return Ok(());
    }
    let mut batch = Batch::new();
    batch.delete_table(bridge);
    nft.apply(&format!("delete nft table {bridge}"), batch)
}

/// This host forwards packets, so without these rules any machine with a route through it could reach every port of a
/// container. Packets that leave by other interfaces are not filtered.
fn forward(bridge: &str) -> [Vec<Expr>; FORWARD_RULES] {
    let inward = || Expr::LeavesBy(bridge.into());
    [
        vec![inward(), Expr::BeganBefore, Expr::Accept],
        vec![inward(), Expr::WasTranslated, Expr::Accept],
        vec![inward(), Expr::ArrivesBy(bridge.into()), Expr::Accept],
        vec![inward(), Expr::Drop],
    ]
}

fn postrouting(bridge: &str, subnet: Subnet) -> [Vec<Expr>; 3] {
    let inside = || Expr::SourceIn(subnet.network, subnet.len);
    let to_inside = Expr::DestinationIn(subnet.network, subnet.len);
    [
        vec![inside(), Expr::LeavesNotBy(bridge.into()), Expr::Masquerade],
        vec![Expr::SourceIn(LOOPBACK, 8), Expr::LeavesBy(bridge.into()), Expr::Masquerade],
        // Without masquerading, a container that calls a published port of this host would be answered directly by the
        // peer.
        vec![inside(), to_inside, Expr::WasTranslated, Expr::Masquerade],
    ]
}

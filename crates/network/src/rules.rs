//! The table of the packet filter, and the rules in it that do not belong to any one container.

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

/// How many rules the chain `forward` has; none of them belongs to a container.
const FORWARD_RULES: usize = 4;

/// How many rules the table has when no container has some.
const COMMON_RULES: usize = 8;

/// Whether the table has rules that people added.
pub(crate) fn are_others_there(bridge: &str) -> Result<bool> {
    Ok(Nft::open()?.rules(bridge)?.len() > COMMON_RULES)
}

/// False if somebody flushed them, with or without the table, or an earlier version made others.
pub(crate) fn are_there(bridge: &str) -> Result<bool> {
    // People may let through what else they like.
    Ok(Nft::open()?.rules_in(bridge, FORWARD)?.len() >= FORWARD_RULES)
}

/// Makes the table anew, with the rules of containers that `publish` adds, in one step.
pub(crate) fn make(bridge: &str, subnet: Subnet, publish: impl FnOnce(&mut Batch)) -> Result<()> {
    let table = bridge;
    let mut batch = Batch::new();
    // What is not there cannot be deleted.
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

/// This machine routes, so whoever knows a way here could call any port of a container. What else passes through is
/// the business of others.
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
        // A container that calls a published port of this machine would otherwise be answered directly.
        vec![inside(), to_inside, Expr::WasTranslated, Expr::Masquerade],
    ]
}

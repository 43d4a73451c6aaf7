//! The table of the packet filter, and the rules in it that do not belong to any one container.

use std::net::Ipv4Addr;

use linux::nft::{Batch, Expr, Hook, Nft};
use types::Result;

use crate::bridge::Subnet;

pub(crate) const RAW: &str = "raw";
pub(crate) const PREROUTING: &str = "prerouting";
pub(crate) const OUTPUT: &str = "output";
pub(crate) const POSTROUTING: &str = "postrouting";

const LOOPBACK: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 0);

/// How many rules the chain `postrouting` has; none of them belongs to a container.
const POSTROUTING_RULES: usize = 3;

/// False if somebody flushed them, with or without the table, or an earlier version made others.
pub(crate) fn are_there(bridge: &str) -> Result<bool> {
    Ok(Nft::open()?.rules_in(bridge, POSTROUTING)?.len() == POSTROUTING_RULES)
}

/// Makes the table anew, with the rules of containers that `publish` adds, in one step.
pub(crate) fn make(bridge: &str, subnet: Subnet, publish: impl FnOnce(&mut Batch)) -> Result<()> {
    let table = bridge;
    let mut batch = Batch::new();
    // What is not there cannot be deleted.
    batch.add_table(table).delete_table(table).add_table(table);
    batch.add_chain(table, RAW, Hook::Raw);
    batch.add_chain(table, PREROUTING, Hook::Prerouting);
    batch.add_chain(table, OUTPUT, Hook::Output);
    batch.add_chain(table, POSTROUTING, Hook::Postrouting);
    let martian = [Expr::ArrivesBy(bridge.into()), Expr::DestinationIn(LOOPBACK, 8), Expr::Drop];
    batch.add_rule(table, RAW, &martian, b"");
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

fn postrouting(bridge: &str, subnet: Subnet) -> [Vec<Expr>; POSTROUTING_RULES] {
    let inside = || Expr::SourceIn(subnet.network, subnet.len);
    let to_inside = Expr::DestinationIn(subnet.network, subnet.len);
    [
        vec![inside(), Expr::LeavesNotBy(bridge.into()), Expr::Masquerade],
        vec![Expr::SourceIn(LOOPBACK, 8), Expr::LeavesBy(bridge.into()), Expr::Masquerade],
        // A container that calls a published port of this machine would otherwise be answered directly.
        vec![inside(), to_inside, Expr::WasTranslated, Expr::Masquerade],
    ]
}

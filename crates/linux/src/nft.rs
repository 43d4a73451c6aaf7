//! Packet filter rules of nf_tables, over netlink (nft(8), `linux/netfilter/nf_tables.h`).
//!
//! ```text
//! Batch ──▶ [begin] newtable newchain newrule … delrule [end] ──▶ all of it, or nothing
//! ```
//!
//! Every change is a [`Batch`], which the kernel applies atomically. A rule may carry a note (user data), by which its
//! owner finds it again: [`Nft::rules`] returns handle and note of each.

use std::net::Ipv4Addr;

use types::{Error, ErrorKind, Result};

use crate::netlink::{Message, NLM_F_CREATE, NLM_F_DUMP, Protocol, Socket, attribute};

const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NFNL_SUBSYS_NFTABLES: u16 = 10;

const NFT_MSG_NEWTABLE: u16 = 0;
const NFT_MSG_GETTABLE: u16 = 1;
const NFT_MSG_DELTABLE: u16 = 2;
const NFT_MSG_NEWCHAIN: u16 = 3;
const NFT_MSG_NEWRULE: u16 = 6;
const NFT_MSG_GETRULE: u16 = 7;
const NFT_MSG_DELRULE: u16 = 8;

const NFTA_TABLE_NAME: u16 = 1;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_HANDLE: u16 = 3;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_RULE_USERDATA: u16 = 7;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;

const NLM_F_APPEND: u16 = 0x800;

const NFPROTO_UNSPEC: u8 = 0;
const NFPROTO_IPV4: u8 = 2;

/// The first two 16-byte registers, by which expressions pass values.
const REG_1: u32 = 1;
const REG_2: u32 = 2;

/// A netfilter hook, with the priority of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Incoming packets, before routing; destination NAT.
    Prerouting,
    /// Packets of local processes, before routing; destination NAT.
    Output,
    /// Outgoing packets; source NAT.
    Postrouting,
    /// Incoming packets, before connection tracking; for filters.
    Raw,
    /// Forwarded packets; for filters.
    Forward,
}

impl Hook {
    /// `NF_INET_*` and the priority that nft(8) calls `dstnat`, `srcnat`, `raw` and `filter`.
    fn numbers(self) -> (u32, i32) {
        match self {
            Hook::Prerouting => (0, -100),
            Hook::Output => (3, -100),
            Hook::Postrouting => (4, 100),
            Hook::Raw => (0, -300),
            Hook::Forward => (2, 0),
        }
    }
}

/// A transport protocol that has ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    Tcp,
    Udp,
}

impl Transport {
    /// The number in the IP header (`/etc/protocols`).
    pub fn number(self) -> u8 {
        match self {
            Transport::Tcp => 6,
            Transport::Udp => 17,
        }
    }
}

/// A condition or action of a rule. A rule is a list of them; the first condition that does not hold ends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expr {
    /// The packet's source is in this range.
    SourceIn(Ipv4Addr, u8),
    /// The packet's destination is in this range.
    DestinationIn(Ipv4Addr, u8),
    /// The destination is an address of this machine (`fib daddr type local`).
    DestinationIsLocal,
    /// The packet came in through this interface.
    ArrivesBy(String),
    /// The packet leaves through this interface.
    LeavesBy(String),
    /// The packet leaves through any other interface.
    LeavesNotBy(String),
    /// Transport protocol and destination port.
    Port(Transport, u16),
    /// The destination was translated before (`ct status dnat`).
    WasTranslated,
    /// The packet belongs to an existing flow, or is an error about one (`ct state established,related`).
    BeganBefore,
    /// Sends the packet to another address and port.
    TranslateDestination(Ipv4Addr, u16),
    /// Gives the packet the address of the interface it leaves by.
    Masquerade,
    Accept,
    Drop,
}

/// A rule as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub chain: String,
    pub handle: u64,
    /// Its owner's user data; empty if it has none.
    pub note: Vec<u8>,
}

/// The nf_tables of one network namespace, IPv4 tables only.
pub struct Nft(Socket);

impl Nft {
    /// In the network namespace of the calling thread.
    pub fn open() -> Result<Nft> {
        Ok(Nft(Socket::open(Protocol::Netfilter)?))
    }

    /// Applies all changes of the batch, or none.
    pub fn apply(&mut self, what: &str, batch: Batch) -> Result<()> {
        if batch.messages.is_empty() {
            return Ok(());
        }
        // res_id names the subsystem that the batch is for, in network byte order.
        let frame = |kind| {
            let subsystem = NFNL_SUBSYS_NFTABLES.to_be_bytes();
            Message::new(kind, 0).with(&[NFPROTO_UNSPEC, 0, subsystem[0], subsystem[1]])
        };
        self.0.transaction(what, frame(NFNL_MSG_BATCH_BEGIN), batch.messages, frame(NFNL_MSG_BATCH_END))
    }

    /// Whether the table exists.
    pub fn has_table(&mut self, table: &str) -> Result<bool> {
        let mut message = Message::new(kind(NFT_MSG_GETTABLE), 0).with(&[NFPROTO_IPV4, 0, 0, 0]);
        message.put_str(NFTA_TABLE_NAME, table);
        found(self.0.request(&format!("look up nft table {table}"), message)).map(|answer| answer.is_some())
    }

    /// The rules of a table, in order within each chain. None if the table does not exist.
    pub fn rules(&mut self, table: &str) -> Result<Vec<Rule>> {
        self.list(table, None)
    }

    /// The rules of one chain. None if the chain does not exist.
    pub fn rules_in(&mut self, table: &str, chain: &str) -> Result<Vec<Rule>> {
        let mut rules = self.list(table, Some(chain))?;
        rules.retain(|rule| rule.chain == chain);
        Ok(rules)
    }

    fn list(&mut self, table: &str, chain: Option<&str>) -> Result<Vec<Rule>> {
        let mut message = Message::new(kind(NFT_MSG_GETRULE), NLM_F_DUMP).with(&[NFPROTO_IPV4, 0, 0, 0]);
        message.put_str(NFTA_RULE_TABLE, table);
        if let Some(chain) = chain {
            message.put_str(NFTA_RULE_CHAIN, chain);
        }
        let answers =
            found(self.0.request(&format!("list rules of nft table {table}"), message))?.unwrap_or_default();
        // Older kernels do not filter by table.
        Ok(answers.iter().filter_map(|answer| rule(table, answer.get(4..)?)).collect())
    }
}

/// Changes that are applied atomically.
#[derive(Default)]
pub struct Batch {
    messages: Vec<Message>,
}

impl Batch {
    pub fn new() -> Batch {
        Batch::default()
    }

    /// Creates a table. An existing one stays as it is.
    pub fn add_table(&mut self, table: &str) -> &mut Batch {
        let message = self.message(NFT_MSG_NEWTABLE, NLM_F_CREATE);
        message.put_str(NFTA_TABLE_NAME, table);
        self
    }

    /// Deletes a table with all chains and rules.
    pub fn delete_table(&mut self, table: &str) -> &mut Batch {
        let message = self.message(NFT_MSG_DELTABLE, 0);
        message.put_str(NFTA_TABLE_NAME, table);
        self
    }

    /// Creates a chain at a hook: a filter at [`Hook::Raw`] and [`Hook::Forward`], NAT at the others. An existing one
    /// stays as it is.
    pub fn add_chain(&mut self, table: &str, chain: &str, hook: Hook) -> &mut Batch {
        let (number, priority) = hook.numbers();
        let message = self.message(NFT_MSG_NEWCHAIN, NLM_F_CREATE);
        message.put_str(NFTA_CHAIN_TABLE, table);
        message.put_str(NFTA_CHAIN_NAME, chain);
        message.nest(NFTA_CHAIN_HOOK, |at| {
            at.put_be32(NFTA_HOOK_HOOKNUM, number);
            at.put(NFTA_HOOK_PRIORITY, &priority.to_be_bytes());
        });
        message.put_str(
            NFTA_CHAIN_TYPE,
            if matches!(hook, Hook::Raw | Hook::Forward) { "filter" } else { "nat" },
        );
        self
    }

    /// Appends a rule to a chain. The note may have up to 256 bytes.
    pub fn add_rule(&mut self, table: &str, chain: &str, expressions: &[Expr], note: &[u8]) -> &mut Batch {
        let message = self.message(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND);
        message.put_str(NFTA_RULE_TABLE, table);
        message.put_str(NFTA_RULE_CHAIN, chain);
        message.nest(NFTA_RULE_EXPRESSIONS, |list| {
            for expression in expressions {
                expression.write(list);
            }
        });
        if !note.is_empty() {
            message.put(NFTA_RULE_USERDATA, note);
        }
        self
    }

    /// Deletes a rule by its handle.
    pub fn delete_rule(&mut self, table: &str, rule: &Rule) -> &mut Batch {
        let message = self.message(NFT_MSG_DELRULE, 0);
        message.put_str(NFTA_RULE_TABLE, table);
        message.put_str(NFTA_RULE_CHAIN, &rule.chain);
        message.put(NFTA_RULE_HANDLE, &rule.handle.to_be_bytes());
        self
    }

    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    fn message(&mut self, number: u16, flags: u16) -> &mut Message {
        self.messages.push(Message::new(kind(number), flags).with(&[NFPROTO_IPV4, 0, 0, 0]));
        self.messages.last_mut().expect("just pushed")
    }
}

impl Expr {
    /// Writes the expression as nf_tables expressions: load into a register, compare, act.
    fn write(&self, list: &mut Message) {
        match self {
            Expr::SourceIn(network, len) => address_in(list, 12, *network, *len),
            Expr::DestinationIn(network, len) => address_in(list, 16, *network, *len),
            Expr::DestinationIsLocal => {
                element(list, "fib", |data| {
                    data.put_be32(1, REG_1);
                    data.put_be32(2, 3); // result: address type
                    data.put_be32(3, 2); // of the destination
                });
                compare(list, CMP_EQ, &2_u32.to_ne_bytes()); // RTN_LOCAL
            }
            Expr::ArrivesBy(name) => interface(list, META_IIFNAME, CMP_EQ, name),
            Expr::LeavesBy(name) => interface(list, META_OIFNAME, CMP_EQ, name),
            Expr::LeavesNotBy(name) => interface(list, META_OIFNAME, CMP_NEQ, name),
            Expr::Port(transport, port) => {
                load_meta(list, 16); // NFT_META_L4PROTO
                compare(list, CMP_EQ, &[transport.number()]);
                load_payload(list, 2, 2, 2); // transport header, destination port
                compare(list, CMP_EQ, &port.to_be_bytes());
            }
            Expr::WasTranslated => flow_has(list, 2, 1 << 5), // NFT_CT_STATUS, IPS_DST_NAT
            Expr::BeganBefore => flow_has(list, 0, 1 << 1 | 1 << 2), // NFT_CT_STATE, established or related
            Expr::TranslateDestination(address, port) => {
                immediate(list, REG_1, &address.octets());
                immediate(list, REG_2, &port.to_be_bytes());
                element(list, "nat", |data| {
                    data.put_be32(1, 1); // destination
                    data.put_be32(2, u32::from(NFPROTO_IPV4));
                    data.put_be32(3, REG_1); // address
                    data.put_be32(5, REG_2); // port
                });
            }
            Expr::Masquerade => element(list, "masq", |_| {}),
            Expr::Accept => verdict(list, 1),
            Expr::Drop => verdict(list, 0),
        }
    }
}

const CMP_EQ: u32 = 0;
const CMP_NEQ: u32 = 1;
const META_IIFNAME: u32 = 6;
const META_OIFNAME: u32 = 7;

fn element(list: &mut Message, name: &str, data: impl FnOnce(&mut Message)) {
    list.nest(NFTA_LIST_ELEM, |element| {
        element.put_str(NFTA_EXPR_NAME, name);
        element.nest(NFTA_EXPR_DATA, data);
    });
}

/// Loads an address of the IPv4 header at this offset into register 1, and compares it under its mask.
fn address_in(list: &mut Message, offset: u32, network: Ipv4Addr, len: u8) {
    let bits = u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
    load_payload(list, 1, offset, 4);
    if len < 32 {
        mask(list, &bits.to_be_bytes());
    }
    compare(list, CMP_EQ, &(u32::from(network) & bits).to_be_bytes());
}

/// Ends the rule with a verdict (`NF_*`).
fn verdict(list: &mut Message, code: u32) {
    element(list, "immediate", |data| {
        data.put_be32(1, 0); // the verdict register
        data.nest(2, |value| value.nest(NFTA_DATA_VERDICT, |inner| inner.put_be32(NFTA_VERDICT_CODE, code)));
    });
}

fn interface(list: &mut Message, which: u32, how: u32, name: &str) {
    load_meta(list, which);
    let mut padded = [0; 16];
    let len = name.len().min(15);
    padded[..len].copy_from_slice(&name.as_bytes()[..len]);
    compare(list, how, &padded);
}

/// Matches if one of these bits is set in the flow's state.
fn flow_has(list: &mut Message, key: u32, bits: u32) {
    element(list, "ct", |data| {
        data.put_be32(2, key);
        data.put_be32(1, REG_1);
    });
    mask(list, &bits.to_ne_bytes());
    compare(list, CMP_NEQ, &0_u32.to_ne_bytes());
}

fn load_meta(list: &mut Message, key: u32) {
    element(list, "meta", |data| {
        data.put_be32(2, key);
        data.put_be32(1, REG_1);
    });
}

fn load_payload(list: &mut Message, header: u32, offset: u32, len: u32) {
    element(list, "payload", |data| {
        data.put_be32(1, REG_1);
        data.put_be32(2, header);
        data.put_be32(3, offset);
        data.put_be32(4, len);
    });
}

fn compare(list: &mut Message, how: u32, value: &[u8]) {
    element(list, "cmp", |data| {
        data.put_be32(1, REG_1);
        data.put_be32(2, how);
        data.nest(3, |wrapped| wrapped.put(NFTA_DATA_VALUE, value));
    });
}

fn mask(list: &mut Message, bits: &[u8; 4]) {
    element(list, "bitwise", |data| {
        data.put_be32(1, REG_1);
        data.put_be32(2, REG_1);
        data.put_be32(3, 4);
        data.nest(4, |wrapped| wrapped.put(NFTA_DATA_VALUE, bits));
        data.nest(5, |wrapped| wrapped.put(NFTA_DATA_VALUE, &[0; 4]));
    });
}

fn immediate(list: &mut Message, register: u32, value: &[u8]) {
    element(list, "immediate", |data| {
        data.put_be32(1, register);
        data.nest(2, |wrapped| wrapped.put(NFTA_DATA_VALUE, value));
    });
}

fn kind(message: u16) -> u16 {
    NFNL_SUBSYS_NFTABLES << 8 | message
}

/// Turns "no such table" into None.
fn found(answer: Result<Vec<Vec<u8>>>) -> Result<Option<Vec<Vec<u8>>>, Error> {
    match answer {
        Ok(answers) => Ok(Some(answers)),
        Err(error) if error.is(ErrorKind::NotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

fn rule(table: &str, bytes: &[u8]) -> Option<Rule> {
    let name = |kind| {
        let value = attribute(bytes, kind)?;
        std::str::from_utf8(value.strip_suffix(&[0]).unwrap_or(value)).ok()
    };
    if name(NFTA_RULE_TABLE)? != table {
        return None;
    }
    Some(Rule {
        chain: name(NFTA_RULE_CHAIN)?.to_owned(),
        handle: u64::from_be_bytes(attribute(bytes, NFTA_RULE_HANDLE)?.try_into().ok()?),
        note: attribute(bytes, NFTA_RULE_USERDATA).unwrap_or_default().to_vec(),
    })
}

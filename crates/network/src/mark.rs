//! Marks: MAC addresses by which links made here are recognized, with no separate note that a crash could separate from
//! them.
//!
//! ```text
//! bridge            06:48:h1:h2:h3:h4        h = sha256(state directory, 0, name of the link)
//! host's ends       fe:48:h1:h2:h3:h4
//! containers' ends  02:48:a1:a2:a3:a4        a = the container's address
//! ```
//!
//! A mark is set in the one netlink message that creates the link. All marks are locally administered (IEEE 802,
//! 8.2.2). A bridge without a MAC address of its own takes the lowest of its ports', and another one when that port
//! goes: so that another program's bridge keeps its address, the host's ends have the highest.

use std::path::{Path, PathBuf};

use linux::rtnetlink::Link;
use types::digest::{Algorithm, Hasher};
use types::{Context, Result};

const BRIDGE: [u8; 2] = [0x06, 0x48];
const PORT: [u8; 2] = [0xfe, 0x48];

/// The marks of one daemon, which is identified by its state directory.
pub(crate) struct Marks(PathBuf);

impl Marks {
    pub(crate) fn of(state: &Path) -> Result<Marks> {
        // Canonical, so that the mark does not depend on the path by which the directory is named.
        state.canonicalize().map(Marks).context(|| format!("look for {}", state.display()))
    }

    pub(crate) fn of_bridge(&self, name: &str) -> [u8; 6] {
        self.mark(BRIDGE, name)
    }

    pub(crate) fn of_port(&self, name: &str) -> [u8; 6] {
        self.mark(PORT, name)
    }

    pub(crate) fn is_own_bridge(&self, link: &Link) -> bool {
        link.kind == "bridge" && link.address == self.of_bridge(&link.name)
    }

    /// Whether another daemon made this bridge.
    pub(crate) fn is_bridge_of_another(&self, link: &Link) -> bool {
        link.kind == "bridge" && link.address.starts_with(&BRIDGE) && !self.is_own_bridge(link)
    }

    /// Whether this is the host's end of a veth pair made here.
    pub(crate) fn is_own_port(&self, link: &Link) -> bool {
        link.kind == "veth" && link.address == self.of_port(&link.name)
    }

    /// Whether this is the host's end of another daemon's pair.
    pub(crate) fn is_port_of_another(&self, link: &Link) -> bool {
        link.kind == "veth" && link.address.starts_with(&PORT) && !self.is_own_port(link)
    }

    fn mark(&self, [first, second]: [u8; 2], name: &str) -> [u8; 6] {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(self.0.as_os_str().as_encoded_bytes());
        hasher.update(&[0]);
        hasher.update(name.as_bytes());
        let digest = hasher.finish();
        let hash = u32::from_str_radix(&digest.hex()[..8], 16).expect("a digest is hexadecimal");
        let [third, fourth, fifth, sixth] = hash.to_be_bytes();
        [first, second, third, fourth, fifth, sixth]
    }
}

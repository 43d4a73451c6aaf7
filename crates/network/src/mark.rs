//! Marks: how what was made here is told from what others made, with nothing noted that a crash could separate from it.
//!
//! ```text
//! bridge            06:48:h1:h2:h3:h4        h = sha256(state directory, 0, name of the link)
//! host's ends       fe:48:h1:h2:h3:h4
//! containers' ends  02:48:a1:a2:a3:a4        a = the container's address
//! ```
//!
//! A mark is the hardware address that a link is made with, in the one message that makes it. All are locally administered
//! (IEEE 802, 8.2.2). A bridge of others without an address of its own takes the lowest of its ports, and another when that
//! port goes: so the host's ends have the highest.

use std::path::{Path, PathBuf};

use linux::rtnetlink::Link;
use types::digest::{Algorithm, Hasher};
use types::{Context, Result};

const BRIDGE: [u8; 2] = [0x06, 0x48];
const PORT: [u8; 2] = [0xfe, 0x48];

/// The marks of one daemon, which is known by its state directory.
pub(crate) struct Marks(PathBuf);

impl Marks {
    pub(crate) fn of(state: &Path) -> Result<Marks> {
        // By whatever name it is called.
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

    /// Whether it is the host's end of a pair that was made here.
    pub(crate) fn is_own_port(&self, link: &Link) -> bool {
        link.kind == "veth" && link.address == self.of_port(&link.name)
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

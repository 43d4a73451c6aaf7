//! Images protected by dm-verity: the data and the tree of its hashes are in one file.
//!
//! ```text
//! image.erofs           ┃ data ┃ superblock ┃ tree of hashes ┃      as veritysetup(8) writes it
//! image.erofs.dmverity  {"roothash": "…", "hashoffset": where the superblock is}
//!
//! file ─▶ loop device ─▶ dm-verity ─▶ mount: each is removed with its only user, so that unmounting removes all
//! ```
//!
//! The format of the second file is containerd's. Only the root hash in it is trusted, which verifies the tree and so
//! the data.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use linux::devmapper::{self, Verity};
use linux::loopdev::LoopDevice;
use serde::Deserialize;
use types::{Context, Error, Result};

/// The option of a mount that names the file with the root hash.
pub(crate) const OPTION: &str = "X-containerd.dmverity=";
/// The suffix of its name.
const SUFFIX: &str = ".dmverity";
const METADATA_LEN_MAX: u64 = 64 * 1024;

/// cryptsetup's superblock.
const SUPERBLOCK_LEN: usize = 512;
const SIGNATURE: &[u8; 8] = b"verity\0\0";
const SUPERBLOCK_VERSION: u32 = 1;
const SALT_LEN_MAX: usize = 256;
/// Sizes of blocks that the kernel may take: powers of two from the first to the last.
const BLOCK_LENS: std::ops::RangeInclusive<u32> = 512..=65536;

#[derive(Deserialize)]
struct Metadata {
    roothash: String,
    #[serde(default)]
    hashoffset: u64,
}

/// A dm-verity device of an image. Dropping it removes the device once it is unused.
pub(crate) struct Device {
    pub(crate) path: PathBuf,
    name: String,
}

impl Device {
    /// Creates a device. Its name is written to the file `note` first, so that a crash leaves no unknown device.
    pub(crate) fn show(image: &str, option: &str, note: &Path) -> Result<Device> {
        let what = || format!("read the hashes of {image}");
        let metadata = metadata(option)?;
        let file = File::open(image).context(|| format!("open {image}"))?;
        let verity = table(&file, &metadata).context(what)?;
        let name = name()?;
        fs::write(note, &name).context(|| format!("write {}", note.display()))?;
        let shown = LoopDevice::show(file.as_fd()).context(|| format!("show {image} as a device"))?;
        let path = devmapper::verified(&name, shown.path(), &verity)?;
        Ok(Device { path, name })
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // If it fails, taking down the place removes the device by the name in its note.
        let _ = devmapper::remove_when_unused(&self.name);
    }
}

/// Removes the device that a note names.
pub(crate) fn remove(note: &Path) -> Result<()> {
    let what = || format!("read {}", note.display());
    match fs::read_to_string(note) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        read => {
            let name = read.context(what)?;
            if name.is_empty() {
                return Ok(());
            }
            devmapper::remove_when_unused(&name)
        }
    }
}

/// A new device name.
fn name() -> Result<String> {
    Ok(format!("hoist-{}", linux::random::hex(16)?))
}

fn metadata(option: &str) -> Result<Metadata> {
    let path = if option.ends_with(SUFFIX) { option.to_owned() } else { format!("{option}{SUFFIX}") };
    let what = || format!("read {path}");
    if fs::metadata(&path).context(what)?.len() > METADATA_LEN_MAX {
        return Err(Error::invalid_argument(format!("{path} has more than {METADATA_LEN_MAX} bytes")));
    }
    let bytes = fs::read(&path).context(what)?;
    let metadata: Metadata =
        serde_json::from_slice(&bytes).map_err(|error| Error::invalid_argument(what()).with_source(error))?;
    let is_hash =
        !metadata.roothash.is_empty() && metadata.roothash.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !is_hash {
        let found = &metadata.roothash;
        return Err(Error::invalid_argument(format!("{path}: {found:?} is no root hash")));
    }
    Ok(metadata)
}

/// The device-mapper table, from the superblock.
fn table(image: &File, metadata: &Metadata) -> Result<Verity> {
    let mut block = [0; SUPERBLOCK_LEN];
    image
        .read_exact_at(&mut block, metadata.hashoffset)
        .context(|| format!("read a superblock at {}", metadata.hashoffset))?;
    parse(&block, metadata)
}

fn parse(block: &[u8; SUPERBLOCK_LEN], metadata: &Metadata) -> Result<Verity> {
    let refused =
        |why: &str| Error::invalid_argument(format!("superblock at {}: {why}", metadata.hashoffset));
    let field = |at: usize| u32::from_le_bytes(block[at..at + 4].try_into().expect("four bytes"));
    if &block[..8] != SIGNATURE {
        return Err(refused("this is none of dm-verity"));
    }
    if field(8) != SUPERBLOCK_VERSION {
        return Err(refused(&format!("version {} is not known", field(8))));
    }
    let hash_type = field(12);
    if hash_type > 1 {
        return Err(refused(&format!("kind {hash_type} of hashes is not known")));
    }
    let algorithm = block[32..64].split(|byte| *byte == 0).next().unwrap_or_default();
    // A single word: a blank would begin further parameters of the table.
    let is_word = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_()".contains(byte);
    if algorithm.is_empty() || !algorithm.iter().all(is_word) {
        return Err(refused("no name of an algorithm"));
    }
    let (data_block_len, hash_block_len) = (field(64), field(68));
    for len in [data_block_len, hash_block_len] {
        if !len.is_power_of_two() || !BLOCK_LENS.contains(&len) {
            return Err(refused(&format!("blocks of {len} bytes")));
        }
    }
    let data_blocks = u64::from_le_bytes(block[72..80].try_into().expect("eight bytes"));
    let salt_len = usize::from(u16::from_le_bytes([block[80], block[81]]));
    if salt_len > SALT_LEN_MAX {
        return Err(refused(&format!("a salt of {salt_len} bytes")));
    }
    let salt = block[88..88 + salt_len].iter().map(|byte| format!("{byte:02x}")).collect();
    // The tree begins at the block of hashes after the superblock.
    let tree = metadata.hashoffset.checked_add(SUPERBLOCK_LEN as u64);
    let tree = tree.ok_or_else(|| refused("too far off"))?.div_ceil(u64::from(hash_block_len));
    Ok(Verity {
        hash_type,
        data_block_len,
        hash_block_len,
        data_blocks,
        hash_start: tree,
        algorithm: String::from_utf8_lossy(algorithm).to_ascii_lowercase(),
        root_hash: metadata.roothash.to_ascii_lowercase(),
        salt,
    })
}

#[cfg(test)]
mod tests {
    use types::ErrorKind;

    use super::*;

    fn superblock() -> [u8; SUPERBLOCK_LEN] {
        let mut block = [0; SUPERBLOCK_LEN];
        block[..8].copy_from_slice(SIGNATURE);
        block[8] = 1;
        block[12] = 1;
        block[32..38].copy_from_slice(b"sha256");
        block[64..68].copy_from_slice(&4096_u32.to_le_bytes());
        block[68..72].copy_from_slice(&512_u32.to_le_bytes());
        block[72..80].copy_from_slice(&3_u64.to_le_bytes());
        block[80] = 2;
        block[88..90].copy_from_slice(&[0, 0xFF]);
        block
    }

    fn said() -> Metadata {
        Metadata { roothash: "AB".into(), hashoffset: 12288 }
    }

    #[test]
    fn a_verity_superblock_is_read() {
        let expected = Verity {
            hash_type: 1,
            data_block_len: 4096,
            hash_block_len: 512,
            data_blocks: 3,
            hash_start: 25,
            algorithm: "sha256".into(),
            root_hash: "ab".into(),
            salt: "00ff".into(),
        };
        assert_eq!(parse(&superblock(), &said()).unwrap(), expected);
        let mut wide = superblock();
        wide[68..72].copy_from_slice(&4096_u32.to_le_bytes());
        assert_eq!(parse(&wide, &said()).unwrap().hash_start, 4, "rounded up");
    }

    #[test]
    fn a_malformed_verity_superblock_is_refused() {
        let check = |at: usize, bytes: &[u8]| {
            let mut block = superblock();
            block[at..at + bytes.len()].copy_from_slice(bytes);
            let refused = parse(&block, &said()).unwrap_err();
            assert!(refused.is(ErrorKind::InvalidArgument), "{at}: {refused:?}");
        };
        check(0, b"V");
        check(8, &[2]);
        check(12, &[2]);
        check(32, b"sha256 1 2 3");
        check(32, &[0; 8]);
        check(64, &0_u32.to_le_bytes());
        check(64, &1000_u32.to_le_bytes());
        check(68, &256_u32.to_le_bytes());
        check(68, &(1_u32 << 17).to_le_bytes());
        check(80, &257_u16.to_le_bytes());
        let far = Metadata { hashoffset: u64::MAX, ..said() };
        assert!(parse(&superblock(), &far).is_err());
    }

    #[test]
    fn the_root_hash_is_in_a_file_beside_the_image() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image").display().to_string();
        let write = |text: &str| fs::write(format!("{image}.dmverity"), text).unwrap();
        assert!(metadata(&image).is_err_and(|error| error.is(ErrorKind::NotFound)));
        write(r#"{"roothash": "00ff", "hashoffset": 4096}"#);
        for option in [image.clone(), format!("{image}.dmverity")] {
            let found = metadata(&option).unwrap();
            assert_eq!((found.roothash.as_str(), found.hashoffset), ("00ff", 4096));
        }
        for text in ["", "{}", r#"{"roothash": ""}"#, r#"{"roothash": "0 1", "hashoffset": 1}"#] {
            write(text);
            assert!(metadata(&image).is_err_and(|error| error.is(ErrorKind::InvalidArgument)), "{text}");
        }
        write(&" ".repeat(70_000));
        assert!(metadata(&image).is_err_and(|error| error.is(ErrorKind::InvalidArgument)));
    }
}

//! Device mapper: block devices that verify the data of another (dm-verity).
//!
//! ```text
//! create ─▶ load the table ─▶ resume ─▶ /dev/dm-N ──remove_when_unused──▶ goes with its last user
//! ```
//!
//! Requests are structures for `/dev/mapper/control`, `linux/dm-ioctl.h`. The parameters of a table are documented in
//! the kernel's `admin-guide/device-mapper/verity.rst`.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use types::{Context, Error, ErrorKind, Result};

const CONTROL: &str = "/dev/mapper/control";

/// The interface version, 4.0.0.
const VERSION: [u32; 3] = [4, 0, 0];
/// `DM_READONLY_FLAG`, `DM_DEFERRED_REMOVE`.
const READ_ONLY: u32 = 1;
const DEFERRED: u32 = 1 << 17;

/// Bytes of a name, including the final zero.
const NAME_LEN: usize = 128;
/// Bytes of a table's parameters, including the final zero: two digests of 64 bytes and a salt of 256, in hexadecimal,
/// and some short words.
const WORDS_LEN: usize = 1024;
/// Bytes of a sector, the unit of a device's length.
const SECTOR_LEN: u64 = 512;

/// Commands of the ioctl.
#[derive(Clone, Copy)]
enum Command {
    Create = 3,
    Remove = 4,
    Resume = 6,
    Load = 9,
}

/// The parameters of a dm-verity table: data and hash tree on one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verity {
    /// 1, or 0 for Chrome OS's.
    pub hash_type: u32,
    /// Bytes.
    pub data_block_len: u32,
    pub hash_block_len: u32,
    pub data_blocks: u64,
    /// Start of the hash tree, in blocks of `hash_block_len`.
    pub hash_start: u64,
    /// By the kernel's name: `sha256`.
    pub algorithm: String,
    /// Hexadecimal.
    pub root_hash: String,
    /// Hexadecimal; empty for none.
    pub salt: String,
}

impl Verity {
    fn words(&self, device: &Path) -> String {
        let device = device.display();
        let Verity {
            hash_type,
            data_block_len,
            hash_block_len,
            data_blocks,
            hash_start,
            algorithm,
            root_hash,
            salt,
        } = self;
        let salt = if salt.is_empty() { "-" } else { salt };
        format!(
            "{hash_type} {device} {device} {data_block_len} {hash_block_len} {data_blocks} {hash_start} {algorithm} \
             {root_hash} {salt}"
        )
    }
}

/// Makes a device with the data of `device`, whose reads fail if they do not match the root hash. It exists until it is
/// removed. `FailedPrecondition` if the kernel lacks the device mapper, or dm-verity.
pub fn verified(name: &str, device: &Path, verity: &Verity) -> Result<PathBuf> {
    let what = || format!("set up dm-verity for {}", device.display());
    let control = control()?;
    let sectors =
        verity.data_blocks.checked_mul(u64::from(verity.data_block_len)).map(|len| len / SECTOR_LEN);
    let sectors = sectors.ok_or_else(|| Error::invalid_argument("more data than a device can have"))?;
    let created = send(control.as_fd(), Command::Create, Request::new(name, 0)?).context(what)?;
    let shown = (|| {
        let table = Request::new(name, READ_ONLY)?.with_table(sectors, "verity", &verity.words(device))?;
        send(control.as_fd(), Command::Load, table).map_err(refused).context(what)?;
        send(control.as_fd(), Command::Resume, Request::new(name, 0)?).context(what)
    })();
    if let Err(error) = shown {
        // The first error is reported.
        let _ = send(control.as_fd(), Command::Remove, Request::new(name, 0)?);
        return Err(error);
    }
    Ok(PathBuf::from(format!("/dev/dm-{}", minor(created.device))))
}

/// Removes a device: now, or when its last user closes it. A missing device, or device mapper, is no error.
pub fn remove_when_unused(name: &str) -> Result<()> {
    let control = match control() {
        Err(error) if error.is(ErrorKind::FailedPrecondition) => return Ok(()),
        opened => opened?,
    };
    match send(control.as_fd(), Command::Remove, Request::new(name, DEFERRED)?) {
        Err(error) if error.raw_os_error() != Some(libc::ENXIO) => {
            Err(error).context(|| format!("remove the device {name}"))
        }
        _ => Ok(()),
    }
}

fn control() -> Result<File> {
    File::options().read(true).write(true).open(CONTROL).map_err(|error| match error.kind() {
        _ if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::ENXIO)) => {
            Error::failed_precondition(format!("the kernel has no device mapper: {CONTROL}: {error}"))
        }
        kind => Error::new(kind.into(), format!("open {CONTROL}")).with_source(error),
    })
}

/// The kernel answers EINVAL for an unknown target, and logs the reason.
fn refused(error: io::Error) -> Error {
    if error.raw_os_error() != Some(libc::EINVAL) {
        return Error::new(error.kind().into(), "load the table").with_source(error);
    }
    let why = "load the table: the kernel has no dm-verity, or its log says what is wrong with the hashes";
    Error::failed_precondition(why).with_source(error)
}

/// The minor part of a device number, in the packing of `linux/kdev_t.h`.
fn minor(device: u64) -> u64 {
    device & 0xFF | device >> 12 & 0xF_FF00
}

/// `struct dm_ioctl`, `struct dm_target_spec`, and the target's parameters.
#[repr(C)]
struct Request {
    version: [u32; 3],
    len: u32,
    table_at: u32,
    targets: u32,
    open_count: i32,
    flags: u32,
    event: u32,
    padding: u32,
    device: u64,
    name: [u8; NAME_LEN],
    uuid: [u8; 129],
    rest: [u8; 7],

    start: u64,
    sectors: u64,
    status: i32,
    next: u32,
    kind: [u8; 16],
    words: [u8; WORDS_LEN],
}

/// Bytes of `struct dm_ioctl`.
const HEADER_LEN: usize = std::mem::offset_of!(Request, start);
const _: () = assert!(HEADER_LEN == 312, "as in linux/dm-ioctl.h");
const _: () = assert!(std::mem::offset_of!(Request, words) - HEADER_LEN == 40, "as in linux/dm-ioctl.h");

impl Request {
    fn new(name: &str, flags: u32) -> Result<Request> {
        let number = |len: usize| u32::try_from(len).expect("a short structure");
        Ok(Request {
            version: VERSION,
            len: number(size_of::<Request>()),
            table_at: number(HEADER_LEN),
            targets: 0,
            open_count: 0,
            flags,
            event: 0,
            padding: 0,
            device: 0,
            name: text(name)?,
            uuid: [0; 129],
            rest: [0; 7],
            start: 0,
            sectors: 0,
            status: 0,
            next: 0,
            kind: [0; 16],
            words: [0; WORDS_LEN],
        })
    }

    fn with_table(self, sectors: u64, kind: &str, words: &str) -> Result<Request> {
        Ok(Request { targets: 1, sectors, kind: text(kind)?, words: text(words)?, ..self })
    }
}

/// A fixed-size string with at least one final zero.
fn text<const LEN: usize>(text: &str) -> Result<[u8; LEN]> {
    let mut bytes = [0; LEN];
    if text.len() >= LEN || text.contains('\0') {
        return Err(Error::invalid_argument(format!("{text:?} is too long for the device mapper")));
    }
    bytes[..text.len()].copy_from_slice(text.as_bytes());
    Ok(bytes)
}

/// Returns the request as the kernel has filled it in.
#[expect(unsafe_code, reason = "rustix has no device mapper")]
fn send(control: BorrowedFd<'_>, command: Command, mut request: Request) -> io::Result<Request> {
    // `_IOWR(DM_IOCTL, command, struct dm_ioctl)`. The type of numbers of that size differs between C libraries.
    let command = 0xC000_FD00 | (HEADER_LEN as u32) << 16 | command as u32;
    let (command, pointer) = (libc::c_ulong::from(command), std::ptr::from_mut(&mut request));
    // SAFETY: the kernel reads and writes as many bytes as the request says that it has, which is all of a structure
    // that lives until it returns.
    let result = unsafe { libc::syscall(libc::SYS_ioctl, control.as_raw_fd(), command, pointer) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(request) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_not_there_is_removed_with_and_without_a_device_mapper() {
        remove_when_unused("hoist-nobody-has-this-name").unwrap();
    }

    #[test]
    fn a_table_is_written_as_the_kernel_reads_it() {
        let mut verity = Verity {
            hash_type: 1,
            data_block_len: 4096,
            hash_block_len: 512,
            data_blocks: 7,
            hash_start: 57,
            algorithm: "sha256".into(),
            root_hash: "ab".into(),
            salt: String::new(),
        };
        let device = Path::new("/dev/loop3");
        assert_eq!(verity.words(device), "1 /dev/loop3 /dev/loop3 4096 512 7 57 sha256 ab -");
        verity.salt = "00ff".into();
        assert!(verity.words(device).ends_with(" ab 00ff"));
        verity.salt = "00".repeat(256);
        verity.root_hash = "00".repeat(64);
        assert!(verity.words(device).len() < WORDS_LEN);
    }

    #[test]
    fn texts_end_with_a_zero() {
        assert_eq!(text::<4>("abc").unwrap(), *b"abc\0");
        assert!(text::<4>("abcd").is_err());
        assert!(text::<4>("a\0").is_err());
    }

    #[test]
    fn device_numbers_are_taken_apart() {
        assert_eq!(minor(252 << 8 | 17), 17);
        assert_eq!(minor(252 << 8 | 0x0010_0001), 0x101);
    }
}

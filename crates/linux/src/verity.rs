//! fs-verity: immutable files, of which the kernel verifies every page by a hash tree when it is read from disk (Linux,
//! `Documentation/filesystems/fsverity.rst`). Reading corrupted data fails instead of returning other bytes.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use types::Digest;

/// `linux/fsverity.h`. The type of ioctl numbers differs between C libraries, so the raw system call is used.
const ENABLE: libc::c_ulong = 0x4080_6685;
const MEASURE: libc::c_ulong = 0xC004_6686;
const SHA256: u32 = 1;
const SHA256_LEN: u16 = 32;
const BLOCK_LEN: u32 = 4096;

/// `fsverity_enable_arg`.
#[repr(C)]
struct Enable {
    version: u32,
    hash_algorithm: u32,
    block_size: u32,
    salt_size: u32,
    salt: u64,
    signature_size: u32,
    reserved: u32,
    signature: u64,
    reserved_too: [u64; 11],
}

/// `fsverity_digest`.
#[repr(C)]
struct Measured {
    algorithm: u16,
    len: u16,
    digest: [u8; SHA256_LEN as usize],
}

/// Enables fs-verity for a file that is open for reading, and open for writing nowhere. The kernel reads all of it.
/// Does nothing if it is enabled already.
///
/// `Unsupported` if the kernel, the file system type, or this file system does not support it.
#[expect(unsafe_code, reason = "rustix has no fs-verity")]
pub fn enable(file: BorrowedFd<'_>) -> io::Result<()> {
    let argument = Enable {
        version: 1,
        hash_algorithm: SHA256,
        block_size: BLOCK_LEN,
        salt_size: 0,
        salt: 0,
        signature_size: 0,
        reserved: 0,
        signature: 0,
        reserved_too: [0; 11],
    };
    // SAFETY: the argument is what the command wants, and lives through the call.
    let enabled = unsafe { libc::syscall(libc::SYS_ioctl, file.as_raw_fd(), ENABLE, &raw const argument) };
    match failure(enabled) {
        Some(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        Some(error) => Err(named(error)),
        None => Ok(()),
    }
}

/// The fs-verity digest of a file; None if it is not enabled.
#[expect(unsafe_code, reason = "rustix has no fs-verity")]
pub fn digest(file: BorrowedFd<'_>) -> io::Result<Option<Digest>> {
    let mut measured = Measured { algorithm: 0, len: SHA256_LEN, digest: [0; SHA256_LEN as usize] };
    // SAFETY: the kernel writes at most as many bytes of digest as `len` says, which are there.
    let asked = unsafe { libc::syscall(libc::SYS_ioctl, file.as_raw_fd(), MEASURE, &raw mut measured) };
    match failure(asked).map(named) {
        Some(error) if error.raw_os_error() == Some(libc::ENODATA) => return Ok(None),
        Some(error) if error.kind() == io::ErrorKind::Unsupported => return Ok(None),
        Some(error) => return Err(error),
        None => {}
    }
    Ok(Some(Digest::from_sha256(&measured.digest)))
}

fn failure(answer: libc::c_long) -> Option<io::Error> {
    (answer != 0).then(io::Error::last_os_error)
}

/// Kernels and file systems without fs-verity refuse the command.
fn named(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::ENOTTY | libc::EOPNOTSUPP) => io::Error::new(io::ErrorKind::Unsupported, error),
        _ => error,
    }
}

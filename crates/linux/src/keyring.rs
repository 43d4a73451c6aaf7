//! Session keyrings (session-keyring(7)): the keys of a process and its descendants.

use std::ffi::CStr;
use std::io;

/// The session keyring of the caller (`linux/keyctl.h`).
const SESSION_KEYRING: libc::c_int = -3;

/// Leaves the caller's session keyring for that of this name, which is made if the caller finds none
/// (keyctl_join_session_keyring(3)).
#[expect(unsafe_code, reason = "keyctl has no wrapper")]
pub fn join_session(name: &CStr) -> io::Result<()> {
    const JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: the call reads a string that lives across it.
    done(unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, name.as_ptr()) })
}

/// Sets the permissions of the caller's session keyring: bits of `linux/key.h` (keyctl_setperm(3)).
#[expect(unsafe_code, reason = "keyctl has no wrapper")]
pub fn set_session_permissions(permissions: u32) -> io::Result<()> {
    const SETPERM: libc::c_int = 5;
    // SAFETY: all arguments are numbers.
    done(unsafe { libc::syscall(libc::SYS_keyctl, SETPERM, SESSION_KEYRING, permissions) })
}

/// The permissions of the caller's session keyring; None if the kernel does not tell (keyctl_describe(3)).
#[expect(unsafe_code, reason = "keyctl has no wrapper")]
pub fn session_permissions() -> Option<u32> {
    const DESCRIBE: libc::c_int = 6;
    // `type;uid;gid;permissions;name`, and a zero byte.
    let mut text = [0_u8; 512];
    let (to, room) = (text.as_mut_ptr(), text.len());
    // SAFETY: the call writes no more than there is room for.
    let len = unsafe { libc::syscall(libc::SYS_keyctl, DESCRIBE, SESSION_KEYRING, to, room) };
    let text = std::str::from_utf8(text.get(..usize::try_from(len).ok()?)?).ok()?;
    u32::from_str_radix(text.split(';').nth(3)?, 16).ok()
}

fn done(answer: libc::c_long) -> io::Result<()> {
    match answer {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_keyring_has_the_permissions_that_were_set() {
        const PERMISSIONS: u32 = 0x3f08_0000;
        // In a thread, whose keyring is its own and ends with it.
        let thread = std::thread::spawn(|| match join_session(c"_hoist.test") {
            Ok(()) => {
                set_session_permissions(PERMISSIONS).unwrap();
                assert_eq!(session_permissions(), Some(PERMISSIONS));
            }
            Err(error) => eprintln!("skipped: there are no keys, or they are forbidden: {error}"),
        });
        thread.join().unwrap();
    }
}

//! Names of hosts, for a program that has its C library inside.
#![expect(unsafe_code, reason = "a function of glibc that no crate has")]

/// Has the C library look for names of hosts in `/etc/hosts`, then ask the servers of `/etc/resolv.conf`, whatever
/// `/etc/nsswitch.conf` says. To be called before anything else looks for a name.
///
/// What that file names are libraries of the host's own C library (`libnss_*.so`). A program that carries its own must not
/// load them: they are made for the version beside them. Both sources that stay are in the program.
#[cfg(target_env = "gnu")]
pub fn resolve_without_plugins() {
    // SAFETY: the declaration is that of glibc.
    unsafe extern "C" {
        /// glibc's, `resolv/nss.h`: what `line` says about `database` takes the place of the file's.
        fn __nss_configure_lookup(
            database: *const std::ffi::c_char,
            line: *const std::ffi::c_char,
        ) -> std::ffi::c_int;
    }
    // SAFETY: both strings end with NUL and live for ever; the function reads them, and takes glibc's own lock.
    let result = unsafe { __nss_configure_lookup(c"hosts".as_ptr(), c"files dns".as_ptr()) };
    assert_eq!(result, 0, "glibc knows \"hosts\", \"files\" and \"dns\"");
}

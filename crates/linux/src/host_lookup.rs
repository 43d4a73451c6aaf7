//! Host name lookup for a program that is linked statically with glibc.
#![expect(unsafe_code, reason = "a function of glibc that no crate has")]

/// Has the C library look host names up in `/etc/hosts` first and then by the servers of `/etc/resolv.conf`, whatever
/// `/etc/nsswitch.conf` says. To be called before the first lookup.
///
/// `nsswitch.conf` names plugins of the host's own C library (`libnss_*.so`). A statically linked program must not load
/// them, as they are made for another version. The two remaining sources are part of the program.
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

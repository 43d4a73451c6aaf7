//! What stands for itself in the addresses and forms that are sent, and what is percent-encoded (RFC 3986).

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC};

/// In a query all but what stands for itself anywhere ("Unreserved Characters"), and the slash, which a query may have:
/// media types are read as they are, but for a plus, which some take for a blank.
pub(crate) const QUERY: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// In what is asked of a realm, scopes keep their colons and commas too, `repository:NAME:pull,push`: so that a person
/// finds them in the log of a realm.
pub(crate) const SCOPE: &AsciiSet = &QUERY.remove(b':').remove(b',');

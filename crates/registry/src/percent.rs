//! Which characters are percent-encoded in URLs and forms (RFC 3986).

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC};

/// For a query: all but "Unreserved Characters" and the slash. A plus is encoded, as some servers read it as a space.
pub(crate) const QUERY: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

/// For token requests: scopes keep their colons and commas, too, `repository:NAME:pull,push`, so that they are
/// readable in the server's log.
pub(crate) const SCOPE: &AsciiSet = &QUERY.remove(b':').remove(b',');

//! The error type of all crates.
//!
//! An error answers two questions. *What can the caller do?* is the [`ErrorKind`], the closed set that containerd and
//! gRPC share. *What must a person know?* is the message (operation, object, way out) with the chain of sources behind
//! it.
//!
//! Invariants
//! - `Display` never repeats the source; [`Error::chain`] is the one place that prints the chain.
//! - Kernel errors have the spelling of Go's programs ([`spelled`]), as tools match on these texts.
//! - Context is added where it is known. An error is either returned or logged, never both.

use std::error::Error as StdError;
use std::fmt;
use std::io;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a caller can decide on: the set of containerd's `errdefs` and of gRPC's status codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    Cancelled,
    Unknown,
    InvalidArgument,
    DeadlineExceeded,
    NotFound,
    AlreadyExists,
    PermissionDenied,
    ResourceExhausted,
    FailedPrecondition,
    Aborted,
    OutOfRange,
    Unimplemented,
    Internal,
    Unavailable,
    DataLoss,
    Unauthenticated,
}

impl ErrorKind {
    /// The number of this kind in `google.rpc.Code`, which gRPC and ttrpc both put on the wire.
    pub fn code(self) -> i32 {
        self as i32 + 1
    }

    /// The kind for a `google.rpc.Code`; numbers outside the set are `Unknown`.
    pub fn from_code(code: i32) -> ErrorKind {
        use ErrorKind::*;
        const KINDS: [ErrorKind; 16] = [
            Cancelled,
            Unknown,
            InvalidArgument,
            DeadlineExceeded,
            NotFound,
            AlreadyExists,
            PermissionDenied,
            ResourceExhausted,
            FailedPrecondition,
            Aborted,
            OutOfRange,
            Unimplemented,
            Internal,
            Unavailable,
            DataLoss,
            Unauthenticated,
        ];
        code.checked_sub(1)
            .and_then(|index| usize::try_from(index).ok())
            .and_then(|index| KINDS.get(index).copied())
            .unwrap_or(Unknown)
    }
}

impl From<io::ErrorKind> for ErrorKind {
    fn from(kind: io::ErrorKind) -> ErrorKind {
        match kind {
            io::ErrorKind::NotFound => ErrorKind::NotFound,
            io::ErrorKind::AlreadyExists => ErrorKind::AlreadyExists,
            io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
            io::ErrorKind::InvalidInput => ErrorKind::InvalidArgument,
            io::ErrorKind::TimedOut => ErrorKind::DeadlineExceeded,
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::OutOfMemory => {
                ErrorKind::ResourceExhausted
            }
            io::ErrorKind::Unsupported => ErrorKind::Unimplemented,
            io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::NotConnected => ErrorKind::Unavailable,
            _ => ErrorKind::Unknown,
        }
    }
}

/// As of its io kind, except for what is used up: std has no kind for open files (EMFILE, ENFILE), and EAGAIN from the
/// kernel means that there are too many processes, threads or unanswered connections, where the call may block.
impl From<&io::Error> for ErrorKind {
    fn from(error: &io::Error) -> ErrorKind {
        match error.raw_os_error() {
            Some(EAGAIN | ENFILE | EMFILE) => ErrorKind::ResourceExhausted,
            _ => error.kind().into(),
        }
    }
}

/// Kernel errors (errno(3)).
const EAGAIN: i32 = 11;
const ENFILE: i32 = 23;
const EMFILE: i32 = 24;

type Source = Box<dyn StdError + Send + Sync + 'static>;

/// An error: a kind for the caller, a message for a person, and the source that caused it.
pub struct Error(Box<Inner>);

struct Inner {
    kind: ErrorKind,
    message: String,
    source: Option<Source>,
}

macro_rules! constructors {
    ($($name:ident => $kind:ident),+ $(,)?) => {
        $(
            #[doc = concat!("An error of kind [`ErrorKind::", stringify!($kind), "`].")]
            pub fn $name(message: impl Into<String>) -> Error {
                Error::new(ErrorKind::$kind, message)
            }
        )+
    };
}

impl Error {
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error(Box::new(Inner { kind, message: message.into(), source: None }))
    }

    constructors! {
        cancelled => Cancelled,
        unknown => Unknown,
        invalid_argument => InvalidArgument,
        deadline_exceeded => DeadlineExceeded,
        not_found => NotFound,
        already_exists => AlreadyExists,
        permission_denied => PermissionDenied,
        resource_exhausted => ResourceExhausted,
        failed_precondition => FailedPrecondition,
        aborted => Aborted,
        out_of_range => OutOfRange,
        unimplemented => Unimplemented,
        internal => Internal,
        unavailable => Unavailable,
        data_loss => DataLoss,
        unauthenticated => Unauthenticated,
    }

    /// Sets the source of this error.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Source>) -> Error {
        self.0.source = Some(source.into());
        self
    }

    /// For `map_err` on the handle of a task or thread: turns its panic into an `Internal` error that names the work
    /// `what`, with the panic as source.
    pub fn broke_down<P: Into<Source>>(what: &str) -> impl FnOnce(P) -> Error {
        move |panic| Error::internal(format!("{what} broke down")).with_source(panic)
    }

    /// Wraps this error in a message about the operation that failed, and keeps its kind. A message that this error
    /// begins with already, such as that of a worker process that does the same operation, is not repeated.
    #[must_use]
    pub fn context(self, message: impl Into<String>) -> Error {
        let message = message.into();
        let rest = self.0.message.strip_prefix(&message);
        if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(": ")) {
            return self;
        }
        Error::new(self.kind(), message).with_source(self)
    }

    /// Changes the kind, where the caller's choices are better known than where the error arose.
    #[must_use]
    pub fn with_kind(mut self, kind: ErrorKind) -> Error {
        self.0.kind = kind;
        self
    }

    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    pub fn is(&self, kind: ErrorKind) -> bool {
        self.0.kind == kind
    }

    /// The message of this error alone, without its sources.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The messages of the whole chain on one line: `pull redis: fetch layer 3: connection reset`.
    pub fn chain(&self) -> String {
        let mut line = self.to_string();
        let mut next = self.source();
        while let Some(cause) = next {
            line.push_str(": ");
            line.push_str(&spelled(cause.to_string()));
            next = cause.source();
        }
        line
    }
}

/// Rewrites the kernel error at the end of a message (`… (os error 2)`) as Go spells it, whatever the C library's text
/// is: Docker and other clients look for `no such file or directory` and `permission denied` in exactly this spelling.
pub fn spelled(text: String) -> String {
    let numbered = text.strip_suffix(')').and_then(|text| text.rsplit_once(" (os error "));
    let Some((said, number)) = numbered else { return text };
    let at = said.rfind(": ").map_or(0, |at| at + 2);
    let (before, own) = said.split_at(at);
    let number: Option<i32> = number.parse().ok();
    let known = SPELLED.iter().find(|(known, _)| Some(*known) == number);
    let own = match known {
        Some((_, words)) => (*words).to_owned(),
        None => {
            let mut letters = own.chars();
            letters.next().map(|first| first.to_ascii_lowercase()).into_iter().chain(letters).collect()
        }
    };
    format!("{before}{own}")
}

/// Kernel errors (errno(3)) whose text differs between C libraries and Go.
const SPELLED: &[(i32, &str)] = &[
    (5, "input/output error"),
    (12, "cannot allocate memory"),
    (16, "device or resource busy"),
    (18, "invalid cross-device link"),
    (23, "too many open files in system"),
    (24, "too many open files"),
    (36, "file name too long"),
    (40, "too many levels of symbolic links"),
    (95, "operation not supported"),
    (107, "transport endpoint is not connected"),
    (110, "connection timed out"),
    (122, "disk quota exceeded"),
];

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}({})", self.0.kind, self.chain())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_ref().map(|source| &**source as &(dyn StdError + 'static))
    }
}

/// Adds a message that says which operation on which object failed.
///
/// An [`Error`] keeps its kind; an [`io::Error`] gets the kind that fits it. The closure runs only on failure.
pub trait Context<T> {
    fn context<M: Into<String>>(self, message: impl FnOnce() -> M) -> Result<T>;
}

impl<T> Context<T> for Result<T, Error> {
    fn context<M: Into<String>>(self, message: impl FnOnce() -> M) -> Result<T> {
        self.map_err(|error| error.context(message()))
    }
}

impl<T> Context<T> for Result<T, io::Error> {
    fn context<M: Into<String>>(self, message: impl FnOnce() -> M) -> Result<T> {
        self.map_err(|error| Error::new(ErrorKind::from(&error), message()).with_source(error))
    }
}

/// For callers that accept that an object does not exist, not yet or not any more.
pub trait UnlessGone<T> {
    /// Turns a `NotFound` error into `None`. Every other error stays: it does not say that the object is gone.
    fn unless_gone(self) -> Result<Option<T>>;
}

impl<T> UnlessGone<T> for Result<T, Error> {
    fn unless_gone(self) -> Result<Option<T>> {
        match self {
            Err(error) if error.is(ErrorKind::NotFound) => Ok(None),
            found => found.map(Some),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_codes_round_trip() {
        for code in 1..=16 {
            assert_eq!(ErrorKind::from_code(code).code(), code);
        }
        assert_eq!(ErrorKind::NotFound.code(), 5);
        assert_eq!(ErrorKind::Unauthenticated.code(), 16);
        assert_eq!(ErrorKind::from_code(0), ErrorKind::Unknown);
        assert_eq!(ErrorKind::from_code(99), ErrorKind::Unknown);
    }

    #[test]
    fn context_keeps_the_kind_and_never_repeats_the_source() {
        let error = Error::not_found("blob sha256:ab").context("open layer").context("unpack redis");
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert_eq!(error.to_string(), "unpack redis");
        assert_eq!(error.chain(), "unpack redis: open layer: blob sha256:ab");
        assert_eq!(error.context("unpack redis").chain(), "unpack redis: open layer: blob sha256:ab");
        let told = Error::not_found("create container a: no such file");
        assert_eq!(told.context("create container a").chain(), "create container a: no such file");
        let other = Error::not_found("create container ab").context("create container a");
        assert_eq!(other.chain(), "create container a: create container ab");
    }

    #[test]
    fn kernel_errors_are_spelled_as_go_spells_them() {
        let chain = |error: io::Error| Err::<(), _>(error).context(|| "open /x").unwrap_err().chain();
        for (number, words) in [
            (1, "operation not permitted"),
            (2, "no such file or directory"),
            (13, "permission denied"),
            (16, "device or resource busy"),
            (20, "not a directory"),
            (24, "too many open files"),
            (28, "no space left on device"),
            (40, "too many levels of symbolic links"),
        ] {
            assert_eq!(chain(io::Error::from_raw_os_error(number)), format!("open /x: {words}"));
        }
        assert_eq!(chain(io::Error::other("It is (so)")), "open /x: It is (so)");
        let nested = io::Error::other("read a: No such file or directory (os error 2)");
        assert_eq!(chain(nested), "open /x: read a: no such file or directory");
        assert_eq!(spelled("Ü (os error 99999)".to_owned()), "Ü");
        assert_eq!(spelled(" (os error 2)".to_owned()), "");
    }

    #[test]
    fn the_error_of_a_panic_names_the_work() {
        let joined: Result<Result<u8>, io::Error> = Err(io::Error::other("it panicked"));
        let error = joined.map_err(Error::broke_down("a worker")).unwrap_err();
        assert_eq!(
            (error.kind(), error.chain().as_str()),
            (ErrorKind::Internal, "a worker broke down: it panicked")
        );
    }

    #[test]
    fn unless_gone_turns_only_not_found_into_none() {
        assert_eq!(Ok::<_, Error>(1).unless_gone().unwrap(), Some(1));
        let missing: Result<u8> = Err(Error::not_found("blob").context("open it"));
        assert_eq!(missing.unless_gone().unwrap(), None);
        let unknown: Result<u8> = Err(Error::unavailable("the disk does not answer"));
        assert!(unknown.unless_gone().unwrap_err().is(ErrorKind::Unavailable));
    }

    #[test]
    fn io_error_kinds_become_error_kinds() {
        let missing: io::Result<()> = Err(io::ErrorKind::NotFound.into());
        assert_eq!(missing.context(|| "open /x").unwrap_err().kind(), ErrorKind::NotFound);
        let full: io::Result<()> = Err(io::ErrorKind::StorageFull.into());
        assert_eq!(full.context(|| "write").unwrap_err().kind(), ErrorKind::ResourceExhausted);
        // EAGAIN, ENOMEM, ENFILE, EMFILE, ENOSPC, EDQUOT.
        for number in [11, 12, 23, 24, 28, 122] {
            let used_up: io::Result<()> = Err(io::Error::from_raw_os_error(number));
            assert_eq!(
                used_up.context(|| "open").unwrap_err().kind(),
                ErrorKind::ResourceExhausted,
                "{number}"
            );
        }
        let unknown: io::Result<()> = Err(io::ErrorKind::WouldBlock.into());
        assert_eq!(unknown.context(|| "read").unwrap_err().kind(), ErrorKind::Unknown);
    }
}

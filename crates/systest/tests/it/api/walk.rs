//! How a service is walked: every method, also with what it refuses, and the same on containerd: Debian's 1.6, or one
//! of 2.x where `HOIST_TEST_CONTAINERD` names its directory.
//!
//! ```text
//! covers(&["Images.Create", …]).walk(DIFFERENCES, cases)
//!                │                        │          └ run on our daemon, then on containerd
//!                │                        └ what containerd answers otherwise, case by case, and why
//!                └ marks: `cargo xtask api` makes the table of docs/api.md of them
//! ```
//!
//! A walk fails if a method of its marks was not called, never answered well, or never refused anything, and is not one of
//! [`NEVER_REFUSED`]; if an answer is not the expected one;
//! if containerd answers otherwise where no difference is noted, or as we do where one is; and if what containerd says to
//! what it refuses is not in what we say, as programs look for its words, and [`OTHER_WORDS`] has no reason.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{Debug, Write as _};
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use api::grpc::leases::CreateRequest;
use api::grpc::leases::leases_client::LeasesClient;
use testkit::{Containerd, Daemon};
use tonic::body::Body;
use tonic::transport::Channel;
use tonic::{Code, Response, Status, Streaming};

use crate::typed::NAMESPACE;

/// The lease of a walk.
const LEASE: &str = "of-the-walk";

/// What containerd answers in a case, where it is not what we answer.
pub(crate) struct Difference {
    pub(crate) case: &'static str,
    /// Of versions that begin with this number; none for all.
    major: Option<u32>,
    /// Its code, or what it gives where it is asked for a value.
    pub(crate) there: There,
    pub(crate) why: &'static str,
}

pub(crate) enum There {
    Code(Code),
    /// Part of the value's `Debug`.
    Value(&'static str),
}

pub(crate) const fn differs(case: &'static str, there: There, why: &'static str) -> Difference {
    Difference { case, major: None, there, why }
}

/// One of the versions that begin with a number.
pub(crate) const fn differs_in(
    major: u32,
    case: &'static str,
    there: There,
    why: &'static str,
) -> Difference {
    Difference { case, major: Some(major), there, why }
}

/// What is in the words of containerd's that are not in ours, and why: programs do not look for these.
const OTHER_WORDS: &[(&str, &str)] = &[
    ("trying to send message larger", "ours says what to do about it"),
    ("filters: parse error", "ours names the filter and the place in it"),
    ("bucket", "there are no buckets in our database"),
    ("cannot delete container", "there a namespace that never had a container has no bucket for them"),
    ("locked for", "for how long is not known"),
    ("mount callback failed", "nothing is mounted before the namespace is looked at"),
    ("failed publishing event", "the namespace is looked at before the event"),
    ("failed to get reader from content store", "ours names the layer"),
    ("failed to resolve image", "ours says what the registry said"),
    ("failed to get sandbox controller for", "ours says what there is"),
    ("invalid task id", "what is made is a sandbox"),
    ("configured for mkdir", "ours says beneath what"),
    ("failed size validation", "ours says which of the two sizes was expected"),
    ("blob with expected digest", "the same is told of every commit"),
    ("target.Digest", "ours names the digest, not the field"),
    ("target.Size", "a size below zero is none"),
    ("invalid content resource id", "ours says what a digest is"),
    ("failed validation", "ours says what a digest is"),
    ("label key and value greater than maximum size", "2.x says how long it is"),
    ("Target.", "2.x begins with a small letter"),
    ("failed to commit snapshot: ", "2.x says which"),
    ("failed to create snapshot", "ours names the snapshot"),
];

/// Methods that no walk sees refuse anything, and why.
const NEVER_REFUSED: &[(&str, &str)] = &[
    ("Health.Watch", "a service that nobody knows is told of as unknown, in a stream that goes on"),
    ("Introspection.Server", "it asks for nothing, and is of no namespace"),
    ("Namespaces.Get", "a namespace that is not there is answered as one without labels, as containerd does"),
    ("Version.Version", "it asks for nothing, and is of no namespace"),
];

/// No case of the walk differs.
pub(crate) const SAME: &[Difference] = &[];

/// The methods that a test is a test of, `Service.Method`.
pub(crate) fn covers(methods: &'static [&'static str]) -> Covers {
    Covers { methods, answer: true, refuse: true }
}

#[derive(Clone, Copy)]
pub(crate) struct Covers {
    methods: &'static [&'static str],
    /// Whether what they answer well is walked.
    answer: bool,
    /// Whether what they refuse is walked.
    refuse: bool,
}

impl Covers {
    /// What these methods refuse is what another walk is about.
    pub(crate) fn well(self) -> Covers {
        Covers { refuse: false, ..self }
    }

    /// What these methods answer well is what another test is about.
    pub(crate) fn refusals(self) -> Covers {
        Covers { answer: false, ..self }
    }

    /// On our daemon, then on containerd, if it is there; what both have to say is said at once.
    pub(crate) fn walk(self, differences: &[Difference], cases: impl AsyncFn(&Side<'_>)) {
        self.walk_since(1, differences, cases);
    }

    /// The same of what containerd has since the version that begins with this number.
    pub(crate) fn walk_since(self, major: u32, differences: &[Difference], cases: impl AsyncFn(&Side<'_>)) {
        let daemon = Daemon::start();
        let ours = Side::new(daemon.dir(), None, SAME);
        let mut failures = run(&ours, &daemon.socket(), &cases, Some(self));
        // With our shim at hand, for what containerd's own does not serve.
        match Containerd::start_with_programs(testkit::shim_program().parent()) {
            Some(containerd) if containerd.major() < major => {
                println!("skipped: containerd {}.x does not have it", containerd.major());
            }
            Some(containerd) => {
                let theirs = Side::new(containerd.dir(), Some(containerd.major()), differences);
                failures += &run(&theirs, &containerd.socket(), &cases, None);
                failures += &other_words(&ours, &theirs);
            }
            // It says so, or fails.
            None => {}
        }
        assert!(failures.is_empty(), "{failures}");
    }

    /// On our daemon only: what is walked is not in containerd.
    pub(crate) fn alone(self, daemon: &Daemon, cases: &impl AsyncFn(&Side<'_>)) {
        let failures = run(&Side::new(daemon.dir(), None, SAME), &daemon.socket(), cases, Some(self));
        assert!(failures.is_empty(), "{failures}");
    }
}

/// What was not as it should be; empty for nothing.
fn run(side: &Side<'_>, socket: &Path, cases: &impl AsyncFn(&Side<'_>), marks: Option<Covers>) -> String {
    let walking = AssertUnwindSafe(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let channel = client::channel(socket).await.expect("the daemon listens");
            *side.channel.borrow_mut() = Some(channel);
            side.hold().await;
            tokio::time::timeout(testkit::DEADLINE * 4, cases(side)).await
        })
    });
    let walked = catch_unwind(walking);
    let mut failures = side.failures.take();
    match walked {
        Ok(Ok(())) => failures.extend(side.missing(marks)),
        Ok(Err(_)) => failures.push(format!("case {:?}: no answer", side.last.get())),
        Err(_) => failures.push(format!("case {:?}: broken off, as the panic says", side.last.get())),
    }
    let name = if side.is_ours() { "hoist" } else { "containerd" };
    failures.iter().map(|failure| format!("\n{name}: {failure}")).collect()
}

/// Refusals, call by call, whose words are not those of containerd.
fn other_words(ours: &Side<'_>, theirs: &Side<'_>) -> String {
    let (ours, refused) = (ours.said.borrow(), theirs.said.borrow());
    let mut failures = String::new();
    for (case, texts) in &*refused {
        let is_noted = theirs.differences.iter().any(|difference| difference.case == *case);
        let own = ours.get(case).map(Vec::as_slice).unwrap_or_default();
        for (own, text) in own.iter().zip(texts).filter(|_| !is_noted) {
            let has_reason = OTHER_WORDS.iter().any(|(part, _)| text.contains(part));
            let has_class = CLASSES.iter().all(|class| !text.ends_with(class) || own.ends_with(class));
            if !(own.contains(without_class(text)) && has_class || has_reason) {
                let _ = write!(failures, "\n{case}: we say {own:?}, containerd {text:?}");
            }
        }
    }
    failures
}

/// The words of classes of errors.
const CLASSES: [&str; 7] = [
    "invalid argument",
    "not found",
    "already exists",
    "failed precondition",
    "not implemented",
    "out of range",
    "unavailable",
];

/// What is said before the words of a class, with which containerd begins or ends some texts, and we end all.
fn without_class(text: &str) -> &str {
    CLASSES.iter().fold(text, |text, class| {
        let end = text.strip_suffix(class).and_then(|text| text.strip_suffix(": "));
        let text = end.unwrap_or(text);
        text.strip_prefix(class).and_then(|text| text.strip_prefix(": ")).unwrap_or(text)
    })
}

/// How a method answered.
#[derive(Clone, Copy, Debug, Default)]
struct Answers {
    well: bool,
    refused: bool,
}

/// A daemon that is walked.
pub(crate) struct Side<'a> {
    dir: &'a Path,
    /// Of containerd's version; none of our daemon.
    major: Option<u32>,
    channel: RefCell<Option<Channel>>,
    differences: Vec<&'a Difference>,
    /// By `Service.Method`.
    seen: Arc<Mutex<BTreeMap<String, Answers>>>,
    /// The method that was called last.
    called: Arc<Mutex<String>>,
    failures: RefCell<Vec<String>>,
    /// Cases in which a difference was noted.
    met: RefCell<BTreeSet<&'static str>>,
    last: Cell<&'static str>,
    /// What it said to what it refused, by case, in the order of calls.
    said: RefCell<BTreeMap<&'static str, Vec<String>>>,
}

impl<'a> Side<'a> {
    fn new(dir: &'a Path, major: Option<u32>, differences: &'a [Difference]) -> Side<'a> {
        let of_all = |difference: &&Difference| difference.major.is_none_or(|of| Some(of) == major);
        Side {
            dir,
            major,
            channel: RefCell::default(),
            differences: differences.iter().filter(of_all).collect(),
            seen: Arc::default(),
            called: Arc::default(),
            failures: RefCell::default(),
            met: RefCell::default(),
            last: Cell::new("none"),
            said: RefCell::default(),
        }
    }

    /// Makes the lease of the walk: what calls make is in it, so that no collection comes between two cases.
    async fn hold(&self) {
        let request = CreateRequest { id: LEASE.into(), ..CreateRequest::default() };
        let mut leases = LeasesClient::new(self.channel());
        leases.create(within(Some(NAMESPACE), request)).await.expect("a lease");
        self.seen.lock().expect("no panic under the lock").clear();
    }

    /// Marks that nothing was done for, and differences that were not met.
    fn missing(&self, covers: Option<Covers>) -> Vec<String> {
        let (mut missing, seen) = (Vec::new(), self.seen.lock().expect("no panic under the lock"));
        let marks = covers.map(|covers| covers.methods);
        let must_answer = covers.is_some_and(|covers| covers.answer);
        let must_refuse = covers.is_some_and(|covers| covers.refuse);
        for mark in marks.into_iter().flatten() {
            let answers = seen.get(*mark).copied().unwrap_or_default();
            if must_answer && !answers.well {
                missing.push(format!("{mark} is marked, and never answered well"));
            }
            let is_excused = NEVER_REFUSED.iter().any(|(name, _)| name == mark);
            match answers.refused {
                false if must_refuse && !is_excused => {
                    missing.push(format!("{mark} is marked, and never refused anything"));
                }
                true if is_excused => {
                    missing.push(format!("{mark} refuses, and is listed as one that does not"));
                }
                _ => {}
            }
        }
        let is_unmarked = |name: &str| marks.is_some_and(|marks| !marks.contains(&name));
        for (name, _) in seen.iter().filter(|(name, answers)| answers.refused && is_unmarked(name)) {
            missing.push(format!("{name} was refused, and is not marked"));
        }
        let met = self.met.borrow();
        let not_met = self.differences.iter().filter(|difference| !met.contains(difference.case));
        missing.extend(
            not_met
                .map(|difference| format!("no case {:?}, of which a difference is noted", difference.case)),
        );
        missing
    }

    /// Whether this is our daemon: containerd does not live through all of what is walked.
    pub(crate) fn is_ours(&self) -> bool {
        self.major.is_none()
    }

    /// Whether this is our daemon or a containerd of 2.x: 1.6 does not serve all of what is walked.
    pub(crate) fn is_modern(&self) -> bool {
        self.major != Some(1)
    }

    /// A directory for files of the walk.
    pub(crate) fn dir(&self) -> &Path {
        self.dir
    }

    /// For a client of a service.
    pub(crate) fn channel(&self) -> Watched {
        let channel = self.channel.borrow().clone().expect("the walk has begun");
        Watched { channel, seen: self.seen.clone(), called: self.called.clone() }
    }

    /// The answer of a call that must not be refused.
    pub(crate) fn ok<T>(
        &self,
        case: &'static str,
        answer: impl Future<Output = Result<Response<T>, Status>>,
    ) -> impl Future<Output = T> {
        let failures = &self.failures;
        self.last.set(case);
        async move {
            match answer.await {
                Ok(answer) => answer.into_inner(),
                Err(status) => {
                    failures.borrow_mut().push(format!("{case}: refused with {status}"));
                    panic!("{case}: refused with {status}")
                }
            }
        }
    }

    /// A call must be refused with this code, and this in its words.
    pub(crate) async fn refused<T>(
        &self,
        case: &'static str,
        answer: impl Future<Output = Result<T, Status>>,
        code: Code,
        words: &str,
    ) {
        self.last.set(case);
        let (found, message) = match answer.await {
            Ok(_) => (Code::Ok, String::new()),
            Err(status) => (status.code(), status.message().to_owned()),
        };
        if found != Code::Ok {
            // In a stream that was open, it came behind the answer.
            let called = self.called.lock().expect("no panic under the lock").clone();
            let mut seen = self.seen.lock().expect("no panic under the lock");
            seen.entry(called).or_default().refused = true;
        }
        self.said.borrow_mut().entry(case).or_default().push(message.clone());
        let difference = self.difference(case);
        let expected = match difference {
            None => code,
            Some(There::Code(there)) => {
                if *there == code {
                    self.fail(format!("{case}: the difference that is noted is none"));
                }
                *there
            }
            Some(There::Value(_)) => {
                return self.fail(format!("{case}: it has a code, and a value is noted"));
            }
        };
        if found != expected {
            self.fail(format!("{case}: {found:?} {message:?}, expected {expected:?} {words:?}"));
        } else if difference.is_none() && !message.contains(words) {
            self.fail(format!("{case}: {found:?} {message:?}, expected {words:?} in it"));
        }
    }

    /// A value must be this one.
    pub(crate) fn is<T: Debug + PartialEq<U>, U: Debug>(&self, case: &'static str, found: T, expected: U) {
        self.last.set(case);
        match self.difference(case) {
            None if found == expected => {}
            None => self.fail(format!("{case}: {found:?}, expected {expected:?}")),
            Some(There::Value(_)) if found == expected => {
                self.fail(format!("{case}: the difference that is noted is none"));
            }
            Some(There::Value(there)) if format!("{found:?}").contains(there) => {}
            Some(There::Value(there)) => self.fail(format!("{case}: {found:?}, {there} is noted")),
            Some(There::Code(_)) => self.fail(format!("{case}: it has a value, and a code is noted")),
        }
    }

    fn difference(&self, case: &'static str) -> Option<&There> {
        let found = self.differences.iter().find(|difference| difference.case == case)?;
        assert!(!found.why.is_empty(), "{case}: a difference has a reason");
        self.met.borrow_mut().insert(case);
        Some(&found.there)
    }

    fn fail(&self, what: String) {
        self.failures.borrow_mut().push(what);
    }
}

/// A connection that notes which methods were called, and how they answered.
#[derive(Clone)]
pub(crate) struct Watched {
    channel: Channel,
    seen: Arc<Mutex<BTreeMap<String, Answers>>>,
    called: Arc<Mutex<String>>,
}

impl tower_service::Service<http::Request<Body>> for Watched {
    type Response = http::Response<Body>;
    type Error = tonic::transport::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.channel.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let name = short_name(request.uri().path());
        self.called.lock().expect("no panic under the lock").clone_from(&name);
        let (seen, answer) = (self.seen.clone(), self.channel.call(request));
        Box::pin(async move {
            let answer = answer.await?;
            // A refusal is an answer that is nothing but its trailers, so the status is in front.
            let is_refused =
                Status::from_header_map(answer.headers()).is_some_and(|status| status.code() != Code::Ok);
            let mut seen = seen.lock().expect("no panic under the lock");
            let answers = seen.entry(name).or_default();
            if is_refused {
                answers.refused = true;
            } else {
                answers.well = true;
            }
            Ok(answer)
        })
    }
}

/// `Images.Get` for `/containerd.services.images.v1.Images/Get`.
fn short_name(path: &str) -> String {
    let (service, method) = path.trim_start_matches('/').split_once('/').unwrap_or((path, ""));
    format!("{}.{method}", service.rsplit('.').next().unwrap_or_default())
}

/// A request in the namespace and the lease of the walk.
pub(crate) fn ask<T>(message: T) -> tonic::Request<T> {
    in_lease(LEASE, message)
}

/// A request in the namespace of the walk and a lease of this name.
pub(crate) fn in_lease<T>(lease: &str, message: T) -> tonic::Request<T> {
    let mut request = within(Some(NAMESPACE), message);
    request.metadata_mut().insert(api::grpc::LEASE_KEY, lease.parse().expect("printable text"));
    request
}

/// All messages of a stream, or what ended it.
pub(crate) async fn all<T>(
    answer: impl Future<Output = Result<Response<Streaming<T>>, Status>>,
) -> Result<Response<Vec<T>>, Status> {
    let (mut answers, mut found) = (answer.await?.into_inner(), Vec::new());
    while let Some(message) = answers.message().await? {
        found.push(message);
    }
    Ok(Response::new(found))
}

/// A request in a namespace of this name, or in none.
pub(crate) fn within<T>(namespace: Option<&str>, message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    if let Some(namespace) = namespace {
        let value = namespace.parse().expect("printable text");
        request.metadata_mut().insert(api::grpc::NAMESPACE_KEY, value);
    }
    request
}

/// What a map of texts is made of.
pub(crate) type Entries<'a> = &'a [(&'a str, &'a str)];

/// What an update says, its mask, and what is there then.
pub(crate) type LabelStep<'a> = (Entries<'a>, &'a [&'a str], Entries<'a>);

pub(crate) fn map(entries: Entries<'_>) -> BTreeMap<String, String> {
    entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

pub(crate) fn mask(paths: &[&str]) -> Option<prost_types::FieldMask> {
    Some(prost_types::FieldMask { paths: paths.iter().map(ToString::to_string).collect() })
}

/// Filters that no grammar allows: half an operator, another one, no value, a comma at the beginning, an open quote.
/// All are one case.
pub(crate) const BAD_FILTERS: &[(&str, &str)] = &[
    (BAD_FILTER, "name="),
    (BAD_FILTER, "name===x"),
    (BAD_FILTER, "name=="),
    (BAD_FILTER, ",name"),
    (BAD_FILTER, "name==\"x"),
];
const BAD_FILTER: &str = "a filter that is none";

/// A filter whose expression is none: containerd finds out when it is too late for an error, and matches nothing.
pub(crate) const BROKEN: (&str, &str) = ("a filter with a broken expression", "name~=(");

pub(crate) const BROKEN_THERE: Difference = differs(
    "a filter with a broken expression",
    There::Code(Code::Ok),
    "it matches nothing there, without a word",
);

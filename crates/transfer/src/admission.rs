//! Image admission: whether an image may come in under a name, by the policy and by verifier programs.
//!
//! ```text
//! name, descriptor ─▶ rule ─▶ signatures of the image, from its registry ─▶ verifiers ─▶ admitted
//! ```
//!
//! It is checked whenever a name is recorded for an image (it is the [`Gate`] of the image records), whatever does
//! so: a pull, an archive, a tree, a commit, another name, a client of containerd's API. A pull also checks at its
//! start, when nothing of the image is stored but its descriptor; that result then counts for its record.
//!
//! Signatures are where cosign puts them, in the repository of the name: under a tag derived from the digest, or as
//! referrers. A pull searches with its credentials; other callers have none. So that an image of a private registry
//! can get further names, a signature that was found once counts for all of its repository.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use metadata::{Gate, IsOpen};
use policy::{
    PAYLOAD_LEN_MAX, PAYLOAD_TYPE, Policy, PublicKey, Reader, SIGNATURE_ANNOTATION, SIGNATURE_ARTIFACT_TYPE,
    Verdict, Verifiers, tag_of_signatures,
};
use registry::{Connections, Keyring, Remote};
use stdx::Mutex;
use tokio::sync::Semaphore;
use types::{Descriptor, Digest, Error, ErrorKind, Reference, Result};

/// Signature manifests examined at most, beside the one under the tag.
const REFERRERS_MAX: usize = 64;
/// Signatures of one image examined at most.
const SIGNATURES_MAX: usize = 64;
/// Bounds the whole search: a registry may be silent about each.
const SEARCH_TIMEOUT: Duration = Duration::from_secs(600);

/// Results of [`Admission::check_ahead`] kept at most.
const AHEAD_MAX: usize = 64;

/// Signatures remembered at most.
const PROVEN_MAX: usize = 256;

/// Record checks at once; each blocks a thread of the pool that all calls share.
const CHECKS_MAX: usize = 32;
static CHECKS: Semaphore = Semaphore::const_new(CHECKS_MAX);

/// Decides about images. Clones share everything; the default admits every image.
#[derive(Clone, Default)]
pub struct Admission(Arc<Inner>);

#[derive(Default)]
struct Inner {
    criteria: Mutex<Arc<Criteria>>,
    connections: Connections,
    /// Images that pulls checked ahead, oldest first.
    ahead: Mutex<VecDeque<Admitted>>,
}

/// The result that an image may come in under a name.
struct Admitted {
    name: String,
    image: Digest,
    /// The criteria by which it was admitted.
    by: Arc<Criteria>,
}

/// The criteria for images: rules, verifier programs, and the signatures already found.
#[derive(Default)]
struct Criteria {
    policy: Policy,
    verifiers: Option<Verifiers>,
    reader: Reader,
    /// Signatures that were found, oldest first.
    proven: Mutex<VecDeque<Proven>>,
}

/// A key of a rule signed an image as one of a repository. This never expires.
#[derive(PartialEq)]
struct Proven {
    scope: String,
    repository: String,
    image: Digest,
}

impl Criteria {
    fn new(policy: Policy, verifiers: Option<Verifiers>) -> Arc<Criteria> {
        Arc::new(Criteria { policy, verifiers, ..Criteria::default() })
    }

    fn is_proven(&self, what: &Proven) -> bool {
        self.proven.lock().contains(what)
    }

    fn prove(&self, what: Proven) {
        let mut proven = self.proven.lock();
        proven.retain(|known| *known != what);
        if proven.len() == PROVEN_MAX {
            proven.pop_front();
        }
        proven.push_back(what);
    }

    /// Whether an image under this name is admitted without any check.
    fn lets_all_in(&self, name: &str) -> Result<bool> {
        Ok(self.verifiers.is_none() && self.policy.verdict(name)? == Verdict::Accept)
    }
}

/// The checks for an image under one name: signatures, these programs, or both.
struct Asked {
    criteria: Arc<Criteria>,
    programs: Vec<PathBuf>,
}

impl Admission {
    pub fn new(policy: Policy, verifiers: Option<Verifiers>, connections: Connections) -> Admission {
        let criteria = Mutex::new(Criteria::new(policy, verifiers));
        Admission(Arc::new(Inner { criteria, connections, ahead: Mutex::default() }))
    }

    /// Replaces the policy and the programs. Results of pulls that checked ahead are dropped: their records are
    /// checked anew.
    pub fn reconfigure(&self, policy: Policy, verifiers: Option<Verifiers>) {
        *self.0.criteria.lock() = Criteria::new(policy, verifiers);
        self.0.ahead.lock().clear();
    }

    fn criteria(&self) -> Arc<Criteria> {
        self.0.criteria.lock().clone()
    }

    /// Checks for a pull, which comes from `remote` and has its credentials. The result counts once more, for the
    /// record of the same name and image.
    ///
    /// `PermissionDenied`, naming the rule or the verifier, if the image may not come in.
    pub async fn check_ahead(&self, name: &str, image: &Descriptor, remote: &Remote) -> Result<()> {
        let Some(asked) = self.asked(name).await? else { return Ok(()) };
        let by = asked.criteria.clone();
        self.check(asked, name, image, Some(remote)).await?;
        let mut ahead = self.0.ahead.lock();
        if ahead.len() == AHEAD_MAX {
            ahead.pop_front();
        }
        ahead.push_back(Admitted { name: name.to_owned(), image: image.digest.clone(), by });
        Ok(())
    }

    /// Checks for a caller that is about to record an image. Blocks; must be called on a thread of a runtime.
    fn check_record(&self, name: &str, image: &Descriptor) -> Result<()> {
        if self.criteria().lets_all_in(name)? {
            return Ok(());
        }
        let runtime = tokio::runtime::Handle::try_current()
            .map_err(|error| Error::internal("ask about an image outside of a runtime").with_source(error))?;
        // On a thread of its own: a worker thread of the runtime must not block on it.
        let check = || {
            runtime.block_on(async {
                match self.asked(name).await? {
                    Some(asked) if !self.was_admitted(name, &image.digest, &asked.criteria) => {
                        let _place = CHECKS.try_acquire().map_err(|_| too_many(name))?;
                        self.check(asked, name, image, None).await
                    }
                    _ => Ok(()),
                }
            })
        };
        let checked = std::thread::scope(|scope| scope.spawn(check).join());
        checked.unwrap_or_else(|_| Err(Error::internal("the check of an image broke down")))
    }

    /// The checks for an image under this name; `None` if there are none.
    async fn asked(&self, name: &str) -> Result<Option<Asked>> {
        let criteria = self.criteria();
        let accepts = criteria.policy.verdict(name)? == Verdict::Accept;
        let programs = match &criteria.verifiers {
            Some(verifiers) => criteria.reader.programs(verifiers).await?,
            None => Vec::new(),
        };
        Ok((!accepts || !programs.is_empty()).then_some(Asked { criteria, programs }))
    }

    /// Whether a pull was admitted ahead by the current criteria. Consumes that result.
    fn was_admitted(&self, name: &str, digest: &Digest, now: &Arc<Criteria>) -> bool {
        let mut ahead = self.0.ahead.lock();
        let at = ahead.iter().position(|admitted| {
            admitted.name == name && admitted.image == *digest && Arc::ptr_eq(&admitted.by, now)
        });
        at.and_then(|at| ahead.remove(at)).is_some()
    }

    async fn check(
        &self,
        Asked { criteria, programs }: Asked,
        name: &str,
        image: &Descriptor,
        remote: Option<&Remote>,
    ) -> Result<()> {
        if let Verdict::Signed { rule, keys, repository } = criteria.policy.verdict(name)? {
            let proven = Proven { scope: rule.scope.clone(), repository, image: image.digest.clone() };
            let searched = match remote {
                Some(remote) => Search::new(remote, keys, &proven).run().await,
                None if criteria.is_proven(&proven) => Ok(()),
                None => {
                    let reference: Reference = name.parse()?;
                    let remote = self.0.connections.remote(&reference, &Keyring::default())?;
                    Search { is_anonymous: true, ..Search::new(&remote, keys, &proven) }.run().await
                }
            };
            searched.map_err(|error| {
                rule.refusal(name, &format!("{} must be signed", image.digest)).with_source(error)
            })?;
            criteria.prove(proven);
        }
        match &criteria.verifiers {
            Some(verifiers) => verifiers.check(&programs, name, image).await,
            None => Ok(()),
        }
    }
}

impl Gate for Admission {
    fn admit(&self, name: &str, image: &Descriptor) -> Result<()> {
        self.check_record(name, image)
    }

    fn is_open<'a>(&'a self, name: &'a str) -> IsOpen<'a> {
        Box::pin(async move { matches!(self.asked(name).await, Ok(None)) })
    }
}

fn too_many(name: &str) -> Error {
    Error::resource_exhausted(format!(
        "{CHECKS_MAX} images are being checked already before {name}; try again when one of them is done"
    ))
}

/// A search for a signature of an image for a repository, by one of the keys.
struct Search<'a> {
    remote: &'a Remote,
    /// Whether there are no credentials.
    is_anonymous: bool,
    keys: &'a [PublicKey],
    repository: &'a str,
    image: &'a Digest,
    /// The tag of cosign's signatures.
    tag: String,
    signatures: Count,
    manifests: Count,
    /// Why the last signature was rejected.
    wrong: Option<Error>,
    /// The first error in looking for signatures.
    unseen: Option<Error>,
}

/// How many of the existing ones were examined.
#[derive(Default)]
struct Count {
    looked: usize,
    there: usize,
}

impl<'a> Search<'a> {
    fn new(remote: &'a Remote, keys: &'a [PublicKey], wanted: &'a Proven) -> Search<'a> {
        let Proven { repository, image, .. } = wanted;
        Search {
            remote,
            is_anonymous: false,
            keys,
            repository,
            image,
            tag: tag_of_signatures(image),
            signatures: Count::default(),
            manifests: Count::default(),
            wrong: None,
            unseen: None,
        }
    }

    /// Searches until a valid signature is found. The error says why none counts.
    async fn run(mut self) -> Result<()> {
        match tokio::time::timeout(SEARCH_TIMEOUT, self.find()).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(self.failure()),
            Err(_) => {
                self.note(Error::deadline_exceeded(format!("it took more than {SEARCH_TIMEOUT:?}")));
                Err(self.failure())
            }
        }
    }

    /// Searches the manifest under the tag, then those of referrers. An error in one place does not end the search.
    async fn find(&mut self) -> bool {
        match self.remote.resolve_tag(&self.tag).await {
            Ok(tagged) => {
                self.manifests = Count { looked: 1, there: 1 };
                if self.is_in(&tagged.descriptor.media_type, &tagged.bytes).await {
                    return true;
                }
            }
            Err(error) => self.note(error),
        }
        let referrers = match self.remote.referrers(self.image, Some(SIGNATURE_ARTIFACT_TYPE)).await {
            Ok(referrers) => referrers,
            Err(error) => {
                self.note(error);
                return false;
            }
        };
        self.manifests.there += referrers.len();
        for referrer in referrers.iter().take(REFERRERS_MAX) {
            if self.signatures.looked == SIGNATURES_MAX {
                return false;
            }
            self.manifests.looked += 1;
            match self.remote.manifest(referrer).await {
                Ok(bytes) if self.is_in(&referrer.media_type, &bytes).await => return true,
                Ok(_) => {}
                Err(error) => self.note(error),
            }
        }
        false
    }

    /// Whether a layer of a manifest is a valid signature.
    async fn is_in(&mut self, media_type: &str, bytes: &[u8]) -> bool {
        let layers = match layers(media_type, bytes) {
            Ok(layers) => layers,
            Err(error) => {
                self.note(error);
                return false;
            }
        };
        self.signatures.there += layers.len();
        for layer in layers.iter().take(SIGNATURES_MAX - self.signatures.looked) {
            self.signatures.looked += 1;
            let checked = match fetch(self.remote, layer).await {
                Ok((payload, signature)) => {
                    policy::check(&payload, &signature, self.keys, self.repository, self.image)
                }
                Err(error) => Err(error),
            };
            match checked {
                Ok(()) => return true,
                Err(error) => self.wrong = Some(error),
            }
        }
        false
    }

    /// Keeps the first error in looking for signatures, except `NotFound`.
    fn note(&mut self, error: Error) {
        let error = match error.kind() {
            ErrorKind::NotFound => return,
            ErrorKind::PermissionDenied | ErrorKind::Unauthenticated if self.is_anonymous => {
                error.context(format!(
                    "the registry was asked without credentials, which only a pull brings; after \
                     `hoist pull {}@{}` the image can have other names of this repository",
                    self.remote.reference().name(),
                    self.image
                ))
            }
            _ => error,
        };
        self.unseen.get_or_insert(error);
    }

    fn failure(self) -> Error {
        let Search { tag, signatures, manifests, wrong, unseen, .. } = self;
        let failure = match (wrong, unseen) {
            (Some(wrong), None) => wrong,
            (Some(wrong), Some(unseen)) => Error::permission_denied(format!(
                "{}; and not all signatures could be looked at: {}",
                wrong.chain(),
                unseen.chain()
            )),
            (None, None) => Error::not_found(format!(
                "there is no signature, neither under the tag {tag} nor as a referrer"
            )),
            // Some registries answer "forbidden" for what does not exist.
            (None, Some(unseen)) => unseen.context(format!(
                "there is no signature that the registry shows, neither under the tag {tag} nor as a referrer"
            )),
        };
        if signatures.looked == signatures.there && manifests.looked == manifests.there {
            return failure;
        }
        failure.context(format!(
            "{} of {} signatures were looked at, in {} of {} manifests; remove from the registry those that count no more",
            signatures.looked, signatures.there, manifests.looked, manifests.there
        ))
    }
}

fn layers(media_type: &str, bytes: &[u8]) -> Result<Vec<Descriptor>> {
    match image::Node::parse(media_type, bytes)? {
        image::Node::Manifest(manifest) => Ok(manifest.layers),
        image::Node::Index(_) => {
            Err(Error::invalid_argument("signatures are in an index, not in a manifest"))
        }
    }
}

/// The payload and the signature in a layer.
async fn fetch(remote: &Remote, layer: &Descriptor) -> Result<(Vec<u8>, String)> {
    let no =
        |why: &str| Error::permission_denied(format!("the signature {} cannot be used: {why}", layer.digest));
    if layer.media_type != PAYLOAD_TYPE {
        return Err(no(&format!("its type is {:?}", layer.media_type)));
    }
    if layer.size > PAYLOAD_LEN_MAX {
        return Err(no("it is too large"));
    }
    let signature = layer.annotations.get(SIGNATURE_ANNOTATION).ok_or_else(|| no("it has none"))?;
    Ok((remote.small_blob(layer).await?, signature.clone()))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn verifiers(dir: &Path, script: &str) -> Option<Verifiers> {
        std::fs::create_dir(dir).unwrap();
        testkit::executable(&dir.join("verify"), &format!("#!/bin/sh\n{script}\n"));
        Some(Verifiers { directory: dir.into(), count_max: None, timeout: Duration::from_secs(60) })
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_open_admission_refuses_no_image() {
        let dir = tempfile::TempDir::new().unwrap();
        let (name, image) = ("quay.io/team/app:1", Descriptor::new("application/x", Digest::of(b"image"), 5));
        let check = async |gate: &dyn Gate, is_open: bool, admits: bool| {
            assert_eq!(gate.is_open(name).await, is_open);
            assert_eq!(gate.admit(name, &image).is_ok(), admits);
        };
        let gate = |policy, verifiers| Admission::new(policy, verifiers, Connections::default());
        check(&gate(Policy::default(), None), true, true).await;
        check(&gate(Policy::new(Vec::new(), true).unwrap(), None), false, false).await;
        // Programs must be run, whatever they answer.
        let [yes, no] = [("yes", "exit 0"), ("no", "exit 1")]
            .map(|(folder, script)| verifiers(&dir.path().join(folder), script));
        check(&gate(Policy::default(), yes), false, true).await;
        check(&gate(Policy::default(), no), false, false).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_result_of_replaced_criteria_does_not_count() {
        let dir = tempfile::TempDir::new().unwrap();
        let (asked, go) = (dir.path().join("asked"), dir.path().join("go"));
        for fifo in [&asked, &go] {
            assert!(std::process::Command::new("mkfifo").arg(fifo).status().unwrap().success());
        }
        let yes = format!("echo > {}; cat {} > /dev/null; exit 0", asked.display(), go.display());
        let first = verifiers(&dir.path().join("first"), &yes);
        let admission = Admission::new(Policy::default(), first, Connections::default());
        let name = "quay.io/team/app:1";
        let image = Descriptor::new("application/x", Digest::of(b"image"), 5);
        let pull = {
            let (admission, image) = (admission.clone(), image.clone());
            let remote = Remote::new(&name.parse().unwrap(), None);
            tokio::spawn(async move { admission.check_ahead(name, &image, &remote).await })
        };
        tokio::task::spawn_blocking(move || std::fs::read(asked).unwrap()).await.unwrap();
        admission.reconfigure(Policy::default(), verifiers(&dir.path().join("second"), "exit 1"));
        tokio::task::spawn_blocking(move || std::fs::write(go, "go").unwrap()).await.unwrap();
        pull.await.unwrap().unwrap();
        let recorded = tokio::task::spawn_blocking(move || admission.check_record(name, &image));
        assert_eq!(recorded.await.unwrap().unwrap_err().kind(), ErrorKind::PermissionDenied);
    }
}

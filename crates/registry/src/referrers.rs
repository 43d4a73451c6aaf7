//! The referrers of a manifest: signatures, SBOMs, attestations (distribution-spec 1.1, "Listing Referrers").
//!
//! Registries with the referrers API maintain the list themselves. On others it is an index under the tag
//! `sha256-HEX`, which each client that pushes a referrer updates: of two concurrent updates one may be lost.

use std::sync::Arc;
use std::time::Duration;

use http::header::{ACCEPT, CONTENT_TYPE, LINK};
use http::{HeaderValue, StatusCode};
use percent_encoding::utf8_percent_encode;
use types::descriptor::media_type;
use types::spec::image::Index;
use types::{Descriptor, Digest, Error, ErrorKind, Result};

use crate::endpoint::{Answer, Endpoint};
use crate::host::Capability;
use crate::percent::QUERY;
use crate::push::Push;
use crate::remote::Remote;
use crate::request::Request;
use crate::transport::read_body;

/// Bytes of a page at most.
const PAGE_LEN_MAX: usize = 4 << 20;
/// Pages read at most.
const PAGES_MAX: usize = 64;
/// Descriptors of a list at most: a malicious registry must not exhaust memory.
const REFERRERS_MAX: usize = 4096;
/// For all pages together.
const LIST_TIMEOUT: Duration = Duration::from_secs(300);

impl Remote {
    /// The manifests whose subject is `subject`, of one artifact type or of all.
    pub async fn referrers(&self, subject: &Digest, artifact_type: Option<&str>) -> Result<Vec<Descriptor>> {
        let listed = async {
            if let Some(found) = self.list_referrers(subject, artifact_type).await? {
                return Ok(found);
            }
            let index = self.fallback(subject).await?;
            Ok(index.map_or_else(Vec::new, |index| of_type(index, artifact_type).collect()))
        };
        listed.await.map_err(|error: Error| error.context(format!("list what refers to {subject}")))
    }

    /// Lists by the API; `None` if no host has it. A mirror may lack the API or some referrers: the next host is
    /// asked as long as none are found, and the last host's answer counts.
    async fn list_referrers(&self, subject: &Digest, kind: Option<&str>) -> Result<Option<Vec<Descriptor>>> {
        let mut last = Ok(None);
        for endpoint in self.endpoints(Capability::Referrers) {
            let listing = list(&endpoint, subject, kind);
            last = tokio::time::timeout(LIST_TIMEOUT, listing).await.unwrap_or_else(|_| {
                Err(Error::deadline_exceeded(format!("{} took more than {LIST_TIMEOUT:?}", endpoint.name())))
            });
            if last.as_ref().is_ok_and(|found| found.as_ref().is_some_and(|found| !found.is_empty())) {
                break;
            }
        }
        last
    }

    /// The index under the fallback tag; `None` if there is none.
    async fn fallback(&self, subject: &Digest) -> Result<Option<Index>> {
        read_index(self.send(&fallback_request(subject, Capability::Resolve)).await).await
    }
}

/// Requests the index under the fallback tag.
fn fallback_request(subject: &Digest, capability: Capability) -> Request {
    Request::get(format!("manifests/{}", fallback_tag(subject)), capability)
        .header(ACCEPT, HeaderValue::from_static(media_type::OCI_INDEX))
}

/// Parses the index of an answer; `None` for `NotFound`.
async fn read_index(answer: Result<Answer>) -> Result<Option<Index>> {
    match answer {
        Err(error) if error.is(ErrorKind::NotFound) => Ok(None),
        answer => parse(&read_body(answer?.into_body(), PAGE_LEN_MAX).await?).map(Some),
    }
}

/// Lists the referrers at one host; `None` if it lacks the API.
async fn list(
    endpoint: &Arc<Endpoint>,
    subject: &Digest,
    kind: Option<&str>,
) -> Result<Option<Vec<Descriptor>>> {
    let query =
        kind.map_or_else(String::new, |kind| format!("?artifactType={}", utf8_percent_encode(kind, QUERY)));
    let mut request = Request::get(format!("referrers/{subject}{query}"), Capability::Referrers);
    let mut found = Vec::new();
    for _ in 0..PAGES_MAX {
        let request_page = request.clone().header(ACCEPT, HeaderValue::from_static(media_type::OCI_INDEX));
        let answer = endpoint.send(&request_page).await?;
        let is_list = answer.headers().get(CONTENT_TYPE).is_some_and(|kind| {
            kind.to_str().is_ok_and(|kind| kind.split(';').next() == Some(media_type::OCI_INDEX))
        });
        match answer.status() {
            // Registries without the API answer in any of these ways.
            StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::BAD_REQUEST => {
                return Ok(None);
            }
            status if status.is_success() && !is_list => return Ok(None),
            _ => {}
        }
        let answer = answer.checked().await?;
        let next = next_page(&answer).map(|address| answer.resolve_url(address)).transpose()?;
        let page = parse(&read_body(answer.into_body(), PAGE_LEN_MAX).await?)?;
        found.extend(of_type(page, kind));
        if found.len() > REFERRERS_MAX {
            return Err(Error::resource_exhausted(format!("the list has more than {REFERRERS_MAX} entries")));
        }
        match next {
            Some(location) => request = Request::at(http::Method::GET, location, Capability::Referrers),
            None => return Ok(Some(found)),
        }
    }
    Err(Error::resource_exhausted(format!("the list has more than {PAGES_MAX} pages")))
}

impl Push {
    /// Adds a manifest to the list of its subject, on a registry without the API.
    pub async fn note_referrer(&self, subject: &Digest, referrer: Descriptor) -> Result<()> {
        let noted = async {
            // Read from the host that is written to: a mirror's copy may lack entries, which would be lost.
            let request = fallback_request(subject, Capability::Push);
            let found = read_index(self.endpoint().ask(&request).await).await?;
            let mut index = found.unwrap_or_else(|| Index {
                schema_version: 2,
                media_type: Some(media_type::OCI_INDEX.to_owned()),
                artifact_type: None,
                manifests: Vec::new(),
                subject: None,
                annotations: std::collections::BTreeMap::new(),
            });
            if index.manifests.iter().any(|known| known.digest == referrer.digest) {
                return Ok(());
            }
            index.manifests.push(referrer);
            let bytes = serde_json::to_vec(&index).expect("an index can be written");
            self.document(&fallback_tag(subject), media_type::OCI_INDEX, bytes).await.map(drop)
        };
        noted.await.map_err(|error: Error| error.context(format!("add to what refers to {subject}")))
    }
}

/// Registries may ignore the filter parameter.
fn of_type(index: Index, artifact_type: Option<&str>) -> impl Iterator<Item = Descriptor> {
    let is_wanted = move |referrer: &Descriptor| {
        artifact_type.is_none_or(|wanted| referrer.artifact_type.as_deref() == Some(wanted))
    };
    index.manifests.into_iter().filter(is_wanted)
}

fn parse(bytes: &[u8]) -> Result<Index> {
    serde_json::from_slice(bytes)
        .map_err(|error| Error::data_loss("the list of referrers cannot be read").with_source(error))
}

/// `sha256-HEX`: a tag has no colon, and at most 32 characters of the algorithm and 64 of the digest
/// (distribution-spec 1.1, "Referrers Tag Schema").
fn fallback_tag(subject: &Digest) -> String {
    format!("{:.32}-{:.64}", subject.algorithm().name(), subject.hex())
}

/// The URL of the next page (RFC 8288: `<URL>; rel="next"`).
pub(crate) fn next_page(answer: &Answer) -> Option<&str> {
    let links = answer.headers().get_all(LINK).iter().filter_map(|link| link.to_str().ok());
    links.flat_map(|link| link.split(',')).find_map(|link| {
        let (address, rest) = link.trim().strip_prefix('<')?.split_once('>')?;
        let is_next = rest.split(';').any(|part| matches!(part.trim(), r#"rel="next""# | "rel=next"));
        is_next.then_some(address)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_stand_for_digests() {
        let digest = Digest::of(b"x");
        assert_eq!(fallback_tag(&digest), format!("sha256-{}", digest.hex()));
        let long: Digest = format!("sha512:{}{}", "a".repeat(64), "b".repeat(64)).parse().unwrap();
        assert_eq!(fallback_tag(&long), format!("sha512-{}", "a".repeat(64)));
    }

    #[test]
    fn types_are_escaped() {
        let escaped = |text| utf8_percent_encode(text, QUERY).to_string();
        assert_eq!(escaped("application/vnd.x+json"), "application/vnd.x%2Bjson");
        assert_eq!(escaped("a&b=c d"), "a%26b%3Dc%20d");
        assert_eq!(escaped("a-b._~/:,\u{e4}"), "a-b._~/%3A%2C%C3%A4");
    }
}

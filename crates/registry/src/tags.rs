//! The tags of a repository (distribution-spec 1.1, "Listing Tags").

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use serde::Deserialize;
use types::{Error, Reference, Result};

use crate::endpoint::Endpoint;
use crate::host::Capability;
use crate::referrers::next_page;
use crate::remote::Remote;
use crate::request::Request;
use crate::transport::read_body;

/// Bytes of a page at most.
const PAGE_LEN_MAX: usize = 4 << 20;
/// Pages read at most.
const PAGES_MAX: usize = 1024;
/// Tags of a list at most.
const TAGS_MAX: usize = 16_384;
/// For all pages together.
const LIST_TIMEOUT: Duration = Duration::from_secs(300);

#[derive(Deserialize)]
struct Page {
    /// Some registries write null for an empty list.
    tags: Option<Vec<String>>,
}

impl Remote {
    /// The tags of the repository, sorted, without duplicates. The registry is asked before its mirrors, which need
    /// not have all. `NotFound` and `PermissionDenied` name host and repository; `ResourceExhausted` if there are too
    /// many tags or pages.
    pub async fn tags(&self) -> Result<Vec<String>> {
        let mut endpoints = self.endpoints(Capability::Resolve);
        endpoints.sort_by_key(|endpoint| endpoint.host().is_mirror);
        let mut failures = Vec::new();
        for endpoint in endpoints {
            let listing = list(&endpoint, self.reference());
            let listed = tokio::time::timeout(LIST_TIMEOUT, listing).await.unwrap_or_else(|_| {
                Err(Error::deadline_exceeded(format!("{} took more than {LIST_TIMEOUT:?}", endpoint.name())))
            });
            match listed {
                Ok(tags) => return Ok(tags.into_iter().collect()),
                Err(error) => failures.push((endpoint, error)),
            }
        }
        let error = self.all_failed(failures, Capability::Resolve);
        Err(error.context(format!("list the tags of {}", self.reference().name())))
    }
}

/// Lists the tags at one host.
async fn list(endpoint: &Arc<Endpoint>, reference: &Reference) -> Result<BTreeSet<String>> {
    let mut request = Request::get("tags/list", Capability::Resolve);
    let mut tags = BTreeSet::new();
    for _ in 0..PAGES_MAX {
        let answer = endpoint.ask(&request).await?;
        let next = next_page(&answer).map(|address| answer.resolve_url(address)).transpose()?;
        let bytes = read_body(answer.into_body(), PAGE_LEN_MAX).await?;
        let page: Page = serde_json::from_slice(&bytes).map_err(|error| {
            Error::data_loss(format!("the list of {} cannot be read", endpoint.name())).with_source(error)
        })?;
        for tag in page.tags.unwrap_or_default() {
            if !is_tag(reference, &tag) {
                let tag: String = tag.chars().take(128).collect();
                return Err(Error::data_loss(format!("{} lists {tag:?}, which is no tag", endpoint.name())));
            }
            tags.insert(tag);
        }
        if tags.len() > TAGS_MAX {
            return Err(Error::resource_exhausted(format!("the list has more than {TAGS_MAX} entries")));
        }
        match next {
            Some(location) => request = Request::at(Method::GET, location, Capability::Resolve),
            None => return Ok(tags),
        }
    }
    Err(Error::resource_exhausted(format!("the list has more than {PAGES_MAX} pages")))
}

/// Whether a registry's tag is valid in a reference.
fn is_tag(reference: &Reference, tag: &str) -> bool {
    let named = format!("{}:{tag}", reference.name()).parse::<Reference>();
    named.is_ok_and(|named| named.tag() == Some(tag) && named.digest().is_none())
}

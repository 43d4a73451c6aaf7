//! A registry with mirrors that send wrong bytes: the pull continues at the next host.

use std::fs;

use metadata::Image;
use registry::{Connections, Keyring, Options, Remote};
use tempfile::TempDir;
use testkit::{Asked, Fault, FaultProxy, Layout, Registry, digest_of};
use types::Result;

use crate::fixture::Stores;

/// An image of two layers in a registry, reached through a faulty mirror and directly.
pub(crate) struct Site {
    /// Digests of the layers.
    pub(crate) layers: Vec<String>,
    config: String,
    pub(crate) mirror: FaultProxy,
    pub(crate) own: FaultProxy,
    directory: TempDir,
    _registry: Registry,
}

impl Site {
    pub(crate) fn new(
        at_mirror: impl Fn(&Asked) -> Vec<Fault> + Send + Sync + 'static,
        at_own: impl Fn(&Asked) -> Vec<Fault> + Send + Sync + 'static,
    ) -> Site {
        let layout = Layout::new();
        let layers = [layout.layer("one", 300_000), layout.layer("two", 200_000)];
        let image = layout.image("amd64", &layers);
        layout.tag(&image, "one");
        let registry = Registry::start();
        registry.push(layout.path(), "one", "some/image:1");
        let manifest = fs::read(layout.blob_path(&image)).expect("a blob");
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).expect("JSON");
        let (mirror, own) = (FaultProxy::start(&registry, at_mirror), FaultProxy::start(&registry, at_own));
        let directory = TempDir::new().expect("a temporary directory");
        let folder = directory.path().join("r.test");
        fs::create_dir(&folder).expect("a writable directory");
        let text = format!("server = 'http://{}'\n[host.'http://{}']\n", own.host(), mirror.host());
        fs::write(folder.join("hosts.toml"), text).expect("a writable directory");
        Site {
            layers: layers.iter().map(digest_of).collect(),
            config: digest_of(&manifest["config"]),
            mirror,
            own,
            directory,
            _registry: registry,
        }
    }

    fn remote(&self) -> Remote {
        let directories = vec![self.directory.path().to_owned()];
        let connections = Connections::new(Options { directories, ..Options::default() });
        let reference = "r.test/some/image:1".parse().expect("a reference");
        connections.remote(&reference, &Keyring::new()).expect("a file that can be read")
    }

    pub(crate) async fn pull(&self, stores: &Stores) -> Result<Image> {
        stores.pull_from(self.remote(), stores.caller(), "linux/amd64").await
    }

    /// Reads of a blob at the mirror and at the registry itself.
    pub(crate) fn reads(&self, blob: &str) -> (usize, usize) {
        (self.mirror.reads(blob).len(), self.own.reads(blob).len())
    }
}

fn none(_: &Asked) -> Vec<Fault> {
    Vec::new()
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_of_a_mirror_are_fetched_from_the_next_host_in_the_same_pull() {
    let Some(stores) = Stores::open() else { return };
    let spoil = |asked: &Asked| match asked.blob() {
        Some(_) => vec![Fault::Corrupt(100)],
        None => Vec::new(),
    };
    let site = Site::new(spoil, none);
    site.pull(&stores).await.expect("the registry itself is honest");
    assert_eq!(site.reads(&site.config), (1, 1));
    assert!(site.layers.iter().all(|layer| site.reads(layer).1 == 1), "each came from the registry once");
    // The config revealed the mirror, so it was not asked for layers.
    assert!(site.layers.iter().all(|layer| site.reads(layer).0 == 0));
    let expected = Stores::open().expect("root, as before");
    Site::new(none, none).pull(&expected).await.expect("nothing is wrong");
    assert_eq!(stores.left(), expected.left(), "nothing is left of the wrong bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_spoilt_is_fetched_anew_from_its_beginning() {
    let Some(stores) = Stores::open() else { return };
    // Offsets past the config's length: only layers are that long.
    let spoil = |asked: &Asked| match asked.blob() {
        Some(_) => vec![Fault::Corrupt(150_000)],
        None => Vec::new(),
    };
    let site = Site::new(spoil, none);
    site.pull(&stores).await.expect("the registry itself is honest");
    for layer in &site.layers {
        let (at_mirror, at_own) = site.reads(layer);
        assert!(at_mirror <= 1 && at_own == 1, "{at_mirror} and {at_own}");
        assert_eq!(site.own.reads(layer)[0].asked.start(), None, "none of the mirror's bytes is kept");
    }
    assert_eq!(site.reads(&site.config), (1, 0), "the mirror is believed until it lies");
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_of_two_hosts_accuse_neither() {
    let Some(stores) = Stores::open() else { return };
    // The mirror is honest but breaks off once; the registry sends wrong bytes.
    let breaking = |asked: &Asked| match (asked.blob(), asked.before) {
        (Some(_), 0) => vec![Fault::Cut(150_000)],
        _ => Vec::new(),
    };
    let site = Site::new(breaking, |asked| match asked.blob() {
        Some(_) => vec![Fault::Corrupt(180_000)],
        None => Vec::new(),
    });
    site.pull(&stores).await.expect("the mirror is honest");
    for layer in &site.layers {
        let starts: Vec<_> = site.mirror.reads(layer).iter().map(|read| read.asked.start()).collect();
        assert_eq!(starts, [None, None], "it was asked once more, for all of it");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn when_every_host_lies_each_is_named() {
    let Some(stores) = Stores::open() else { return };
    let spoil = |asked: &Asked| match asked.blob() {
        Some(_) => vec![Fault::Corrupt(150_000)],
        None => Vec::new(),
    };
    let site = Site::new(spoil, spoil);
    let said = site.pull(&stores).await.expect_err("nobody is honest").chain();
    for words in [format!("from {}", site.mirror.host()), "from r.test have the digest".to_owned()] {
        assert!(said.contains(&words), "{words:?} is not in: {said}");
    }
    assert_eq!(stores.left(), crate::fixture::NOTHING);
}

//! OCI layouts put together by hand: small images whose every byte a test knows.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;
use types::Digest;
use types::descriptor::media_type;

/// A layout in a temporary directory. Descriptors are JSON, for tests to twist before they refer to them.
pub struct Layout(TempDir);

impl Layout {
    pub fn new() -> Layout {
        let dir = TempDir::with_prefix("layout-").expect("a temporary directory");
        fs::create_dir_all(dir.path().join("blobs/sha256")).expect("a writable directory");
        fs::write(dir.path().join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)
            .expect("a writable directory");
        let layout = Layout(dir);
        layout.write_tags(&json!([]));
        layout
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Stores a blob; gives back its descriptor.
    pub fn blob(&self, kind: &str, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes);
        let path = self.path().join("blobs/sha256").join(digest.hex());
        fs::write(path, bytes).expect("a writable directory");
        json!({"mediaType": kind, "digest": digest.to_string(), "size": bytes.len()})
    }

    pub fn document(&self, kind: &str, document: &Value) -> Value {
        self.blob(kind, document.to_string().as_bytes())
    }

    /// A layer of one file, `NAME`, with `len` bytes that do not compress and depend on the name alone.
    pub fn layer(&self, name: &str, len: usize) -> Value {
        self.blob(media_type::OCI_LAYER, &tar(name, &noise(name, len)))
    }

    /// An image for `linux/ARCHITECTURE` of such layers.
    pub fn image(&self, architecture: &str, layers: &[Value]) -> Value {
        let diff_ids: Vec<&Value> = layers.iter().map(|layer| &layer["digest"]).collect();
        let config = json!({
            "architecture": architecture, "os": "linux", "config": {"Cmd": ["sh"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = self.document(media_type::OCI_CONFIG, &config);
        let manifest = json!({
            "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "config": config, "layers": layers,
        });
        let mut descriptor = self.document(media_type::OCI_MANIFEST, &manifest);
        descriptor["platform"] = json!({"os": "linux", "architecture": architecture});
        descriptor
    }

    /// An artifact of a type, about a subject.
    pub fn artifact(&self, kind: &str, subject: &Value, content: &str) -> Value {
        let config = self.blob(media_type::OCI_EMPTY, b"{}");
        let layer = self.blob("text/plain", content.as_bytes());
        let manifest = json!({
            "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "artifactType": kind, "config": config,
            "layers": [layer], "subject": {
                "mediaType": subject["mediaType"], "digest": subject["digest"], "size": subject["size"],
            }, "annotations": {"made.by": "a test"},
        });
        self.document(media_type::OCI_MANIFEST, &manifest)
    }

    pub fn index(&self, children: &[Value]) -> Value {
        let index = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": children});
        self.document(media_type::OCI_INDEX, &index)
    }

    /// Names a descriptor in the layout.
    pub fn tag(&self, descriptor: &Value, tag: &str) {
        let text = fs::read(self.path().join("index.json")).expect("a file of ours");
        let mut index: Value = serde_json::from_slice(&text).expect("a file of ours");
        let mut descriptor = descriptor.clone();
        descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": tag});
        index["manifests"].as_array_mut().expect("a list").push(descriptor);
        self.write_tags(&index["manifests"]);
    }

    fn write_tags(&self, manifests: &Value) {
        let index = json!({"schemaVersion": 2, "manifests": manifests});
        fs::write(self.path().join("index.json"), index.to_string()).expect("a writable directory");
    }
}

impl Default for Layout {
    fn default() -> Layout {
        Layout::new()
    }
}

/// The digest in a descriptor.
#[track_caller]
pub fn digest_of(descriptor: &Value) -> String {
    descriptor["digest"].as_str().expect("a descriptor").to_owned()
}

/// Bytes that do not compress: the same for the same name.
pub fn noise(name: &str, len: usize) -> Vec<u8> {
    // FNV-1a of the name; never zero, where xorshift would stay.
    let seed = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&crate::images::xorshift(&mut state).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// A tar of one file (POSIX ustar).
fn tar(name: &str, content: &[u8]) -> Vec<u8> {
    let mut header = [0_u8; 512];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, name);
    put(100, "0000644");
    put(108, "0000000");
    put(116, "0000000");
    put(124, &format!("{:011o}", content.len()));
    put(136, "00000000000");
    put(148, "        ");
    put(156, "0");
    put(257, "ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut tar = header.to_vec();
    tar.extend_from_slice(content);
    // The end: two blocks of zeros after the padding.
    tar.resize(tar.len().next_multiple_of(512) + 1024, 0);
    tar
}

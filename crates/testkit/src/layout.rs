//! OCI layouts that tests put together by hand: small images of which every byte is known.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;
use types::Digest;
use types::descriptor::media_type;

use crate::run;

/// An OCI layout in a temporary directory. Descriptors are JSON values, which tests may change before they refer to
/// them.
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

    /// Stores a blob and returns its descriptor.
    pub fn blob(&self, kind: &str, bytes: &[u8]) -> Value {
        let digest = Digest::of(bytes);
        let path = self.path().join("blobs/sha256").join(digest.hex());
        fs::write(path, bytes).expect("a writable directory");
        json!({"mediaType": kind, "digest": digest.to_string(), "size": bytes.len()})
    }

    pub fn document(&self, kind: &str, document: &Value) -> Value {
        self.blob(kind, document.to_string().as_bytes())
    }

    /// Stores a layer with one file, `NAME`, whose `len` incompressible bytes depend on the name alone.
    pub fn layer(&self, name: &str, len: usize) -> Value {
        self.blob(media_type::OCI_LAYER, &tar(name, &noise(name, len)))
    }

    /// Stores an image of `linux/ARCHITECTURE` from layers of [`Layout::layer`], and returns its manifest's descriptor.
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

    /// Stores an image of uncompressed layers. The fields of `config` replace those of the image's config.
    pub fn image_of(&self, architecture: &str, layers: &[Vec<u8>], config: &Value) -> Value {
        let diff_ids: Vec<String> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
        let mut whole = json!({
            "architecture": architecture, "os": "linux", "config": {"Cmd": ["sh"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        for (key, value) in config.as_object().expect("an object") {
            whole[key] = value.clone();
        }
        let layers: Vec<Value> = layers.iter().map(|layer| self.blob(media_type::OCI_LAYER, layer)).collect();
        self.image_with(architecture, &layers, &whole)
    }

    /// Stores an image for this machine from layers that are stored already. `config` names their diff IDs.
    pub fn image_of_blobs(&self, layers: &[Value], config: &Value) -> Value {
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let mut whole = json!({"architecture": architecture, "os": "linux", "config": {"Cmd": ["sh"]}});
        for (key, value) in config.as_object().expect("an object") {
            whole[key] = value.clone();
        }
        self.image_with(architecture, layers, &whole)
    }

    fn image_with(&self, architecture: &str, layers: &[Value], config: &Value) -> Value {
        let config = self.document(media_type::OCI_CONFIG, config);
        let manifest = json!({
            "schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "config": config, "layers": layers,
        });
        let mut descriptor = self.document(media_type::OCI_MANIFEST, &manifest);
        descriptor["platform"] = json!({"os": "linux", "architecture": architecture});
        descriptor
    }

    /// The path of a blob.
    pub fn blob_path(&self, descriptor: &Value) -> PathBuf {
        self.path().join("blobs").join(digest_of(descriptor).replace(':', "/"))
    }

    /// Writes the layout as a tar archive.
    pub fn archive(&self, to: &Path) {
        run(Command::new("tar").arg("-cf").arg(to).arg("-C").arg(self.path()).arg(".")).ok();
    }

    /// Stores an artifact of the type `kind` with the subject `subject` (image-spec 1.1).
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

    /// Gives a descriptor a tag in the layout's index.
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

/// Incompressible bytes, the same for the same name.
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

/// A tar of one file.
fn tar(name: &str, content: &[u8]) -> Vec<u8> {
    archive_of(&[tar_entry(name, b'0', "", content)])
}

/// A tar archive of files, `(path, content)`; a path that ends with a slash is a directory.
pub fn tar_of(files: &[(&str, &str)]) -> Vec<u8> {
    let entry = |(path, content): &(&str, &str)| {
        tar_entry(path, if path.ends_with('/') { b'5' } else { b'0' }, "", content.as_bytes())
    };
    archive_of(&files.iter().map(entry).collect::<Vec<_>>())
}

/// A tar archive of entries, with the two blocks of zeros at its end.
pub fn archive_of(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = entries.concat();
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

/// One tar entry, of any type and content.
pub fn tar_entry(path: &str, typeflag: u8, link: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = tar_header(path, typeflag, link, data.len() as u64);
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

/// A tar header (POSIX ustar) with this size, whatever follows it.
pub fn tar_header(path: &str, typeflag: u8, link: &str, size: u64) -> Vec<u8> {
    let mut header = [0_u8; 512];
    let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
    put(0, path);
    put(100, "0000644");
    put(108, "0000000");
    put(116, "0000000");
    put(124, &format!("{size:011o}"));
    put(136, "00000000000");
    put(148, "        ");
    put(157, link);
    put(257, "ustar\x0000");
    header[156] = typeflag;
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header.to_vec()
}

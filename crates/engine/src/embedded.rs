//! The image embedded in the program: `hello`, for trying Hoist without a registry.

use std::collections::BTreeMap;

use diff::tar::Writer;
use types::descriptor::media_type;
use types::spec::image::{ExecConfig, ImageConfig, Index, Manifest, RootFs};
use types::{Context, Descriptor, Digest, Error, Platform, Reference, Result};

use crate::Engine;

impl Engine {
    /// Imports the embedded image like any other archive.
    pub(crate) fn load_embedded(&self, name: &str) -> Result<Vec<metadata::Image>> {
        let program = self.parts().hello.filter(|_| name == "hello");
        let program = program
            .ok_or_else(|| Error::not_found(format!("no image {name:?} is embedded in this program")))?;
        let archive = self.parts().state.join(format!("embedded-{name}.tar"));
        std::fs::write(&archive, layout(program)?).context(|| format!("write {}", archive.display()))?;
        let parts = self.parts();
        let reference: Reference = name.parse()?;
        let imported =
            transfer::import(&parts.metadata, &self.0.caller, &parts.snapshotter, &archive, Some(&reference));
        let _ = std::fs::remove_file(&archive);
        imported
    }
}

/// An OCI layout with one layer with one file. Deterministic for a given program.
fn layout(program: &[u8]) -> Result<Vec<u8>> {
    let write = || -> std::io::Result<Vec<u8>> {
        let mut layer = Writer::new(Vec::new(), 0);
        for folder in ["dev", "proc", "sys", "etc", "tmp"] {
            layer.directory(folder)?;
        }
        layer.file("etc/passwd", 0o644, b"root:x:0:0:root:/:/hello\n")?;
        layer.file("etc/group", 0o644, b"root:x:0:\n")?;
        layer.file("hello", 0o755, program)?;
        let layer = layer.finish()?;

        let json = |value: serde_json::Result<Vec<u8>>| value.expect("plain data");
        let describe =
            |kind: &str, bytes: &[u8]| Descriptor::new(kind, Digest::of(bytes), bytes.len() as u64);
        let config = json(serde_json::to_vec(&ImageConfig {
            platform: Platform::host(),
            config: Some(ExecConfig { entrypoint: vec!["/hello".into()], ..ExecConfig::default() }),
            rootfs: RootFs { kind: "layers".into(), diff_ids: vec![Digest::of(&layer)] },
            ..ImageConfig::default()
        }));
        let manifest = json(serde_json::to_vec(&Manifest {
            schema_version: 2,
            media_type: Some(media_type::OCI_MANIFEST.into()),
            artifact_type: None,
            config: describe(media_type::OCI_CONFIG, &config),
            layers: vec![describe(media_type::OCI_LAYER, &layer)],
            subject: None,
            annotations: BTreeMap::new(),
        }));
        let index = json(serde_json::to_vec(&Index {
            schema_version: 2,
            media_type: Some(media_type::OCI_INDEX.into()),
            artifact_type: None,
            manifests: vec![describe(media_type::OCI_MANIFEST, &manifest)],
            subject: None,
            annotations: BTreeMap::new(),
        }));
        let mut archive = Writer::new(Vec::new(), 0);
        archive.file("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        for blob in [&layer, &config, &manifest] {
            archive.file(&format!("blobs/sha256/{}", Digest::of(blob).hex()), 0o644, blob)?;
        }
        archive.file("index.json", 0o644, &index)?;
        archive.finish()
    };
    write().context(|| "write the embedded image")
}

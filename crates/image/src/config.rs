//! Image configs, and chain ids.

use types::spec::image::ImageConfig;
use types::{Digest, Error, Result};

/// Parses a config without checking its layers.
pub fn read_config(bytes: &[u8]) -> Result<ImageConfig> {
    serde_json::from_slice(bytes)
        .map_err(|error| Error::invalid_argument("the image's config cannot be read").with_source(error))
}

/// Parses a config and checks that it has `layers` diff ids.
pub fn parse_config(bytes: &[u8], layers: usize) -> Result<ImageConfig> {
    let config = read_config(bytes)?;
    if config.rootfs.diff_ids.len() != layers {
        return Err(Error::invalid_argument(format!(
            "the image's config names {} layers, its manifest {layers}",
            config.rootfs.diff_ids.len()
        )));
    }
    Ok(config)
}

/// The chain id of each layer, lowest first (image-spec `config.md`, "Layer ChainID").
pub fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let next = match chain.last() {
            Some(below) => Digest::of(format!("{below} {diff_id}").as_bytes()),
            None => diff_id.clone(),
        };
        chain.push(next);
    }
    chain
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest;

    #[test]
    fn chains_are_made_as_the_specification_says() {
        let ids = [digest("a"), digest("b"), digest("c")];
        let chain = chain_ids(&ids);
        assert_eq!(chain[0], ids[0]);
        assert_eq!(chain[1], Digest::of(format!("{} {}", ids[0], ids[1]).as_bytes()));
        assert_eq!(chain[2], Digest::of(format!("{} {}", chain[1], ids[2]).as_bytes()));
    }
}

//! What `ampoule` is told.

use ampoule_store::{Digest, Image};
use serde_json::json;

/// An image that is in the cache now.
pub(crate) struct Answer {
    digest: Option<Digest>,
    manifest: Digest,
    was_cached: bool,
}

impl Answer {
    pub(crate) fn new(image: &Image, manifest: Digest, was_cached: bool) -> Self {
        Self {
            digest: image.digest(),
            manifest,
            was_cached,
        }
    }

    pub(crate) fn to_json(&self) -> String {
        let answer = json!({
            "digest": self.digest,
            "manifest": self.manifest,
            "was-cached": self.was_cached,
        });
        answer.to_string()
    }
}

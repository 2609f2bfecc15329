//! Manifests and indexes as registries and layouts have them: which parts an image has, before any of them is fetched.
//!
//! OCI image specification, "Image Manifest" and "Image Index", and what Docker called so before. Nothing in them is trusted: sizes are
//! bounded here, and digests hold whoever brings the parts to them.

use serde::Deserialize;

use crate::config::{Descriptor, Index, Manifest, Platform, architecture};
use crate::container::MAX_DOCUMENT;
use crate::digest::Digest;
use crate::error::Error;
use crate::tree::Limits;

/// Layers of an image; Docker makes 127 at most.
const MAX_LAYERS: usize = 512;

/// A part of an image, as another one names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Blob {
    /// Its digest.
    pub digest: Digest,
    /// How many bytes it has.
    pub size: u64,
}

/// What a manifest, or an index of manifests, leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Contents {
    /// An index: the manifest, or index again, for this machine.
    Manifest(Blob),
    /// A manifest.
    Image {
        /// The configuration.
        config: Blob,
        /// The layers, the lowest first.
        layers: Vec<Blob>,
    },
}

/// What tells the documents apart.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Outline {
    schema_version: Option<u64>,
    config: Option<Part>,
    manifests: Option<serde::de::IgnoredAny>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Part {
    #[serde(default)]
    media_type: String,
}

impl Contents {
    /// The most bytes of a manifest, an index or a configuration.
    pub const MAX_DOCUMENT: u64 = MAX_DOCUMENT;

    /// Reads a manifest or an index.
    ///
    /// # Errors
    /// It is damaged, of something that is no container image, not for this machine, or names more or larger parts than there may be.
    pub fn read(bytes: &[u8], limits: Limits) -> Result<Self, Error> {
        let what = "the manifest";
        let damaged = |source| Error::Document {
            what: what.into(),
            source,
        };
        let inconsistent = |fault| Error::Inconsistent {
            what: what.into(),
            fault,
        };
        if bytes.len() as u64 > MAX_DOCUMENT {
            return Err(inconsistent("is too long"));
        }
        let outline: Outline = serde_json::from_slice(bytes).map_err(damaged)?;
        if outline.schema_version.is_some_and(|version| version != 2) {
            return Err(inconsistent("is of a version that is no longer in use"));
        }
        let Some(part) = outline.config else {
            if outline.manifests.is_none() {
                return Err(inconsistent("names neither a configuration nor manifests"));
            }
            let index: Index = serde_json::from_slice(bytes).map_err(damaged)?;
            let chosen = for_platform(index.manifests)?;
            return Ok(Self::Manifest(blob(&chosen)));
        };
        if !is_config(&part.media_type) {
            return Err(Error::NotAnImage {
                media_type: part.media_type,
            });
        }
        let manifest: Manifest = serde_json::from_slice(bytes).map_err(damaged)?;
        if manifest.layers.len() > MAX_LAYERS {
            return Err(inconsistent("names too many layers"));
        }
        if manifest.config.size > MAX_DOCUMENT {
            return Err(Error::Inconsistent {
                what: "the configuration".into(),
                fault: "is too long",
            });
        }
        let sizes = manifest.layers.iter().map(|layer| layer.size);
        if sizes.fold(0, u64::saturating_add) > limits.max_image_size {
            return Err(Error::TooLarge {
                max: limits.max_image_size,
                unit: "bytes",
            });
        }
        Ok(Self::Image {
            config: blob(&manifest.config),
            layers: manifest.layers.iter().map(blob).collect(),
        })
    }
}

fn blob(descriptor: &Descriptor) -> Blob {
    Blob {
        digest: descriptor.digest,
        size: descriptor.size,
    }
}

/// Whether a manifest's configuration is that of a container image: registries have other things, too. Old ones say nothing.
fn is_config(media_type: &str) -> bool {
    matches!(
        media_type,
        "" | "application/vnd.oci.image.config.v1+json"
            | "application/vnd.docker.container.image.v1+json"
    )
}

pub(crate) fn is_index(descriptor: &Descriptor) -> bool {
    matches!(
        &descriptor.media_type[..],
        "application/vnd.oci.image.index.v1+json"
            | "application/vnd.docker.distribution.manifest.list.v2+json"
    )
}

/// The one for this machine.
pub(crate) fn for_platform(manifests: Vec<Descriptor>) -> Result<Descriptor, Error> {
    let suits = |descriptor: &Descriptor| match &descriptor.platform {
        Some(Platform {
            architecture: a,
            os,
        }) => os == "linux" && a == architecture(),
        None => true,
    };
    let platform = |descriptor: &Descriptor| match &descriptor.platform {
        Some(Platform { architecture, os }) => format!("{os}/{architecture}"),
        None => "any".into(),
    };
    let mut found: Vec<String> = manifests.iter().map(platform).collect();
    // Each has a second one of its provenance.
    found.retain(|platform| platform != "unknown/unknown");
    found.sort_unstable();
    found.dedup();
    manifests
        .into_iter()
        .find(suits)
        .ok_or_else(|| Error::Platform {
            wanted: format!("linux/{}", architecture()),
            found,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(byte: u8, size: i64) -> String {
        let digest = Digest::of(&[byte]);
        format!(r#""digest":"{digest}","size":{size}"#)
    }

    fn manifest(config: &str, layers: &[String]) -> Result<Contents, Error> {
        let layers: Vec<_> = layers.iter().map(|it| format!("{{{it}}}")).collect();
        let text = format!(
            r#"{{"schemaVersion":2,"config":{{{config}}},"layers":[{}]}}"#,
            layers.join(",")
        );
        let limits = Limits {
            max_image_size: 1000,
            ..Limits::default()
        };
        Contents::read(text.as_bytes(), limits)
    }

    fn fault(contents: Result<Contents, Error>) -> String {
        contents.unwrap_err().to_string()
    }

    #[test]
    fn the_parts_of_an_image_are_found() {
        let layers = [descriptor(1, 600), descriptor(2, 400)];
        let contents = manifest(&descriptor(0, 7), &layers).unwrap();
        let part = |byte: u8, size| Blob {
            digest: Digest::of(&[byte]),
            size,
        };
        let expected = Contents::Image {
            config: part(0, 7),
            layers: vec![part(1, 600), part(2, 400)],
        };
        assert_eq!(contents, expected);
    }

    #[test]
    fn more_than_may_be_is_refused_before_it_is_fetched() {
        let config = descriptor(0, 7);
        let many = vec![descriptor(1, 1); MAX_LAYERS + 1];
        assert!(fault(manifest(&config, &many)).contains("too many layers"));
        let large = [descriptor(1, 600), descriptor(2, 401)];
        assert!(fault(manifest(&config, &large)).contains("more than 1000 bytes"));
        let huge = [descriptor(1, i64::MAX), descriptor(2, i64::MAX)];
        let huge = [&huge[..], &huge[..]].concat();
        assert!(fault(manifest(&config, &huge)).contains("more than 1000 bytes"));
        let large = descriptor(0, MAX_DOCUMENT as i64 + 1);
        assert!(
            fault(manifest(&large, &[])).contains("the configuration of the image is too long")
        );
        let spaces = vec![b' '; MAX_DOCUMENT as usize + 1];
        let read = Contents::read(&spaces, Limits::default());
        assert!(fault(read).contains("too long"));
    }

    #[test]
    fn what_is_no_image_is_refused_by_its_name() {
        let read = |text: &str| Contents::read(text.as_bytes(), Limits::default());
        for text in [
            "",
            "{",
            "[]",
            "null",
            "<html>",
            r#"{"config":[],"layers":3}"#,
        ] {
            assert!(
                fault(read(text)).starts_with("cannot read the manifest"),
                "{text}"
            );
        }
        assert!(fault(read("{}")).contains("names neither"));
        let old = r#"{"schemaVersion":1,"name":"a","fsLayers":[]}"#;
        assert!(fault(read(old)).contains("no longer in use"));
        let helm = r#""mediaType":"application/vnd.cncf.helm.config.v1+json","#;
        let helm = manifest(&format!("{helm}{}", descriptor(0, 1)), &[]);
        assert!(fault(helm).contains("vnd.cncf.helm.config"));
        assert!(fault(manifest(&descriptor(0, -1), &[])).starts_with("cannot read the manifest"));
        let other = r#""digest":"sha512:00","size":1"#;
        assert!(fault(manifest(other, &[])).starts_with("cannot read the manifest"));
    }

    #[test]
    fn an_index_leads_to_this_machines_manifest() {
        let entry = |byte, os, architecture| {
            let platform = format!(r#""platform":{{"os":"{os}","architecture":"{architecture}"}}"#);
            format!("{{{},{platform}}}", descriptor(byte, 3))
        };
        let index = |entries: &[String]| {
            let text = format!(r#"{{"manifests":[{}]}}"#, entries.join(","));
            Contents::read(text.as_bytes(), Limits::default())
        };
        let others = [
            entry(1, "linux", "s390x"),
            entry(2, "windows", architecture()),
            entry(3, "unknown", "unknown"),
        ];
        assert_eq!(
            fault(index(&others)),
            format!(
                r#"the image is for "linux/s390x" or "windows/{0}", not for linux/{0}"#,
                architecture()
            )
        );
        let ours = [&others[..], &[entry(4, "linux", architecture())]].concat();
        let digest = Digest::of(&[4]);
        assert_eq!(
            index(&ours).unwrap(),
            Contents::Manifest(Blob { digest, size: 3 })
        );
    }
}

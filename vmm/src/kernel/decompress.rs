//! The formats in which a kernel is packed into a bzImage (lib/decompress_*.c and scripts/Makefile.lib of Linux).
//!
//! What unpacks them (`decoders`) is there in a build with the feature `decompress`. Without it every format is one that the host
//! cannot read.

#[cfg(feature = "decompress")]
mod decoders;

use std::fmt;
use std::io;

use super::Tee;
use super::elf::ElfError;
use super::source::ImageSource;

/// How a file is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// gzip (RFC 1952).
    Gzip,
    /// bzip2.
    Bzip2,
    /// LZMA "alone" (.lzma).
    Lzma,
    /// xz, with the x86 filter as a rule.
    Xz,
    /// lzop. Recognised, but not unpacked on the host.
    Lzo,
    /// LZ4, legacy frame.
    Lz4,
    /// Zstandard (RFC 8878).
    Zstd,
}

impl Compression {
    /// The format of what begins with `head`.
    pub(super) fn detect(head: &[u8]) -> Option<Self> {
        const MAGICS: &[(&[u8], Compression)] = &[
            (b"\x1f\x8b", Compression::Gzip),
            (b"BZh", Compression::Bzip2),
            // No magic, but properties and the low bytes of the dictionary's size are always these.
            (b"\x5d\x00\x00", Compression::Lzma),
            (b"\xfd7zXZ\0", Compression::Xz),
            (b"\x89LZO\0\r\n\x1a\n", Compression::Lzo),
            (b"\x02\x21\x4c\x18", Compression::Lz4),
            (b"\x28\xb5\x2f\xfd", Compression::Zstd),
        ];
        let found = MAGICS.iter().find(|(magic, _)| head.starts_with(magic));
        found.map(|(_, compression)| *compression)
    }

    /// The command that unpacks a file of this format to its standard output.
    pub(super) fn command(self) -> Option<&'static str> {
        match self {
            Self::Gzip => Some("gzip -dc"),
            Self::Bzip2 => Some("bzip2 -dc"),
            Self::Lzma | Self::Xz => Some("xz -dc"),
            Self::Lzo => Some("lzop -dc"),
            Self::Lz4 => Some("lz4 -dc"),
            Self::Zstd => Some("zstd -dc"),
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Bzip2 => "bzip2",
            Self::Lzma => "lzma",
            Self::Xz => "xz",
            Self::Lzo => "lzo",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        })
    }
}

/// Why a packed kernel could not be unpacked on the host.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecompressError {
    /// The file could not be read.
    #[error("cannot read the packed kernel")]
    Read(#[source] io::Error),
    /// No format that is known.
    #[error("the packed kernel's format is unknown (it begins with {magic:02x?})")]
    UnknownFormat {
        /// Its first bytes.
        magic: [u8; 4],
    },
    /// A known format without a decoder.
    #[error("{format} is not decompressed on the host")]
    Unsupported {
        /// The format.
        format: Compression,
    },
    /// What was packed is no ELF file.
    #[error("the packed kernel is not an ELF file")]
    NotElf,
    /// The decoder refuses the data.
    #[error("the {format} data are damaged")]
    Damaged {
        /// The format.
        format: Compression,
        /// What the decoder says.
        #[source]
        source: io::Error,
    },
    /// The data end in their middle.
    #[error("the {format} data are truncated")]
    Truncated {
        /// The format.
        format: Compression,
    },
    /// More comes out than the kernel said: a decompression bomb.
    #[error("the {format} data unpack to more than {limit} bytes, the most this kernel may need")]
    TooLarge {
        /// The format.
        format: Compression,
        /// The most that may come out, in bytes.
        limit: u64,
    },
}

impl DecompressError {
    /// Whether the kernel may well be good, and only the host cannot unpack it.
    pub(super) fn host_cannot_read(&self) -> bool {
        matches!(
            self,
            Self::UnknownFormat { .. } | Self::Unsupported { .. } | Self::NotElf
        )
    }

    pub(super) fn remedy(&self) -> Option<String> {
        match self {
            _ if self.host_cannot_read() => {
                Some("--entry bzimage lets the kernel decompress itself in the guest".into())
            }
            Self::Read(_) => None,
            _ => Some("copy or build the file again: it is damaged".into()),
        }
    }
}

/// Which end of the stream failed.
#[derive(Debug)]
pub(super) enum StreamError {
    /// The packed bytes.
    Input(DecompressError),
    /// What they unpack to.
    #[cfg_attr(
        not(feature = "decompress"),
        allow(dead_code, reason = "only decoders have an output")
    )]
    Output(ElfError),
}

impl From<DecompressError> for StreamError {
    fn from(err: DecompressError) -> Self {
        Self::Input(err)
    }
}

/// Unpacks the part of `file` at (offset, length) into `output`, to at most `limit` bytes; returns its format.
pub(super) fn stream<S: ImageSource + ?Sized>(
    file: &S,
    part: (u64, u64),
    limit: u64,
    output: &mut Tee<'_, '_>,
) -> Result<Compression, StreamError> {
    let format = format(file, part)?;
    decoders::unpack(format, file, part, limit, output)?;
    Ok(format)
}

/// The format of the part of `file` at (offset, length).
pub(super) fn format<S: ImageSource + ?Sized>(
    file: &S,
    (offset, length): (u64, u64),
) -> Result<Compression, DecompressError> {
    let mut magic = [0; 16];
    let known = magic.len().min(length as usize);
    file.read_exact(&mut magic[..known], offset)
        .map_err(DecompressError::Read)?;
    let Some(format) = Compression::detect(&magic[..known]) else {
        let magic = [magic[0], magic[1], magic[2], magic[3]];
        return Err(DecompressError::UnknownFormat { magic });
    };
    Ok(format)
}

/// In the place of the decoders, in a build without them.
#[cfg(not(feature = "decompress"))]
mod decoders {
    use super::{Compression, DecompressError, ImageSource, StreamError, Tee};

    pub(super) fn unpack<S: ImageSource + ?Sized>(
        format: Compression,
        _: &S,
        _: (u64, u64),
        _: u64,
        _: &mut Tee<'_, '_>,
    ) -> Result<(), StreamError> {
        Err(DecompressError::Unsupported { format }.into())
    }
}

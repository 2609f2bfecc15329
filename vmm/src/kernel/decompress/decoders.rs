//! The decoders.
//!
//! The output is never held as a whole: it goes to a [`StreamPlacer`](crate::kernel::elf::StreamPlacer) piece by piece, and ends in an error where it grows
//! beyond its limit. Behind the packed bytes of every format but gzip the kernel's build puts their unpacked size, four bytes
//! in little-endian order; it is not needed here, and only LZ4, which has no end mark, has to know that it is there.

use std::io::{self, BufRead, BufReader, Read};

use super::{Compression, DecompressError, StreamError};
use crate::kernel::Tee;
use crate::kernel::source::{ImageSource, Section};

/// Bytes read from the file at a time.
const INPUT_BUFFER: usize = 64 << 10;

/// Bytes given to the placer at a time.
const OUTPUT_BUFFER: usize = 256 << 10;

/// Memory that a decoder may use for its window, in bytes. `zstd -22 --ultra`, the kernel's choice, has one of 128 MiB.
const MAX_WINDOW: u64 = 128 << 20;

/// Unpacked size of all but the last block of a legacy LZ4 frame.
const LZ4_BLOCK: usize = 8 << 20;

/// The most bytes that such a block can be packed to.
const LZ4_PACKED_MAX: usize = LZ4_BLOCK + LZ4_BLOCK / 255 + 16;

/// Length of the unpacked size that the kernel's build appends.
const SIZE_WORD: u64 = 4;

/// Unpacks the part of `file` at (offset, length), packed as `format`, into `to`, to at most `limit` bytes.
pub(super) fn unpack<S: ImageSource + ?Sized>(
    format: Compression,
    file: &S,
    (offset, length): (u64, u64),
    limit: u64,
    to: &mut Tee<'_, '_>,
) -> Result<(), StreamError> {
    let input = BufReader::with_capacity(INPUT_BUFFER, Section::new(file, offset, length));
    let mut output = Output {
        to,
        format,
        limit,
        total: 0,
    };
    match format {
        Compression::Gzip => output.pump(&mut flate2::bufread::GzDecoder::new(input)),
        Compression::Bzip2 => output.pump(&mut bzip2::bufread::BzDecoder::new(input)),
        Compression::Xz => {
            let limit = (MAX_WINDOW / 1024) as u32 + 1024;
            output.pump(&mut lzma_rust2::XzReader::new_mem_limit(
                input, false, limit,
            ))
        }
        Compression::Lzma => output.pump(&mut lzma(input)?),
        Compression::Zstd => zstd(input, &mut output),
        Compression::Lz4 => lz4(input, length, &mut output),
        Compression::Lzo => Err(DecompressError::Unsupported { format }.into()),
    }
}

/// The way from a decoder to the placer.
struct Output<'a, 'b, 'c> {
    to: &'a mut Tee<'b, 'c>,
    format: Compression,
    limit: u64,
    total: u64,
}

impl Output<'_, '_, '_> {
    fn push(&mut self, bytes: &[u8]) -> Result<(), StreamError> {
        self.total += bytes.len() as u64;
        if self.total > self.limit {
            let (format, limit) = (self.format, self.limit);
            return Err(DecompressError::TooLarge { format, limit }.into());
        }
        self.to.push(bytes).map_err(StreamError::Output)
    }

    /// Moves all that `decoder` has.
    fn pump(&mut self, decoder: &mut impl Read) -> Result<(), StreamError> {
        let mut buffer = vec![0; OUTPUT_BUFFER];
        loop {
            match decoder.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(count) => self.push(&buffer[..count])?,
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(damaged(self.format)(source)),
            }
        }
    }
}

fn damaged(format: Compression) -> impl Fn(io::Error) -> StreamError {
    move |source| match source.kind() {
        io::ErrorKind::UnexpectedEof => DecompressError::Truncated { format }.into(),
        _ => DecompressError::Damaged { format, source }.into(),
    }
}

fn lzma<R: BufRead>(input: R) -> Result<impl Read, StreamError> {
    let limit = (MAX_WINDOW / 1024) as u32 + 1024;
    lzma_rust2::LzmaReader::new_mem_limit(input, limit, None).map_err(damaged(Compression::Lzma))
}

/// One Zstandard frame. Its checksum is compared here, which the decoder leaves to others.
fn zstd(input: impl BufRead, output: &mut Output<'_, '_, '_>) -> Result<(), StreamError> {
    let damaged = damaged(Compression::Zstd);
    let mut decoder =
        ruzstd::decoding::StreamingDecoder::new_with_max_window_size(input, MAX_WINDOW)
            .map_err(|err| damaged(io::Error::other(err)))?;
    output.pump(&mut decoder)?;
    let decoder = decoder.into_parts().1;
    match decoder.get_checksum_from_data() {
        checksum @ Some(_) if checksum != decoder.get_calculated_checksum() => {
            Err(damaged(io::Error::other("the checksum does not match")))
        }
        _ => Ok(()),
    }
}

/// A legacy LZ4 frame: the magic, then blocks, each with its packed size before it, up to the end of the data.
fn lz4(input: impl Read, length: u64, output: &mut Output<'_, '_, '_>) -> Result<(), StreamError> {
    let format = Compression::Lz4;
    let mut input = Lz4Input {
        input,
        remaining: length,
    };
    input.word()?; // The magic.
    let mut packed = Vec::new();
    let mut unpacked = vec![0; LZ4_BLOCK];
    while input.remaining > SIZE_WORD {
        let size = input.word()?;
        let len = size as usize;
        if len > LZ4_PACKED_MAX || len == 0 {
            return Err(damaged(format)(io::Error::other(format!(
                "a block of {size} bytes"
            ))));
        }
        if packed.len() < len {
            packed.resize(len, 0);
        }
        input.fill(&mut packed[..len])?;
        let count = lz4_flex::block::decompress_into(&packed[..len], &mut unpacked)
            .map_err(|err| damaged(format)(io::Error::other(err)))?;
        output.push(&unpacked[..count])?;
    }
    // The unpacked size follows; if it is not that, a block is missing.
    if input.remaining > 0 && u64::from(input.word()?) != output.total {
        return Err(DecompressError::Truncated { format }.into());
    }
    Ok(())
}

/// The packed bytes, counted.
struct Lz4Input<R> {
    input: R,
    remaining: u64,
}

impl<R: Read> Lz4Input<R> {
    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), StreamError> {
        let format = Compression::Lz4;
        let rest = self.remaining.checked_sub(buffer.len() as u64);
        self.remaining = rest.ok_or(DecompressError::Truncated { format })?;
        self.input.read_exact(buffer).map_err(damaged(format))
    }

    fn word(&mut self) -> Result<u32, StreamError> {
        let mut word = [0; 4];
        self.fill(&mut word)?;
        Ok(u32::from_le_bytes(word))
    }
}

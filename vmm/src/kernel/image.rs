//! What a file is, by its first bytes; and for what is no kernel, words that tell its owner what it is instead.

use std::fmt;
use std::io;
use std::path::Path;

use super::decompress::Compression;
use super::source::ImageSource;

/// Enough of a file to tell ELF and bzImage, and most others.
const HEAD: usize = 4096;

/// Enough for an ISO 9660 volume descriptor too.
const LONG_HEAD: usize = 0x8006;

/// Magic of the Linux/x86 setup header, at [`SETUP_MAGIC_OFFSET`].
const SETUP_MAGIC: &[u8] = b"HdrS";

/// Offset of `header` in a bzImage.
const SETUP_MAGIC_OFFSET: usize = 0x202;

/// How to go on with a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Identity {
    /// Not a byte in it.
    Empty,
    /// ELF, of any class and machine.
    Elf,
    /// Has a Linux/x86 setup header.
    Bzimage,
    /// Not a kernel.
    Other(Content),
}

/// What a file that is no kernel looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Content {
    /// A compressed file: an uncompressed kernel would be inside, or something else.
    Compressed(Compression),
    /// A kernel for arm64.
    Arm64Image,
    /// A kernel for RISC-V.
    RiscvImage,
    /// A self-extracting EFI kernel, of an architecture other than x86.
    EfiZboot,
    /// A kernel bundled with initrd and command line as an EFI program.
    UnifiedKernelImage,
    /// An EFI (or Windows) program.
    EfiProgram,
    /// An initramfs.
    Cpio,
    /// An ISO 9660 image.
    Iso,
    /// A disk image in the named format.
    DiskImage(&'static str),
    /// A boot sector: an old kernel, or a disk with a partition table.
    BootSector,
    /// A file system image of the named type.
    FileSystem(&'static str),
    /// An archive or package in the named format.
    Archive(&'static str),
    /// A U-Boot image.
    Uboot,
    /// A device tree, or an image wrapped in one.
    DeviceTree,
    /// Text.
    Text,
    /// Zeroes, as far as was read.
    Zeroes,
    /// None of these.
    Unknown,
}

impl fmt::Display for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Compressed(format) => write!(f, "{format} data"),
            Self::Arm64Image => f.write_str("a kernel for arm64"),
            Self::RiscvImage => f.write_str("a kernel for RISC-V"),
            Self::EfiZboot => f.write_str("an EFI zboot kernel, which x86-64 does not use"),
            Self::UnifiedKernelImage => f.write_str("a unified kernel image (UKI)"),
            Self::EfiProgram => f.write_str("an EFI program"),
            Self::Cpio => f.write_str("an initramfs (cpio archive)"),
            Self::Iso => f.write_str("an ISO 9660 image"),
            Self::DiskImage(format) => write!(f, "a {format} disk image"),
            Self::BootSector => f.write_str("a boot sector or a partitioned disk"),
            Self::FileSystem(name) => write!(f, "a file system image ({name})"),
            Self::Archive(format) => write!(f, "an archive ({format})"),
            Self::Uboot => f.write_str("a U-Boot image"),
            Self::DeviceTree => f.write_str("a device tree or FIT image"),
            Self::Text => f.write_str("text"),
            Self::Zeroes => f.write_str("zeroes"),
            Self::Unknown => f.write_str("data of an unknown format"),
        }
    }
}

impl Content {
    /// What a person can do about it.
    pub(super) fn remedy(&self, path: &Path) -> Option<String> {
        let path = path.display();
        Some(match self {
            Self::Compressed(format) => match format.command() {
                Some(command) => format!("if a kernel is in it: {command} {path} > vmlinux"),
                None => return None,
            },
            Self::Arm64Image | Self::RiscvImage | Self::EfiZboot => {
                "a kernel for x86-64 is needed: this is an x86-64 VMM".into()
            }
            Self::UnifiedKernelImage => {
                format!(
                    "take the kernel out: objcopy -O binary --only-section=.linux {path} vmlinuz"
                )
            }
            Self::Cpio => format!("give it as --initrd {path}"),
            Self::Iso | Self::DiskImage(_) | Self::FileSystem(_) | Self::BootSector => {
                "take the kernel out of it (often /boot/vmlinuz); disks are not booted by firmware"
                    .into()
            }
            Self::Archive(_) => "unpack it: a kernel package holds boot/vmlinuz".into(),
            Self::EfiProgram | Self::Uboot | Self::DeviceTree => {
                "use the kernel's own vmlinux or bzImage (vmlinuz)".into()
            }
            Self::Text | Self::Zeroes | Self::Unknown => {
                "use an x86-64 vmlinux or bzImage, for instance /boot/vmlinuz-$(uname -r)".into()
            }
        })
    }
}

/// Tells what `file` is.
///
/// # Errors
/// What the host says where it cannot be read.
pub(super) fn identify<S: ImageSource + ?Sized>(file: &S) -> io::Result<Identity> {
    let mut head = [0; HEAD];
    let count = file.read_up_to(&mut head, 0)?;
    let head = &head[..count];
    if head.is_empty() {
        return Ok(Identity::Empty);
    }
    if head.starts_with(b"\x7fELF") {
        return Ok(Identity::Elf);
    }
    if has(head, SETUP_MAGIC_OFFSET, SETUP_MAGIC) {
        return Ok(Identity::Bzimage);
    }
    // Only to find words for the error, so that no good kernel pays for it.
    let mut long = vec![0; LONG_HEAD];
    let count = file.read_up_to(&mut long, 0)?;
    Ok(Identity::Other(describe(&long[..count])))
}

/// Finds words for what is no kernel.
fn describe(head: &[u8]) -> Content {
    if let Some(content) = foreign_kernel(head).or_else(|| by_magic(head)) {
        return content;
    }
    if let Some(format) = Compression::detect(head) {
        return Content::Compressed(format);
    }
    if head.iter().all(|byte| *byte == 0) {
        return Content::Zeroes;
    }
    if is_text(head) {
        return Content::Text;
    }
    if has(head, 510, b"\x55\xaa") {
        return Content::BootSector;
    }
    Content::Unknown
}

fn foreign_kernel(head: &[u8]) -> Option<Content> {
    // Documentation/arch/arm64/booting.rst and Documentation/arch/riscv/boot-image-header.rst: magic at 56; both may
    // be EFI programs at the same time.
    if has(head, 56, b"ARM\x64") {
        return Some(Content::Arm64Image);
    }
    if has(head, 56, b"RSC\x05") {
        return Some(Content::RiscvImage);
    }
    if !head.starts_with(b"MZ") {
        return None;
    }
    if has(head, 4, b"zimg") {
        return Some(Content::EfiZboot);
    }
    // The section table follows the PE headers, well within the first page.
    let table = &head[..head.len().min(HEAD)];
    let uki = table.windows(8).any(|window| window == b".linux\0\0");
    Some(if uki {
        Content::UnifiedKernelImage
    } else {
        Content::EfiProgram
    })
}

fn by_magic(head: &[u8]) -> Option<Content> {
    const MAGICS: &[(usize, &[u8], Content)] = &[
        (0, b"070701", Content::Cpio),
        (0, b"070702", Content::Cpio),
        (0, b"070707", Content::Cpio),
        (0, b"\xc7\x71", Content::Cpio),
        (0, b"QFI\xfb", Content::DiskImage("qcow2")),
        (0, b"KDMV", Content::DiskImage("VMDK")),
        (0, b"# Disk DescriptorFile", Content::DiskImage("VMDK")),
        (0, b"vhdxfile", Content::DiskImage("VHDX")),
        (0, b"conectix", Content::DiskImage("VHD")),
        (0x40, b"\x7f\x10\xda\xbe", Content::DiskImage("VDI")),
        (0, b"hsqs", Content::FileSystem("squashfs")),
        (1024, b"\xe2\xe1\xf5\xe0", Content::FileSystem("erofs")),
        (0x438, b"\x53\xef", Content::FileSystem("ext4")),
        (0, b"XFSB", Content::FileSystem("xfs")),
        (512, b"EFI PART", Content::DiskImage("raw, GPT-partitioned")),
        (0x8001, b"CD001", Content::Iso),
        (257, b"ustar", Content::Archive("tar")),
        (0, b"!<arch>\n", Content::Archive("deb or ar")),
        (0, b"\xed\xab\xee\xdb", Content::Archive("rpm")),
        (0, b"PK\x03\x04", Content::Archive("zip")),
        (0, b"\x27\x05\x19\x56", Content::Uboot),
        (0, b"\xd0\x0d\xfe\xed", Content::DeviceTree),
    ];
    let found = MAGICS
        .iter()
        .find(|(offset, magic, _)| has(head, *offset, magic));
    found.map(|(_, _, content)| *content)
}

fn has(head: &[u8], offset: usize, magic: &[u8]) -> bool {
    head.get(offset..)
        .is_some_and(|rest| rest.starts_with(magic))
}

fn is_text(head: &[u8]) -> bool {
    let text = match std::str::from_utf8(head) {
        Ok(text) => text,
        // A character cut in two by the end of what was read.
        Err(err) if err.error_len().is_none() => {
            std::str::from_utf8(&head[..err.valid_up_to()]).unwrap_or_default()
        }
        Err(_) => return false,
    };
    !text.is_empty() && !text.contains(|c: char| c.is_control() && !c.is_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(bytes: &[u8]) -> Identity {
        identify(bytes).unwrap()
    }

    fn with(size: usize, parts: &[(usize, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; size];
        for (offset, part) in parts {
            bytes[*offset..*offset + part.len()].copy_from_slice(part);
        }
        bytes
    }

    #[test]
    fn kernels_are_told_by_their_magic() {
        assert_eq!(identity(b""), Identity::Empty);
        assert_eq!(identity(b"\x7fELF"), Identity::Elf);
        assert_eq!(
            identity(&with(0x206, &[(0x202, b"HdrS")])),
            Identity::Bzimage
        );
        // A bzImage with an EFI stub is an EFI program, too.
        let stub = with(0x300, &[(0, b"MZ"), (510, b"\x55\xaa"), (0x202, b"HdrS")]);
        assert_eq!(identity(&stub), Identity::Bzimage);
    }

    #[test]
    fn what_is_no_kernel_is_named() {
        for (bytes, content) in [
            (
                with(64, &[(0, b"MZ"), (56, b"ARM\x64")]),
                Content::Arm64Image,
            ),
            (
                with(64, &[(0, b"MZ"), (56, b"RSC\x05")]),
                Content::RiscvImage,
            ),
            (with(64, &[(0, b"MZ\0\0zimg")]), Content::EfiZboot),
            (
                with(900, &[(0, b"MZ"), (700, b".linux\0\0")]),
                Content::UnifiedKernelImage,
            ),
            (
                with(900, &[(0, b"MZ"), (510, b"\x55\xaa")]),
                Content::EfiProgram,
            ),
            (with(110, &[(0, b"070701")]), Content::Cpio),
            (with(40000, &[(0x8001, b"CD001")]), Content::Iso),
            // Hybrid: begins as a disk does.
            (
                with(40000, &[(510, b"\x55\xaa"), (0x8001, b"CD001")]),
                Content::Iso,
            ),
            (with(512, &[(0, b"QFI\xfb")]), Content::DiskImage("qcow2")),
            (
                with(2048, &[(0x438, b"\x53\xef")]),
                Content::FileSystem("ext4"),
            ),
            (
                with(512, &[(0, b"\xeb"), (510, b"\x55\xaa")]),
                Content::BootSector,
            ),
            (with(512, &[(257, b"ustar")]), Content::Archive("tar")),
            (
                with(64, &[(0, b"\x1f\x8b\x08")]),
                Content::Compressed(Compression::Gzip),
            ),
            (
                with(64, &[(0, b"\x28\xb5\x2f\xfd")]),
                Content::Compressed(Compression::Zstd),
            ),
            (b"#!/bin/sh\necho kernel\n".to_vec(), Content::Text),
            ("ké".as_bytes()[..2].to_vec(), Content::Text),
            (vec![0; 5000], Content::Zeroes),
            (vec![0xfe; 5000], Content::Unknown),
            (vec![b'M'], Content::Text),
        ] {
            assert_eq!(identity(&bytes), Identity::Other(content), "{content}");
        }
    }

    #[test]
    fn remedies_name_the_file() {
        let path = Path::new("/tmp/x");
        let gzip = Content::Compressed(Compression::Gzip).remedy(path).unwrap();
        assert!(gzip.contains("gzip -dc /tmp/x"), "{gzip}");
        assert_eq!(
            Content::Cpio.remedy(path).unwrap(),
            "give it as --initrd /tmp/x"
        );
        assert!(
            Content::UnifiedKernelImage
                .remedy(path)
                .unwrap()
                .contains(".linux /tmp/x")
        );
    }
}

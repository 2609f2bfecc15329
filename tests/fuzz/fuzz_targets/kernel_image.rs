//! Kernel images: whatever a file holds, the loader answers, writes nothing below 1 MiB, and enters memory only.
//!
//! The first byte of an input says how the rest is loaded: 0 to 3 are the entry modes; with any other, the rest is an ELF
//! file packed into a bzImage, so that hostile program headers reach the code that places a stream, too.

#![no_main]

use std::path::Path;

use ampoule_vmm::kernel::{self, KernelEntry};
use libfuzzer_sys::{Corpus, fuzz_target};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const LOW: u64 = 1 << 20;
const RAM: u64 = 8 << 20;
const PIECE: usize = 16 << 10;

fuzz_target!(|input: &[u8]| -> Corpus {
    let Some((selector, image)) = input.split_first() else {
        return Corpus::Reject;
    };
    let packed;
    let (mode, image) = match selector {
        0 => (KernelEntry::Auto, image),
        1 => (KernelEntry::Pvh, image),
        2 => (KernelEntry::Linux64, image),
        3 => (KernelEntry::Bzimage, image),
        _ => {
            packed = bzimage(image);
            (KernelEntry::Auto, &packed[..])
        }
    };
    load(image, mode);
    Corpus::Keep
});

fn load(image: &[u8], mode: KernelEntry) {
    let ram = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), RAM as usize)]).unwrap();
    let result = kernel::load_bytes(image, Path::new("kernel"), mode, &ram);
    // By large pieces: byte by byte, an instrumented build would spend its time here.
    let mut piece = [0; PIECE];
    for address in (0..LOW).step_by(PIECE) {
        ram.read_slice(&mut piece, GuestAddress(address)).unwrap();
        assert!(piece == [0; PIECE], "wrote over the boot data");
    }
    match result {
        Ok(kernel) => {
            assert!(kernel.end <= RAM, "ends at {:#x}", kernel.end);
            let entry = kernel.entry.address();
            assert!((LOW..kernel.end).contains(&entry), "enters at {entry:#x}");
        }
        Err(err) => {
            assert!(err.to_string().contains("kernel"));
            let _ = err.remedy();
        }
    }
}

/// A bzImage of protocol 2.15 around `elf`, packed as one legacy LZ4 block of literals.
fn bzimage(elf: &[u8]) -> Vec<u8> {
    const CODE: usize = 1024;
    const PAYLOAD: usize = 0x208;
    let mut block = vec![0xf0];
    match elf.len().checked_sub(15) {
        Some(mut rest) => {
            while rest >= 255 {
                block.push(255);
                rest -= 255;
            }
            block.push(rest as u8);
        }
        None => block[0] = (elf.len() as u8) << 4,
    }
    block.extend(elf);
    let mut payload = 0x184c_2102u32.to_le_bytes().to_vec();
    payload.extend((block.len() as u32).to_le_bytes());
    payload.extend(block);
    payload.extend((elf.len() as u32).to_le_bytes());

    let mut code = vec![0; PAYLOAD];
    code.extend(&payload);
    code.resize(code.len().next_multiple_of(16), 0);
    let mut image = vec![0; CODE];
    let mut put = |at: usize, value: &[u8]| image[at..at + value.len()].copy_from_slice(value);
    put(0x1f1, &[1]);
    put(0x1f4, &(code.len() as u32 / 16).to_le_bytes());
    put(0x1fe, &[0x55, 0xaa, 0xeb, 0x6a]);
    put(0x202, b"HdrS\x0f\x02");
    put(0x211, &[1]);
    put(0x236, &[1]);
    put(0x248, &(PAYLOAD as u32).to_le_bytes());
    put(0x24c, &(payload.len() as u32).to_le_bytes());
    put(0x258, &0x20_0000u64.to_le_bytes());
    image.extend(code);
    image
}

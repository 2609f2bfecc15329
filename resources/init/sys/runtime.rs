//! What a program has a standard library and a C library for: its start, its end by a panic, memory, and what the compiler calls.

use alloc::vec::Vec;
use core::alloc::{GlobalAlloc, Layout};
use core::arch::{asm, global_asm};
use core::cell::UnsafeCell;
use core::ffi::{CStr, c_char};
use core::ptr;

use super::{call, exit};

global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "mov rdi, rsp",
    "and rsp, -16",
    "call {start}",
    "ud2",
    start = sym start,
);

/// Takes what the kernel left on the stack: the number of arguments, pointers to them and a zero, pointers to the environment's
/// variables and a zero.
unsafe extern "C" fn start(stack: *const usize) -> ! {
    let (mut arguments, mut environment) = (Vec::new(), Vec::new());
    // SAFETY: the kernel put so many pointers to terminated texts there, and nobody changes them.
    unsafe {
        let mut next = stack.add(1);
        for list in [&mut arguments, &mut environment] {
            while *next != 0 {
                list.push(CStr::from_ptr(*next as *const c_char));
                next = next.add(1);
            }
            next = next.add(1);
        }
    }
    crate::main(&arguments, &environment)
}

#[cfg(not(test))]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    crate::die(format_args!("{}", info.message()))
}

/// What the compiler's own libraries name, and nothing calls: a panic ends the program.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

#[unsafe(no_mangle)]
extern "C" fn _Unwind_Resume() -> ! {
    exit(125)
}

// What the compiler takes from a C library.

#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    // SAFETY: the caller's promise; forwards, as the direction flag is clear.
    unsafe {
        asm!("rep movsb", inout("rcx") count => _, inout("rdi") to => _, inout("rsi") from => _, options(nostack, preserves_flags));
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    if (to as usize).wrapping_sub(from as usize) >= count {
        // SAFETY: forwards, nothing is overwritten before it is read.
        return unsafe { memcpy(to, from, count) };
    }
    // SAFETY: backwards from the last byte (there is one); the direction flag is cleared again.
    unsafe {
        asm!("std", "rep movsb", "cld", inout("rcx") count => _, inout("rdi") to.wrapping_add(count - 1) => _,
            inout("rsi") from.wrapping_add(count - 1) => _, options(nostack));
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: i32, count: usize) -> *mut u8 {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("rep stosb", inout("rcx") count => _, inout("rdi") to => _, in("al") byte as u8, options(nostack, preserves_flags));
    }
    to
}

#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, count: usize) -> i32 {
    for index in 0..count {
        // SAFETY: within what the caller promises; volatile, or the compiler makes a call of this very function of it.
        let (a, b) = unsafe { (a.add(index).read_volatile(), b.add(index).read_volatile()) };
        if a != b {
            return i32::from(a) - i32::from(b);
        }
    }
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, count: usize) -> i32 {
    // SAFETY: the caller's promise.
    unsafe { memcmp(a, b, count) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(text: *const c_char) -> usize {
    let mut length = 0;
    // SAFETY: up to the terminator that the caller promises; volatile as in `memcmp`.
    while unsafe { text.add(length).read_volatile() } != 0 {
        length += 1;
    }
    length
}

/// Blocks of powers of two, each size with a list of its free ones; large ones come from the kernel and go back to it.
struct Heap(UnsafeCell<[*mut u8; 17]>);

// SAFETY: one thread runs.
unsafe impl Sync for Heap {}

#[global_allocator]
static HEAP: Heap = Heap(UnsafeCell::new([ptr::null_mut(); 17]));

const LARGEST: usize = 1 << 16;
const ARENA: usize = 1 << 17;

fn block(layout: Layout) -> usize {
    layout
        .size()
        .max(layout.align())
        .max(16)
        .next_power_of_two()
}

fn map(size: usize) -> *mut u8 {
    // Readable and writable; private, anonymous.
    match call!(9, 0, size, 3, 0x22, usize::MAX, 0) {
        Ok(address) => ptr::with_exposed_provenance_mut(address),
        Err(_) => ptr::null_mut(),
    }
}

// SAFETY: blocks are as large as `block` says, aligned to their size, and on at most one list.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let size = block(layout);
        if size > LARGEST {
            return map(size);
        }
        // SAFETY: one thread runs, and this function is not entered again in here.
        let free = unsafe { &mut (*self.0.get())[size.trailing_zeros() as usize] };
        if free.is_null() {
            let arena = map(ARENA);
            if arena.is_null() {
                return arena;
            }
            for at in (0..ARENA).step_by(size) {
                // SAFETY: in the arena, and aligned as every block of 16 bytes or more is.
                unsafe {
                    let it = arena.add(at);
                    it.cast::<*mut u8>().write(*free);
                    *free = it;
                }
            }
        }
        let it = *free;
        // SAFETY: the first bytes of a free block are the next one's address.
        *free = unsafe { it.cast::<*mut u8>().read() };
        it
    }

    unsafe fn dealloc(&self, it: *mut u8, layout: Layout) {
        let size = block(layout);
        if size > LARGEST {
            // It was mapped with this very size.
            let _ = call!(11, it, size);
            return;
        }
        // SAFETY: as in `alloc`; the block is the caller's no more.
        unsafe {
            let free = &mut (*self.0.get())[size.trailing_zeros() as usize];
            it.cast::<*mut u8>().write(*free);
            *free = it;
        }
    }
}

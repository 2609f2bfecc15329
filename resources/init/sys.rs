//! Linux, x86-64: the system calls that the init makes. All of its `unsafe` is in here and below.
//!
//! One thread runs this program, ever.

use alloc::ffi::CString;
use alloc::vec::Vec;
use core::arch::asm;
use core::ffi::{CStr, c_char};
use core::fmt;
use core::ptr;

/// A system call's error.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(crate) struct Errno(pub(crate) i32);

pub(crate) type Result<T> = core::result::Result<T, Errno>;

impl Errno {
    pub(crate) const PERM: Self = Self(1);
    pub(crate) const NOENT: Self = Self(2);
    pub(crate) const INTR: Self = Self(4);
    pub(crate) const AGAIN: Self = Self(11);
    pub(crate) const ACCES: Self = Self(13);
    pub(crate) const EXIST: Self = Self(17);
    pub(crate) const NODEV: Self = Self(19);
    pub(crate) const NOTDIR: Self = Self(20);
    pub(crate) const INVAL: Self = Self(22);
    pub(crate) const AFNOSUPPORT: Self = Self(97);
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self.0 {
            1 => "operation not permitted",
            2 => "no such file or directory",
            5 => "input/output error",
            7 => "argument list too long",
            8 => "its format is none that can be executed",
            12 => "cannot allocate memory",
            13 => "permission denied",
            16 => "device or resource busy",
            17 => "file exists",
            19 => "no such device",
            20 => "not a directory",
            21 => "is a directory",
            22 => "invalid argument",
            28 => "no space left on device",
            30 => "read-only file system",
            36 => "file name too long",
            40 => "too many levels of symbolic links",
            97 => "address family not supported",
            104 => "connection reset by peer",
            110 => "connection timed out",
            number => return write!(f, "error {number}"),
        };
        f.write_str(text)
    }
}

/// # Safety
/// As the system call demands: pointers must be valid for what it reads and writes.
unsafe fn call(number: usize, arguments: [usize; 6]) -> Result<usize> {
    let [a, b, c, d, e, f] = arguments;
    let result: isize;
    // SAFETY: Linux keeps all registers but rax, rcx and r11; the rest is the caller's promise.
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => result, in("rdi") a, in("rsi") b, in("rdx") c,
            in("r10") d, in("r8") e, in("r9") f, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    match result {
        -4095..=-1 => Err(Errno(-result as i32)),
        _ => Ok(result as usize),
    }
}

/// A call whose arguments point nowhere, or to what the borrowed parameters of the safe function around it keep valid.
macro_rules! call {
    ($number:expr $(, $argument:expr)*) => {{
        let given = [$($argument as usize),*];
        let mut arguments = [0; 6];
        arguments[..given.len()].copy_from_slice(&given);
        // SAFETY: what is pointed to is borrowed by the function around it, with the length that is given along.
        unsafe { call($number, arguments) }
    }};
}

// Here, as [`call!`] is nowhere else.
pub(crate) mod at;
pub(crate) mod net;
mod runtime;

// Descriptors.

/// A descriptor, closed at its end.
pub(crate) struct Fd(i32);

impl Drop for Fd {
    fn drop(&mut self) {
        let _ = call!(3, self.0);
    }
}

impl Fd {
    /// One that the program was started with.
    pub(crate) fn inherited(number: i32) -> Self {
        Self(number)
    }

    pub(crate) fn number(&self) -> i32 {
        self.0
    }

    fn new(number: usize) -> Self {
        Self(number as i32)
    }

    pub(crate) fn read(&self, buffer: &mut [u8]) -> Result<usize> {
        call!(0, self.0, buffer.as_mut_ptr(), buffer.len())
    }

    /// Reads all of the buffer from there on.
    pub(crate) fn read_at(&self, mut at: u64, mut buffer: &mut [u8]) -> Result<()> {
        while !buffer.is_empty() {
            match call!(17, self.0, buffer.as_mut_ptr(), buffer.len(), at) {
                // The end of the file.
                Ok(0) => return Err(Errno::INVAL),
                Ok(count) => {
                    at += count as u64;
                    buffer = &mut buffer[count..];
                }
                Err(Errno::INTR) => {}
                Err(err) => return Err(err),
            }
        }
        Ok(())
    }

    pub(crate) fn write(&self, bytes: &[u8]) -> Result<usize> {
        call!(1, self.0, bytes.as_ptr(), bytes.len())
    }

    /// Reads and writes answer EAGAIN instead of waiting.
    pub(crate) fn set_nonblocking(&self) -> Result<()> {
        let flags = call!(72, self.0, 3)?;
        call!(72, self.0, 4, flags | 0o4000).map(drop)
    }

    /// Another name of the same.
    pub(crate) fn again(&self) -> Result<Self> {
        call!(72, self.0, 1030, 3).map(Self::new)
    }

    pub(crate) fn chown(&self, user: u32, group: u32) -> Result<()> {
        call!(93, self.0, user, group).map(drop)
    }
}

pub(crate) const READ: u32 = 0;
pub(crate) const WRITE: u32 = 1;
pub(crate) const READ_WRITE: u32 = 2;
pub(crate) const CREATE: u32 = 0o100;
pub(crate) const TRUNCATE: u32 = 0o1000;
pub(crate) const NO_TERMINAL: u32 = 0o400;
pub(crate) const NO_FOLLOW: u32 = 0o40_0000;
/// A name for a file, and nothing else.
pub(crate) const PATH: u32 = 0o1000_0000;
pub(crate) const NO_ACCESS_TIME: u32 = 0o100_0000;
const CLOSE_ON_EXEC: u32 = 0o200_0000;

pub(crate) fn open(path: &CStr, flags: u32) -> Result<Fd> {
    call!(2, path.as_ptr(), flags | CLOSE_ON_EXEC, 0o644).map(Fd::new)
}

/// Opens what the path leads to where this folder is the root: openat2(2) with RESOLVE_IN_ROOT.
pub(crate) fn open_in(root: &Fd, path: &CStr, flags: u32) -> Result<Fd> {
    let how = [u64::from(flags | CLOSE_ON_EXEC), 0, 0x10];
    let (how, size) = (how.as_ptr(), size_of_val(&how));
    call!(437, root.0, path.as_ptr(), how, size).map(Fd::new)
}

/// A pipe: the end to read from, the end to write to.
pub(crate) fn pipe() -> Result<(Fd, Fd)> {
    let mut ends = [0i32; 2];
    call!(293, ends.as_mut_ptr(), CLOSE_ON_EXEC)?;
    Ok((Fd(ends[0]), Fd(ends[1])))
}

pub(crate) const POLLIN: i16 = 1;
pub(crate) const POLLOUT: i16 = 4;
/// Among others: nobody reads the pipe.
pub(crate) const POLLERR: i16 = 8;

/// What to wait for, and what has come.
#[repr(C)]
pub(crate) struct PollFd {
    fd: i32,
    events: i16,
    came: i16,
}

impl PollFd {
    /// Errors and the other end's closing come unasked, but not where there is no descriptor.
    pub(crate) fn new(fd: Option<&Fd>, events: i16) -> Self {
        Self {
            fd: fd.map_or(-1, |fd| fd.0),
            events,
            came: 0,
        }
    }

    pub(crate) fn came(&self) -> i16 {
        self.came
    }
}

/// Waits, at most so many milliseconds.
pub(crate) fn poll(fds: &mut [PollFd], timeout: Option<u32>) -> Result<()> {
    let time = timeout.map(|it| [i64::from(it / 1000), i64::from(it % 1000) * 1_000_000]);
    let time = time.as_ref().map_or(ptr::null(), |it| it.as_ptr());
    match call!(271, fds.as_mut_ptr(), fds.len(), time, 0, 8) {
        Err(Errno::INTR) | Ok(_) => Ok(()),
        Err(err) => Err(err),
    }
}

// Files.

pub(crate) fn mkdir(path: &CStr, mode: u32) -> Result<()> {
    match call!(83, path.as_ptr(), mode) {
        Ok(_) | Err(Errno::EXIST) => Ok(()),
        Err(err) => Err(err),
    }
}

pub(crate) fn unlink(path: &CStr) -> Result<()> {
    call!(87, path.as_ptr()).map(drop)
}

pub(crate) fn rmdir(path: &CStr) -> Result<()> {
    call!(84, path.as_ptr()).map(drop)
}

pub(crate) fn symlink(target: &CStr, path: &CStr) -> Result<()> {
    call!(88, target.as_ptr(), path.as_ptr()).map(drop)
}

/// Where a symbolic link leads.
pub(crate) fn read_link(path: &CStr) -> Result<Vec<u8>> {
    let mut target = alloc::vec![0; 4096];
    let count = call!(89, path.as_ptr(), target.as_mut_ptr(), target.len())?;
    target.truncate(count);
    Ok(target)
}

pub(crate) fn chmod(path: &CStr, mode: u32) -> Result<()> {
    call!(90, path.as_ptr(), mode).map(drop)
}

pub(crate) fn chdir(path: &CStr) -> Result<()> {
    call!(80, path.as_ptr()).map(drop)
}

pub(crate) fn chroot(path: &CStr) -> Result<()> {
    call!(161, path.as_ptr()).map(drop)
}

/// Whether there is something at the path, links followed.
pub(crate) fn exists(path: &CStr) -> bool {
    call!(21, path.as_ptr(), 0).is_ok()
}

/// The names in a folder, sorted.
pub(crate) fn list(path: &CStr) -> Result<Vec<Vec<u8>>> {
    names(&open(path, READ)?)
}

/// The same of an open folder that nobody has read yet.
pub(crate) fn names(folder: &Fd) -> Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let count = call!(217, folder.0, buffer.as_mut_ptr(), buffer.len())?;
        let mut rest = &buffer[..count];
        if rest.is_empty() {
            names.sort();
            return Ok(names);
        }
        // inode 8, offset 8, length 2, type 1, name
        while let Some(length) = rest.get(16..18) {
            let length = usize::from(u16::from_le_bytes([length[0], length[1]]));
            let (entry, others) = rest.split_at(length.min(rest.len()));
            let name = entry.get(19..).unwrap_or_default();
            let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
            if name != b"." && name != b".." {
                names.push(name.to_vec());
            }
            rest = others;
        }
    }
}

pub(crate) const MS_RDONLY: usize = 1;
pub(crate) const MS_NOSUID: usize = 2;
pub(crate) const MS_NODEV: usize = 4;
pub(crate) const MS_NOEXEC: usize = 8;
pub(crate) const MS_REMOUNT: usize = 32;
pub(crate) const MS_BIND: usize = 4096;
pub(crate) const MS_MOVE: usize = 8192;

pub(crate) fn mount(
    source: &CStr,
    target: &CStr,
    kind: &CStr,
    flags: usize,
    data: &CStr,
) -> Result<()> {
    let (source, target) = (source.as_ptr(), target.as_ptr());
    call!(165, source, target, kind.as_ptr(), flags, data.as_ptr()).map(drop)
}

pub(crate) fn unmount(path: &CStr) -> Result<()> {
    call!(166, path.as_ptr(), 0).map(drop)
}

pub(crate) fn load_module(file: &Fd) -> Result<()> {
    call!(313, file.0, c"".as_ptr(), 0).map(drop)
}

// Processes.

/// A new process; 0 in that one itself.
pub(crate) fn fork() -> Result<i32> {
    call!(57).map(|it| it as i32)
}

pub(crate) fn exit(status: u8) -> ! {
    let _ = call!(231, status);
    unreachable!()
}

pub(crate) fn own_id() -> i32 {
    call!(39).unwrap_or_default() as i32
}

/// Becomes another program, or not.
pub(crate) fn execute(path: &CStr, arguments: &[CString], environment: &[CString]) -> Errno {
    let pointers = |texts: &[CString]| -> Vec<*const c_char> {
        let texts = texts.iter().map(|it| it.as_ptr());
        texts.chain([ptr::null()]).collect()
    };
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    let result = call!(59, path.as_ptr(), arguments.as_ptr(), environment.as_ptr());
    result.err().unwrap_or(Errno::INVAL)
}

/// How a process has ended.
#[derive(Clone, Copy)]
pub(crate) enum Ended {
    Exited(u8),
    Killed(u8),
}

/// Some child that has ended, if any has.
pub(crate) fn reap() -> Option<(i32, Ended)> {
    let mut status = 0i32;
    let child = call!(61, -1isize, &raw mut status, 1, 0).ok()? as i32;
    let ended = match status & 0x7f {
        0 => Ended::Exited((status >> 8) as u8),
        signal => Ended::Killed(signal as u8),
    };
    (child > 0).then_some((child, ended))
}

/// Waits for a child's end.
pub(crate) fn wait(child: i32) -> Result<Ended> {
    let mut status = 0i32;
    call!(61, child, &raw mut status, 0, 0)?;
    Ok(match status & 0x7f {
        0 => Ended::Exited((status >> 8) as u8),
        signal => Ended::Killed(signal as u8),
    })
}

pub(crate) const SIGKILL: u8 = 9;

/// As kill(2): a process, -N for a group, -1 for everybody else.
pub(crate) fn kill(process: i32, signal: u8) -> Result<()> {
    call!(62, process as isize, signal).map(drop)
}

pub(crate) fn new_session() -> Result<()> {
    call!(112).map(drop)
}

/// Orphans below become this process's children.
pub(crate) fn adopt_orphans() -> Result<()> {
    call!(157, 36, 1).map(drop)
}

/// Blocks all signals, or none.
pub(crate) fn block_signals(all: bool) -> Result<()> {
    let set = if all { u64::MAX } else { 0 };
    call!(14, 2, &raw const set, 0, 8).map(drop)
}

/// What signals do to a process is what they do at first: what is ignored stays so in the program that is executed.
pub(crate) fn reset_signals() {
    // The kernel's sigaction: a handler (SIG_DFL), flags, a restorer, a mask.
    let action = [0u64; 4];
    for signal in 1..=64 {
        // Fails for SIGKILL and SIGSTOP, which are always so.
        let _ = call!(13, signal, action.as_ptr(), 0, 8);
    }
}

/// A descriptor that is readable when a child has ended.
pub(crate) fn child_events() -> Result<Fd> {
    let set: u64 = 1 << (17 - 1);
    let flags = CLOSE_ON_EXEC | 0o4000;
    call!(289, -1isize, &raw const set, 8, flags).map(Fd::new)
}

/// Soft and hard limit of open files.
pub(crate) fn limit_files(soft: u64, hard: u64) -> Result<()> {
    let limits = [soft, hard];
    call!(302, 0, 7, limits.as_ptr(), 0).map(drop)
}

/// Descriptor `to` is another name of this one, and outlives the program.
pub(crate) fn duplicate(fd: &Fd, to: i32) -> Result<()> {
    match fd.0 == to {
        true => call!(72, to, 2, 0).map(drop),
        false => call!(292, fd.0, to, 0).map(drop),
    }
}

/// Sets of capabilities, of 64 bits in two halves: effective, permitted, inheritable.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct Capabilities([[u32; 3]; 2]);

/// _LINUX_CAPABILITY_VERSION_3, for this process.
const CAPABILITIES: [u32; 2] = [0x2008_0522, 0];

/// What this program may do.
pub(crate) fn capabilities() -> Result<Capabilities> {
    let (header, mut sets) = (CAPABILITIES, Capabilities([[0; 3]; 2]));
    call!(125, header.as_ptr(), &raw mut sets)?;
    Ok(sets)
}

/// Changes that.
pub(crate) fn set_capabilities(sets: &Capabilities) -> Result<()> {
    let header = CAPABILITIES;
    call!(126, header.as_ptr(), &raw const *sets).map(drop)
}

/// The same, but for now not to act for a file's owner (CAP_FOWNER).
pub(crate) fn without_ownership(mut sets: Capabilities) -> Capabilities {
    const FOWNER: u32 = 3;
    sets.0[0][0] &= !(1 << FOWNER);
    sets
}

/// Becomes another user for good.
pub(crate) fn become_user(user: u32, group: u32, groups: &[u32]) -> Result<()> {
    call!(116, groups.len(), groups.as_ptr())?;
    call!(106, group)?;
    call!(105, user).map(drop)
}

pub(crate) fn set_mask(mask: u32) {
    let _ = call!(95, mask);
}

// Terminals.

fn control(fd: &Fd, request: usize, argument: usize) -> Result<usize> {
    call!(16, fd.0, request, argument)
}

/// A new terminal: the side that shows it, and the side of its programs.
pub(crate) fn terminal() -> Result<(Fd, Fd)> {
    let shown = open(c"/dev/ptmx", READ_WRITE | NO_TERMINAL)?;
    let locked = 0i32;
    control(&shown, 0x4004_5431, &raw const locked as usize)?;
    let flags = READ_WRITE | NO_TERMINAL | CLOSE_ON_EXEC;
    let side = control(&shown, 0x5441, flags as usize)?;
    Ok((shown, Fd::new(side)))
}

pub(crate) fn resize(terminal: &Fd, rows: u16, columns: u16) -> Result<()> {
    let size = [rows, columns, 0, 0];
    control(terminal, 0x5414, size.as_ptr() as usize).map(drop)
}

/// Makes it the session's own.
pub(crate) fn take_terminal(terminal: &Fd) -> Result<()> {
    control(terminal, 0x540e, 0).map(drop)
}

// Time.

/// Nanoseconds since the machine's start.
pub(crate) fn now() -> u64 {
    let mut time = [0i64; 2];
    let _ = call!(228, 7, time.as_mut_ptr());
    time[0] as u64 * 1_000_000_000 + time[1] as u64
}

pub(crate) fn sleep(milliseconds: u32) {
    let _ = poll(&mut [], Some(milliseconds));
}

// The machine.

pub(crate) fn set_host_name(name: &[u8]) -> Result<()> {
    call!(170, name.as_ptr(), name.len()).map(drop)
}

/// Writes what is to be kept.
pub(crate) fn sync() {
    let _ = call!(162);
}

/// Writes what is to be kept, and ends the machine.
pub(crate) fn power_off() -> ! {
    sync();
    let _ = call!(169, 0xfee1_dead_u32, 672_274_793, 0x4321_fedc, 0);
    // A kernel that cannot: a reset ends a VM as well.
    let _ = call!(169, 0xfee1_dead_u32, 672_274_793, 0x0123_4567, 0);
    exit(0)
}

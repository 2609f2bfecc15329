//! Back ends in memory, which fail as an input says.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};

use ampoule_devices::backend::disk::BlockBackend;
use ampoule_devices::backend::net::{NetBackend, Offloads};
use vm_memory::VolatileSlice;
use vmm_sys_util::eventfd::EventFd;

/// Bytes of a [`MemoryDisk`].
pub const DISK: usize = 64 << 10;

/// A disk in memory.
pub struct MemoryDisk {
    pub content: Mutex<Vec<u8>>,
    read_only: bool,
    /// What becomes of the next calls: 0 is success, 1 is failure, all else is failure after so many bytes.
    pub failures: Mutex<VecDeque<u8>>,
}

impl MemoryDisk {
    pub fn new(read_only: bool) -> Arc<Self> {
        Arc::new(Self {
            content: Mutex::new((0..DISK).map(|at| (at / 512 + at) as u8).collect()),
            read_only,
            failures: Mutex::default(),
        })
    }

    /// How many of `len` bytes are done, and whether it fails after them.
    fn fate(&self, len: usize) -> (usize, io::Result<()>) {
        match self.failures.lock().unwrap().pop_front().unwrap_or(0) {
            0 => (len, Ok(())),
            done => {
                let done = usize::from(done - 1).min(len);
                (done, Err(io::Error::from_raw_os_error(libc::EIO)))
            }
        }
    }

    fn set(&self, offset: u64, len: u64, byte: u8) -> io::Result<()> {
        assert!(!self.read_only, "a read-only disk is changed");
        let (done, result) = self.fate(len as usize);
        self.content.lock().unwrap()[offset as usize..][..len as usize][..done].fill(byte);
        result
    }
}

impl BlockBackend for MemoryDisk {
    fn size(&self) -> u64 {
        DISK as u64
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn read_at(&self, data: &[VolatileSlice<'_>], offset: u64) -> io::Result<()> {
        let len = data.iter().map(VolatileSlice::len).sum();
        let (done, result) = self.fate(len);
        let content = self.content.lock().unwrap();
        let mut rest = &content[offset as usize..][..len][..done];
        for slice in data {
            let (now, later) = rest.split_at(slice.len().min(rest.len()));
            slice.copy_from(now);
            rest = later;
        }
        result
    }

    fn write_at(&self, data: &[VolatileSlice<'_>], offset: u64) -> io::Result<()> {
        assert!(!self.read_only, "a read-only disk is written");
        let len = data.iter().map(VolatileSlice::len).sum();
        let (done, result) = self.fate(len);
        let mut content = self.content.lock().unwrap();
        let mut rest = &mut content[offset as usize..][..len][..done];
        for slice in data {
            let (now, later) = rest.split_at_mut(slice.len().min(rest.len()));
            slice.copy_to(now);
            rest = later;
        }
        result
    }

    fn flush(&self) -> io::Result<()> {
        self.fate(0).1
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.set(offset, len, 0)
    }

    fn write_zeroes(&self, offset: u64, len: u64, _unmap: bool) -> io::Result<()> {
        self.set(offset, len, 0)
    }
}

/// A network in memory.
pub struct MemoryNet {
    event: EventFd,
    offloads: bool,
    /// Headers and frames for the guest.
    pub frames: Mutex<VecDeque<Vec<u8>>>,
    /// Headers and frames of the guest's.
    pub sent: Mutex<Vec<Vec<u8>>>,
    /// The error of all calls, where there is one.
    pub error: Mutex<Option<i32>>,
}

impl MemoryNet {
    pub fn new(offloads: bool) -> Arc<Self> {
        Arc::new(Self {
            event: EventFd::new(libc::EFD_NONBLOCK).expect("no event"),
            offloads,
            frames: Mutex::default(),
            sent: Mutex::default(),
            error: Mutex::default(),
        })
    }

    /// Has a frame for the guest, and says so.
    pub fn give(&self, packet: Vec<u8>) {
        self.frames.lock().unwrap().push_back(packet);
        self.event.write(1).expect("no event");
    }

    fn fail(&self) -> io::Result<()> {
        match *self.error.lock().unwrap() {
            Some(code) => Err(io::Error::from_raw_os_error(code)),
            None => Ok(()),
        }
    }
}

impl NetBackend for MemoryNet {
    fn send(&self, packet: &[VolatileSlice<'_>]) -> io::Result<()> {
        self.fail()?;
        let mut bytes = Vec::new();
        for slice in packet {
            let start = bytes.len();
            bytes.resize(start + slice.len(), 0);
            slice.copy_to(&mut bytes[start..]);
        }
        self.sent.lock().unwrap().push(bytes);
        Ok(())
    }

    fn receive(&self, room: &[VolatileSlice<'_>]) -> io::Result<usize> {
        self.fail()?;
        let frame = self.frames.lock().unwrap().pop_front();
        let frame = frame.ok_or(io::ErrorKind::WouldBlock)?;
        let mut rest = &frame[..];
        for slice in room {
            let (now, later) = rest.split_at(slice.len().min(rest.len()));
            slice.copy_from(now);
            rest = later;
        }
        Ok(frame.len() - rest.len())
    }

    fn fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }

    fn takes(&self) -> Offloads {
        self.offloads()
    }

    fn offloads(&self) -> Offloads {
        Offloads {
            csum: self.offloads,
            tso4: self.offloads,
            tso6: self.offloads,
            ufo: self.offloads,
        }
    }

    fn set_enabled(&self, _: bool) -> io::Result<()> {
        self.fail()
    }

    fn set_offloads(&self, _: Offloads) -> io::Result<()> {
        self.fail()
    }
}

//! In the place of asynchronous I/O, in a build without it: a ring that nobody can make.

use std::convert::Infallible;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{BorrowedFd, RawFd};

use vm_memory::{GuestMemoryMmap, VolatileSlice};

/// A ring, of which there is none.
pub struct DiskRing<T> {
    never: Infallible,
    _what: PhantomData<T>,
}

impl<T: Copy> DiskRing<T> {
    /// There is none.
    ///
    /// # Errors
    /// Always.
    pub fn new(_: BorrowedFd<'_>, _: u16) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Cannot be called, as all that follow.
    pub fn fd(&self) -> RawFd {
        match self.never {}
    }

    /// See [`Self::fd`].
    pub fn wake(&mut self) {
        match self.never {}
    }

    /// See [`Self::fd`].
    pub fn listen(&mut self) {
        match self.never {}
    }

    /// See [`Self::fd`].
    pub fn attach(&mut self, _: &GuestMemoryMmap<()>) {
        match self.never {}
    }

    /// See [`Self::fd`].
    pub fn detach(&mut self) {
        match self.never {}
    }

    /// See [`Self::fd`].
    pub fn has_room(&self) -> bool {
        match self.never {}
    }

    /// See [`Self::fd`].
    pub fn has_queued(&self) -> bool {
        match self.never {}
    }

    /// See [`Self::fd`].
    pub fn is_idle(&self) -> bool {
        match self.never {}
    }

    /// See [`Self::fd`].
    ///
    /// # Errors
    /// None.
    pub fn read(&mut self, _: T, _: &[VolatileSlice<'_>], _: u64) -> io::Result<()> {
        match self.never {}
    }

    /// See [`Self::fd`].
    ///
    /// # Errors
    /// None.
    pub fn write(&mut self, _: T, _: &[VolatileSlice<'_>], _: u64) -> io::Result<()> {
        match self.never {}
    }

    /// See [`Self::fd`].
    ///
    /// # Errors
    /// None.
    pub fn sync(&mut self, _: T) -> io::Result<()> {
        match self.never {}
    }

    /// See [`Self::fd`].
    ///
    /// # Errors
    /// None.
    pub fn submit(&mut self) -> io::Result<()> {
        match self.never {}
    }

    /// See [`Self::fd`].
    ///
    /// # Errors
    /// None.
    pub fn wait(&mut self) -> io::Result<()> {
        match self.never {}
    }

    /// See [`Self::fd`].
    pub fn is_ready(&mut self) -> bool {
        match self.never {}
    }

    /// See [`Self::fd`].
    pub fn reap(&mut self) -> Option<(T, io::Result<()>)> {
        match self.never {}
    }
}

//! The streams of files, of a session.

use super::{OUT, SessionError, text_of};
use crate::copy::{Copies, CopyError, Host};
use crate::protocol::{Frame, MAX_PAYLOAD, Receipt, Stream, WINDOW};
use crate::tree::{Pack, Unpack};

/// Files on their way into the guest and out of it.
pub(super) struct Transfers {
    /// What is read, until it has all been sent.
    pack: Option<Pack<Host>>,
    /// Read, and not yet on its way; whether there is more to read.
    waiting: Vec<u8>,
    is_more: bool,
    /// What the guest has room for.
    room: u32,
    /// What is written, until all has come or something is wrong with it.
    unpack: Option<Unpack<Host>>,
    is_asked: bool,
    /// What the guest may send.
    credit: u32,
    receipt: Receipt,
    not_copied: Vec<String>,
    left_out: Vec<String>,
}

impl Transfers {
    pub(super) fn new(copies: &Copies) -> Result<Self, CopyError> {
        let unpack = copies.unpack()?;
        Ok(Self {
            pack: copies.pack(),
            waiting: Vec::new(),
            is_more: true,
            room: WINDOW,
            is_asked: unpack.is_some(),
            unpack,
            credit: WINDOW,
            receipt: Receipt::default(),
            not_copied: Vec::new(),
            left_out: Vec::new(),
        })
    }

    /// Whether the guest has been sent all of its files.
    pub(super) fn is_quiet(&self) -> bool {
        self.pack.is_none()
    }

    /// What was left out on the way into the guest.
    pub(super) fn left_out(&mut self) -> Vec<String> {
        std::mem::take(&mut self.left_out)
    }

    /// Sends more of the files for the guest, where it has room for it.
    pub(super) fn fill(&mut self, out: &mut Vec<u8>, sent: usize) -> Result<(), CopyError> {
        let Some(pack) = &mut self.pack else {
            return Ok(());
        };
        while self.room > 0 && out.len() - sent < OUT {
            if self.waiting.is_empty() && self.is_more {
                self.is_more = pack.fill(&mut self.waiting).map_err(CopyError::Read)?;
            }
            if self.waiting.is_empty() {
                Frame::Close(Stream::CopyIn).encode(out);
                self.left_out = std::mem::take(&mut pack.left_out);
                self.pack = None;
                return Ok(());
            }
            let count = self.waiting.len().min(self.room as usize).min(MAX_PAYLOAD);
            Frame::Data(Stream::CopyIn, &self.waiting[..count]).encode(out);
            self.waiting.drain(..count);
            self.room -= count as u32;
        }
        Ok(())
    }

    /// The guest has room for more.
    pub(super) fn credit(&mut self, count: u32) -> Result<(), SessionError> {
        let room = self.room.checked_add(count).filter(|it| *it <= WINDOW);
        self.room = room.ok_or(SessionError::Protocol("too much credit"))?;
        Ok(())
    }

    /// Takes a piece of what comes out of the guest.
    pub(super) fn take(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), SessionError> {
        if !self.is_asked {
            return Err(SessionError::Protocol("files that nobody asked for"));
        }
        let left = self.credit.checked_sub(bytes.len() as u32);
        self.credit = left.ok_or(SessionError::Protocol("more than a window"))?;
        let Some(unpack) = &mut self.unpack else {
            // It has been told by now, or is about to be.
            return Ok(());
        };
        if let Err(reason) = unpack.push(bytes) {
            self.not_copied.push(reason);
            self.end_now();
            Frame::Close(Stream::CopyOut).encode(out);
            return Ok(());
        }
        if let Some(count) = self.receipt.add(bytes.len()) {
            self.credit += count;
            Frame::Credit(Stream::CopyOut, count).encode(out);
        }
        Ok(())
    }

    /// The guest says that this was all.
    pub(super) fn end(&mut self) {
        let is_complete = self.unpack.as_ref().is_none_or(Unpack::is_complete);
        self.end_now();
        if !is_complete {
            self.not_copied.push("not all of it was sent".into());
        }
    }

    fn end_now(&mut self) {
        if let Some(unpack) = self.unpack.take() {
            let failures = unpack.failures.iter().map(|it| text_of(it));
            self.not_copied.splice(0..0, failures);
        }
    }

    /// What has not come, at the end of a session whose command ran.
    pub(super) fn finish(mut self, has_run: bool) -> Vec<String> {
        if has_run {
            self.end();
        }
        self.not_copied
    }
}

//! Between the host and the command, until the command has ended: its streams, each within its window; signals, the terminal's
//! size; and the dead, whosever children they were.
//!
//! Nothing is buffered without bound: of what comes in, a window of the standard input; of what goes out, [`OUT`] and a frame.

use alloc::vec::Vec;

use crate::command::Running;
use crate::protocol::{Decoder, Frame, MAX_PAYLOAD, Receipt, Stream, WINDOW};
use crate::sys::{self, Ended, Errno, Fd, POLLERR, POLLIN, POLLOUT, PollFd};
use crate::{Problem, files};

/// Outputs are not read while so much is waiting for the host.
const OUT: usize = 128 << 10;

/// Milliseconds that the host has to take the last message.
const PATIENCE: u32 = 10_000;

pub(crate) struct Relay {
    connection: Fd,
    decoder: Decoder,
    out: Vec<u8>,
    /// What is before has been sent.
    sent: usize,
    is_machine: bool,
    is_connected: bool,
    /// What the command has still to read, and whether that is all.
    input: Vec<u8>,
    input_ends: bool,
    receipt: Receipt,
    /// How much the host takes of each output.
    credit: [u32; 2],
    buffer: Vec<u8>,
}

/// What outputs are called in messages.
const OUTPUTS: [Stream; 2] = [Stream::Output, Stream::Error];

impl Relay {
    pub(crate) fn new(connection: Fd, is_machine: bool) -> Self {
        let buffer = alloc::vec![0; MAX_PAYLOAD];
        let is_connected = connection.set_nonblocking().is_ok();
        Self {
            connection,
            decoder: Decoder::default(),
            out: Vec::new(),
            sent: 0,
            is_machine,
            is_connected,
            input: Vec::new(),
            input_ends: false,
            receipt: Receipt::default(),
            credit: [WINDOW; 2],
            buffer,
        }
    }

    /// A message for the host, to go when it can.
    pub(crate) fn send(&mut self, frame: &Frame<'_>) {
        frame.encode(&mut self.out);
        self.flush();
    }

    /// Waits for bytes of the host: how many; nothing where it cannot be read.
    pub(crate) fn receive(&mut self, buffer: &mut [u8]) -> Option<usize> {
        loop {
            self.flush();
            match self.connection.read(buffer) {
                Err(Errno::AGAIN | Errno::INTR) => {
                    let events = POLLIN | if self.is_flushed() { 0 } else { POLLOUT };
                    let mut fds = [PollFd::new(Some(&self.connection), events)];
                    sys::poll(&mut fds, None).ok()?;
                }
                other => return other.ok(),
            }
        }
    }

    /// Goes on where another has decoded.
    pub(crate) fn resume(&mut self, decoder: Decoder) {
        self.decoder = decoder;
    }

    /// Gives `take` what comes of the files for the guest, to their end; whether the host is still there. Before that it sends
    /// nothing else.
    pub(crate) fn copy_in(
        &mut self,
        mut take: impl FnMut(&[u8]) -> Result<(), Problem>,
    ) -> Result<bool, Problem> {
        let mut receipt = Receipt::default();
        let mut buffer = alloc::vec![0; MAX_PAYLOAD];
        loop {
            match self.decoder.next_frame() {
                Ok(Some(Frame::Data(Stream::CopyIn, bytes))) => {
                    take(bytes)?;
                    if let Some(count) = receipt.add(bytes.len()) {
                        Frame::Credit(Stream::CopyIn, count).encode(&mut self.out);
                    }
                    continue;
                }
                Ok(Some(Frame::Close(Stream::CopyIn))) => return Ok(true),
                Ok(None) => {}
                Ok(Some(_)) | Err(_) => {
                    return Err(Problem::setup("the host does not send its files".into()));
                }
            }
            match self.receive(&mut buffer) {
                Some(0) | None => return Ok(false),
                Some(count) => self.decoder.push(&buffer[..count]),
            }
        }
    }

    /// Sends what `fill` gives until it says that there is no more, as the host has room; whether the host is still there.
    pub(crate) fn copy_out(&mut self, mut fill: impl FnMut(&mut Vec<u8>) -> bool) -> bool {
        let mut credit = WINDOW;
        let mut waiting = Vec::new();
        let mut is_more = true;
        loop {
            loop {
                match self.decoder.next_frame() {
                    Ok(Some(Frame::Credit(Stream::CopyOut, count))) => {
                        credit = credit.saturating_add(count);
                    }
                    // It wants no more.
                    Ok(Some(Frame::Close(Stream::CopyOut))) => return true,
                    // For the command, which has ended.
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(_) => return false,
                }
            }
            while waiting.is_empty() && is_more {
                is_more = fill(&mut waiting);
            }
            if waiting.is_empty() {
                self.send(&Frame::Close(Stream::CopyOut));
                return self.is_connected;
            }
            let room = OUT.saturating_sub(self.out.len() - self.sent);
            let count = waiting
                .len()
                .min(credit as usize)
                .min(room)
                .min(MAX_PAYLOAD);
            if count > 0 {
                Frame::Data(Stream::CopyOut, &waiting[..count]).encode(&mut self.out);
                waiting.drain(..count);
                credit -= count as u32;
                self.flush();
            }
            let out = if self.is_flushed() { 0 } else { POLLOUT };
            let mut fds = [PollFd::new(Some(&self.connection), POLLIN | out)];
            let timeout = if count > 0 { Some(0) } else { None };
            if sys::poll(&mut fds, timeout).is_err() {
                return false;
            }
            self.flush();
            let came = fds[0].came() & !POLLOUT != 0;
            if (came && !self.take()) || !self.is_connected {
                return false;
            }
        }
    }

    /// Sends what is left, and waits until the host has taken it and goes, but not for ever.
    pub(crate) fn finish(mut self) {
        let mut rest = PATIENCE;
        while self.is_connected && rest > 0 {
            self.flush();
            let events = POLLIN | if self.is_flushed() { 0 } else { POLLOUT };
            let mut fds = [PollFd::new(Some(&self.connection), events)];
            let before = sys::now();
            if sys::poll(&mut fds, Some(rest)).is_err() {
                return;
            }
            let passed = (sys::now() - before) / 1_000_000;
            rest = rest.saturating_sub(1.max(passed as u32));
            let mut buffer = [0; 512];
            match self.connection.read(&mut buffer) {
                Ok(0) => return,
                Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }

    fn is_flushed(&self) -> bool {
        self.sent == self.out.len()
    }

    fn flush(&mut self) {
        while self.is_connected && !self.is_flushed() {
            match self.connection.write(&self.out[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => self.is_connected = false,
            }
        }
        self.out.clear();
        self.sent = 0;
    }

    /// Serves the command to its end: how it ended; nothing, if the host has gone away before.
    pub(crate) fn run(&mut self, mut running: Running) -> Option<Ended> {
        let children = match sys::child_events() {
            Ok(children) => children,
            Err(err) => crate::die(format_args!("cannot watch processes: {err}")),
        };
        let mut end = None;
        while end.is_none() || running.outputs.iter().any(Option::is_some) {
            if !self.handle(&mut running, end.is_none()) || !self.is_connected {
                self.end_all(running.process);
                return None;
            }
            let wanted = |at: usize, fd: &Option<Fd>| -> bool {
                fd.is_some() && self.credit[at] > 0 && self.out.len() - self.sent < OUT
            };
            let readable: [bool; 2] = [0, 1].map(|at| wanted(at, &running.outputs[at]));
            let output = |at: usize| running.outputs[at].as_ref().filter(|_| readable[at]);
            let out = if self.is_flushed() { 0 } else { POLLOUT };
            let input = if self.input.is_empty() { 0 } else { POLLOUT };
            // A terminal hangs up for its reader; its writer need not ask.
            let is_asked = running.terminal.is_none() || input != 0;
            let input_fd = running.input.as_ref().filter(|_| is_asked);
            let mut fds = [
                PollFd::new(Some(&self.connection), POLLIN | out),
                PollFd::new(Some(&children), POLLIN),
                PollFd::new(input_fd, input),
                PollFd::new(output(0), POLLIN),
                PollFd::new(output(1), POLLIN),
            ];
            if let Err(err) = sys::poll(&mut fds, None) {
                crate::die(format_args!("cannot wait: {err}"));
            }
            let came = fds.map(|fd| fd.came());
            self.flush();
            if came[0] & !POLLOUT != 0 && !self.take() {
                self.end_all(running.process);
                return None;
            }
            if came[1] != 0 {
                let mut event = [0; 128];
                while children.read(&mut event).is_ok() {}
            }
            // Asked in each round, as events of several children are one.
            while let Some((process, ended)) = sys::reap() {
                if process == running.process {
                    end = Some(ended);
                    // Those that it left behind would keep its streams open.
                    self.end_all(process);
                    running.input = None;
                    running.terminal = None;
                }
            }
            if came[2] & POLLERR != 0 {
                self.refuse_input(&mut running);
            } else if came[2] != 0 {
                self.feed(&mut running);
            }
            for at in 0..2 {
                if came[3 + at] != 0 {
                    self.drain(at, &mut running.outputs[at]);
                }
            }
        }
        end
    }

    /// Reads what the host has sent; whether it is still there.
    fn take(&mut self) -> bool {
        match self.connection.read(&mut self.buffer) {
            Ok(0) => false,
            Ok(count) => {
                self.decoder.push(&self.buffer[..count]);
                true
            }
            Err(Errno::AGAIN | Errno::INTR) => true,
            Err(_) => false,
        }
    }

    /// Does what the host's messages say; whether they made sense.
    fn handle(&mut self, running: &mut Running, is_alive: bool) -> bool {
        let mut has_input = false;
        loop {
            match self.decoder.next_frame() {
                Ok(Some(Frame::Data(Stream::Input, bytes))) => {
                    if self.input.len() + bytes.len() > WINDOW as usize {
                        return false;
                    }
                    if running.input.is_some() {
                        self.input.extend_from_slice(bytes);
                        has_input = true;
                    }
                }
                Ok(Some(Frame::Close(Stream::Input))) => {
                    self.input_ends = true;
                    has_input = true;
                }
                Ok(Some(Frame::Close(stream @ (Stream::Output | Stream::Error)))) => {
                    running.outputs[stream as usize - 1] = None;
                }
                Ok(Some(Frame::Credit(stream @ (Stream::Output | Stream::Error), count))) => {
                    let credit = &mut self.credit[stream as usize - 1];
                    *credit = credit.saturating_add(count);
                }
                Ok(Some(Frame::Signal(signal))) if is_alive => {
                    // The whole group has the terminal's attention.
                    let group = running.terminal.is_some();
                    let to = if group {
                        -running.process
                    } else {
                        running.process
                    };
                    let _ = sys::kill(to, signal);
                }
                Ok(Some(Frame::Resize(size))) => {
                    if let Some(terminal) = &running.terminal {
                        let _ = sys::resize(terminal, size.rows, size.columns);
                    }
                }
                Ok(Some(Frame::Signal(_))) => {}
                Ok(None) => break,
                Ok(Some(_)) | Err(_) => return false,
            }
        }
        if has_input {
            if self.input_ends && running.terminal.is_some() {
                // What a person types to end the input: twice, where a line is not complete.
                self.input.extend_from_slice(b"\x04\x04");
                self.input_ends = false;
            }
            self.feed(running);
        }
        true
    }

    /// Gives the command of its input what it takes.
    fn feed(&mut self, running: &mut Running) {
        let Some(input) = &running.input else {
            return;
        };
        let mut count = 0;
        while count < self.input.len() {
            match input.write(&self.input[count..]) {
                Ok(written) => count += written,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => return self.refuse_input(running),
            }
        }
        self.input.drain(..count);
        if self.input.is_empty() && self.input_ends {
            // The command sees the end.
            running.input = None;
        }
        if let Some(count) = self.receipt.add(count) {
            self.send(&Frame::Credit(Stream::Input, count));
        }
    }

    /// Nobody reads the input any more.
    fn refuse_input(&mut self, running: &mut Running) {
        running.input = None;
        self.input = Vec::new();
        self.send(&Frame::Close(Stream::Input));
    }

    /// Takes what the command has written, as much as the host has room for.
    fn drain(&mut self, at: usize, output: &mut Option<Fd>) {
        let Some(fd) = output else {
            return;
        };
        let limit = self.buffer.len().min(self.credit[at] as usize);
        match fd.read(&mut self.buffer[..limit]) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            // A terminal whose last program is gone.
            Ok(0) | Err(_) => {
                *output = None;
                Frame::Close(OUTPUTS[at]).encode(&mut self.out);
            }
            Ok(count) => {
                self.credit[at] -= count as u32;
                Frame::Data(OUTPUTS[at], &self.buffer[..count]).encode(&mut self.out);
            }
        }
        self.flush();
    }

    /// Ends everything that the command has left: with a machine's first process, all others; elsewhere, this process's
    /// children and theirs.
    fn end_all(&mut self, process: i32) {
        if self.is_machine {
            let _ = sys::kill(-1, sys::SIGKILL);
            return;
        }
        let _ = sys::kill(-process, sys::SIGKILL);
        let path = c"/proc/thread-self/children";
        loop {
            let children = files::read(path).unwrap_or_default();
            let numbers = children.split(|byte| *byte == b' ');
            let numbers = numbers.filter_map(|it| core::str::from_utf8(it).ok()?.parse().ok());
            let mut any = false;
            for child in numbers {
                any |= child != process;
                let _ = sys::kill(child, sys::SIGKILL);
            }
            if !any {
                return;
            }
            while let Some((gone, _)) = sys::reap() {
                if gone == process {
                    return;
                }
            }
            sys::sleep(1);
        }
    }
}

//! PID 1 of the guests of `ampoule run IMAGE`: makes the machine ready for one command, runs it, and tells the host how it ended.
//!
//! It takes its job from the host over a socket of the guest (vsock), at the port that the kernel's command line names
//! (`ampoule.port=1024`); `docs/run-protocol.md` has the conversation. There is no C library and no standard library in it.
//! The clock is right already (kvm-clock), and the kernel's random numbers are seeded (virtio-rng, RDRAND).
//!
//! In an initramfs with the file `/modules/boot` it has no such job: it mounts the root that is on the machine's first disk, and becomes
//! the init that is there.
//!
//! Started as `init agent PORT`, by itself as the machine's command, it serves more sessions to whoever connects to that port.
//! Started as another process, `init session FD`, it holds the same conversation over a descriptor that it was given, and
//! sets up nothing: for tests without a machine.

#![no_std]
#![no_main]
#![deny(unsafe_op_in_unsafe_fn)]

extern crate alloc;

mod account;
mod agent;
mod boot;
mod command;
mod copy;
mod dhcp;
mod disk_layout;
mod files;
#[allow(dead_code, reason = "it is the host's half, too")]
mod job;
mod machine;
mod network;
mod protocol;
mod relay;
mod root;
mod shared;
mod sys;
mod tree;

use alloc::format;
use alloc::string::String;
use core::ffi::CStr;
use core::fmt;

use job::Job;
use machine::Loading;
use protocol::{Decoder, Failure, Frame, MAX_PAYLOAD, Started, VERSION};
use relay::Relay;
use sys::Fd;

/// What cannot be done, and why: a clause.
pub(crate) struct Problem(Failure, String);

impl Problem {
    /// The guest cannot be made ready.
    pub(crate) fn setup(text: String) -> Self {
        Self(Failure::Setup, text)
    }
}

/// Names what could not be done.
pub(crate) trait Context<T> {
    fn context(self, text: &str) -> Result<T, Problem>;
}

impl<T> Context<T> for sys::Result<T> {
    fn context(self, text: &str) -> Result<T, Problem> {
        self.map_err(|err| Problem::setup(format!("{text}: {err}")))
    }
}

pub(crate) fn main(arguments: &[&CStr], environment: &[&CStr]) -> ! {
    let start = sys::now();
    if sys::own_id() == 1 {
        let loading = machine::prepare();
        if boot::is_wanted() {
            loading.finish();
            boot::hand_over(arguments, environment);
        }
        let port = machine::port();
        let connection = machine::connect(port);
        let times = Started {
            init: start,
            connected: sys::now(),
            ..Started::default()
        };
        serve(connection, times, Some(loading));
        sys::power_off()
    }
    let number = |text: &CStr| text.to_str().ok()?.parse().ok();
    let number: i32 = match arguments {
        [_, mode, port] if *mode == c"agent" => agent::run(number(port).unwrap_or(0) as u32),
        [_, mode, fd] if *mode == c"session" => number(fd).unwrap_or_else(|| no_machine()),
        _ => no_machine(),
    };
    let _ = sys::block_signals(true);
    let _ = sys::adopt_orphans();
    let times = Started {
        init: start,
        connected: start,
        ..Started::default()
    };
    serve(Fd::inherited(number), times, None);
    sys::exit(0)
}

fn no_machine() -> ! {
    die(format_args!("this is the init of a virtual machine"))
}

/// The whole conversation; in a machine, whose drivers are being loaded.
fn serve(connection: Fd, times: Started, loading: Option<Loading>) {
    let is_machine = loading.is_some();
    let mut relay = Relay::new(connection, is_machine);
    relay.send(&Frame::Hello { version: VERSION });
    let end = match session(&mut relay, times, loading) {
        Ok(end) => end,
        Err(Problem(failure, text)) => {
            relay.send(&Frame::Failed(failure, text.as_bytes()));
            relay.finish();
            return;
        }
    };
    // The host may end the machine as soon as it has heard.
    if is_machine {
        sys::sync();
    }
    match end {
        Some(sys::Ended::Exited(status)) => relay.send(&Frame::Exited(status)),
        Some(sys::Ended::Killed(signal)) => relay.send(&Frame::Killed(signal)),
        // The host is gone.
        None => return,
    }
    relay.finish();
}

fn session(
    relay: &mut Relay,
    mut times: Started,
    loading: Option<Loading>,
) -> Result<Option<sys::Ended>, Problem> {
    let Some(job) = receive(relay)? else {
        return Ok(None);
    };
    let is_machine = loading.is_some();
    times.job = sys::now();
    (times.modules, times.root) = (times.job, times.job);
    if let Some(loading) = loading {
        loading.finish();
        times.modules = sys::now();
        root::enter(&job.root)?;
        times.root = sys::now();
        for notice in machine::set_up(&job)? {
            relay.send(&Frame::Notice(notice.as_bytes()));
        }
        machine::hurry(false);
    }
    times.network = sys::now();
    if !job.copies_in.is_empty() && !copy::take(relay, &job)? {
        return Ok(None);
    }
    if is_machine {
        root::seal(&job.root)?;
    }
    // The host starts the limits of its own session at what a service gets nowadays.
    let _ = sys::limit_files(1024, 524_288);
    let running = command::start(&job, is_machine)?;
    times.command = sys::now();
    relay.send(&Frame::Started(times));
    let end = relay.run(running);
    if end.is_some() && !job.copies_out.is_empty() && !copy::give(relay, &job) {
        return Ok(None);
    }
    Ok(end)
}

/// Waits for the job. Nothing, if the host goes away.
fn receive(relay: &mut Relay) -> Result<Option<Job>, Problem> {
    let mut decoder = Decoder::default();
    let mut buffer = alloc::vec![0; MAX_PAYLOAD];
    loop {
        match decoder.next_frame() {
            Ok(Some(Frame::Job(bytes))) => {
                let job = Job::decode(bytes);
                let job = job.ok_or_else(|| Problem::setup("the job is not understood".into()))?;
                relay.resume(decoder);
                return Ok(Some(job));
            }
            Ok(None) => {}
            Ok(Some(_)) => return Err(Problem::setup("the host does not begin by a job".into())),
            Err(err) => return Err(Problem::setup(format!("{err}"))),
        }
        match relay.receive(&mut buffer) {
            Some(0) | None => return Ok(None),
            Some(count) => decoder.push(&buffer[..count]),
        }
    }
}

/// Says it where a person may see it, and ends the machine, or the process.
pub(crate) fn die(reason: fmt::Arguments<'_>) -> ! {
    say(reason);
    // To a host that waits for a distribution, a guest that is powered off is one that all is well with: the kernel is to panic.
    if sys::own_id() == 1 && !boot::is_wanted() {
        sys::power_off()
    }
    sys::exit(125)
}

/// A line on the console, or standard error.
pub(crate) fn say(text: fmt::Arguments<'_>) {
    let line = format!("ampoule-init: {text}\n");
    let fd = match sys::own_id() {
        1 => sys::open(c"/dev/console", sys::WRITE | sys::NO_TERMINAL),
        _ => Ok(Fd::inherited(2)),
    };
    if let Ok(fd) = fd {
        let _ = fd.write(line.as_bytes());
    }
}

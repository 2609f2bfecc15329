//! What the host sends of files before the command starts, and has of them when it has ended.

use alloc::format;
use alloc::string::String;

use crate::Problem;
use crate::job::Job;
use crate::protocol::Frame;
use crate::relay::Relay;
use crate::sys::at::Guest;
use crate::tree::{Limits, Pack, Place, Unpack};

/// The host may fill the guest, and set whatever modes it likes.
const LIMITS: Limits = Limits {
    bytes: u64::MAX,
    entries: u32::MAX,
    mode: 0o7777,
};

/// Takes the files that the job says are sent; whether the host is still there.
pub(crate) fn take(relay: &mut Relay, job: &Job) -> Result<bool, Problem> {
    let places = job.copies_in.iter().map(|copy| Place {
        path: copy.target.clone(),
        name: copy.name.clone(),
        is_contents: copy.is_contents,
    });
    let mut unpack = Unpack::new(Guest, places.collect(), LIMITS, 0);
    let failed = |text: String| Problem::setup(format!("cannot copy into the guest: {text}"));
    let is_there = relay.copy_in(|bytes| unpack.push(bytes).map_err(failed))?;
    match is_there && !unpack.is_complete() {
        true => Err(failed("not all of it was sent".into())),
        false => Ok(is_there),
    }
}

/// Sends the files that the job asks for; whether the host is still there.
pub(crate) fn give(relay: &mut Relay, job: &Job) -> bool {
    // Below a folder, what else is mounted there is not the command's work: /proc, or a folder of the host's.
    let mut pack = Pack::new(Guest, job.copies_out.clone(), true);
    let is_there = relay.copy_out(|out| match pack.fill(out) {
        Ok(is_more) => is_more,
        Err(reason) => {
            pack.give_up(out, &reason);
            true
        }
    });
    for text in &pack.left_out {
        relay.send(&Frame::Notice(text.as_bytes()));
    }
    is_there
}

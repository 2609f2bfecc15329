//! Sessions on demand, for tests that run several commands in one guest: as the machine's command, this program listens on a port
//! of the guest's, and whoever of the host connects holds the usual conversation with a process of his own.

use crate::protocol::Started;
use crate::sys::{self, Fd};
use crate::{die, serve};

/// What is written to standard output once somebody may connect.
const READY: &[u8] = b"ready\n";

/// Serves until the machine ends.
pub(crate) fn run(port: u32) -> ! {
    let listener = sys::net::listen(port);
    let listener = listener.unwrap_or_else(|err| die(format_args!("cannot listen: {err}")));
    let _ = Fd::inherited(1).write(READY);
    loop {
        let connection = match sys::net::accept(&listener) {
            Ok(connection) => connection,
            Err(err) => die(format_args!("cannot accept a connection: {err}")),
        };
        match sys::fork() {
            Ok(0) => {
                drop(listener);
                let _ = sys::block_signals(true);
                let _ = sys::adopt_orphans();
                let now = sys::now();
                let times = Started {
                    init: now,
                    connected: now,
                    ..Started::default()
                };
                serve(connection, times, None);
                sys::exit(0);
            }
            Ok(_) => {}
            // The host sees that its connection ends.
            Err(_) => {}
        }
        while sys::reap().is_some() {}
    }
}

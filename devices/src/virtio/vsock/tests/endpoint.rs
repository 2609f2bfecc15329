//! The program's own end: it connects and listens without a path, whatever the guest and its driver do.

use std::io;
use std::net::Shutdown;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::*;

/// Longer than anything here takes, on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(60);

impl Guest {
    /// Waits until the device has something for the guest, and takes it.
    fn awaited(&mut self) -> Vec<Header> {
        loop {
            assert!(self.driver.host.wait(), "nothing happens");
            self.driver.host.run(1000);
            let answers = self.answers();
            if !answers.is_empty() {
                return answers;
            }
        }
    }

    /// Waits for a request, and answers it with `op`; the packet that was sent.
    fn answer(&mut self, op: u16) -> Header {
        let request = loop {
            let packets = self.awaited();
            let found = packets.iter().find(|packet| packet.op == op::REQUEST);
            if let Some(found) = found {
                break *found;
            }
        };
        let answer = Header {
            op,
            buf_alloc: 1 << 16,
            ..request.reset_of()
        };
        self.send(answer, &[]);
        answer
    }
}

fn connecting(guest: &Guest, port: u32) -> JoinHandle<io::Result<VsockStream>> {
    let endpoint = guest.endpoint();
    thread::spawn(move || endpoint.connect(port))
}

fn kind<T>(outcome: io::Result<T>) -> io::ErrorKind {
    outcome.err().expect("no error").kind()
}

#[test]
fn a_connection_of_the_programs_is_accepted_or_refused_by_the_guest() {
    let mut guest = Guest::new();
    let connected = connecting(&guest, 52);
    let answer = guest.answer(op::RESPONSE);
    assert_eq!(answer.src_port, 52);
    let mut stream = connected.join().unwrap().unwrap();
    assert_eq!(stream.guest_port(), 52);
    guest.send_data(answer, b"hello");
    let mut bytes = [0; 5];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"hello");
    stream.try_clone().unwrap().write_all(b"world!").unwrap();
    let got = guest.awaited();
    assert!(got.iter().any(|it| (it.op, it.len) == (op::RW, 6)));
    stream.shutdown(Shutdown::Write).unwrap();
    let got = guest.awaited();
    assert!(got.iter().any(|it| it.op == op::SHUTDOWN), "{got:?}");

    let refused = connecting(&guest, 53);
    guest.answer(op::RST);
    assert_eq!(
        kind(refused.join().unwrap()),
        io::ErrorKind::ConnectionRefused
    );
}

#[test]
fn a_connection_waits_for_a_driver_and_for_the_next_one() {
    let life = EndpointLife::new().unwrap();
    let endpoint = life.endpoint().clone();
    // There is no device yet.
    let outcome = endpoint.connect_timeout(52, Duration::from_millis(1));
    assert_eq!(kind(outcome), io::ErrorKind::TimedOut);
    assert!(endpoint.take().is_none(), "it is asked for still");

    let mut guest = Guest::new();
    guest.driver.write(register::STATUS, 0);
    let connected = connecting(&guest, 52);
    guest.reset();
    // The driver hears of it, and goes without an answer.
    let heard = guest.awaited();
    assert_eq!(heard[0].op, op::REQUEST);
    guest.reset();
    guest.answer(op::RESPONSE);
    let mut stream = connected.join().unwrap().unwrap();
    guest.reset();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0, "open after a reset");
}

#[test]
fn a_listener_comes_before_the_socket_of_its_port_and_stays_through_resets() {
    let mut guest = Guest::new();
    let endpoint = guest.endpoint();
    let path = guest.folder.path().join("v_7");
    let socket = UnixListener::bind(&path).unwrap();
    let listener = endpoint.listen(7).unwrap();
    assert_eq!(kind(endpoint.listen(7)), io::ErrorKind::AddrInUse);
    assert_eq!(kind(endpoint.listen(u32::MAX)), io::ErrorKind::InvalidInput);
    let none = listener.accept_timeout(Duration::ZERO);
    assert_eq!(kind(none), io::ErrorKind::TimedOut);
    for _ in 0..2 {
        let request = guest.request(7);
        guest.send(request, &[]);
        assert_eq!(guest.answers()[0].op, op::RESPONSE);
        let mut stream = listener.accept_timeout(PATIENCE).unwrap();
        assert_eq!(stream.guest_port(), 1000);
        guest.send_data(request, b"hello");
        let mut bytes = [0; 5];
        stream.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"hello");
        guest.reset();
        assert_eq!(stream.read(&mut bytes).unwrap(), 0, "open after a reset");
    }
    drop(listener);
    let request = guest.request(7);
    guest.send(request, &[]);
    assert_eq!(guest.answers()[0].op, op::RESPONSE);
    socket.accept().unwrap();
    endpoint.listen(7).unwrap();
}

#[test]
fn a_backlog_is_bounded_and_goes_with_its_listener() {
    let mut guest = Guest::new();
    let listener = guest.endpoint().listen(7).unwrap();
    let request = |guest: &Guest, port| Header {
        src_port: port,
        ..guest.request(7)
    };
    for port in 0..MAX_VSOCK_BACKLOG as u32 {
        let request = request(&guest, port);
        guest.send(request, &[]);
        assert_eq!(guest.answers()[0].op, op::RESPONSE);
    }
    let one_more = request(&guest, 500);
    guest.send(one_more, &[]);
    guest.assert_reset(one_more);
    assert_eq!(listener.accept().unwrap().guest_port(), 0);
    let one_more = request(&guest, 501);
    guest.send(one_more, &[]);
    assert_eq!(guest.answers()[0].op, op::RESPONSE);
    drop(listener);
    let told = guest.awaited();
    assert!(told.iter().all(|it| it.op == op::SHUTDOWN), "{told:?}");
}

#[test]
fn when_the_vm_ends_all_that_waits_fails_and_streams_end() {
    let mut guest = Guest::new();
    let endpoint = guest.endpoint();
    let listener = endpoint.listen(7).unwrap();
    let request = guest.request(7);
    guest.send(request, &[]);
    let mut stream = listener.accept().unwrap();
    // It sends its result, and is gone before anybody looks.
    let last = Header {
        src_port: 1001,
        ..request
    };
    guest.send(last, &[]);
    guest.send_data(last, b"result");
    guest.driver.write(register::STATUS, 0);
    let connecting = connecting(&guest, 52);
    let accepting = thread::spawn(move || {
        let streams = listener.incoming().map(|mut stream| {
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            text
        });
        (streams.collect::<Vec<_>>(), listener.accept())
    });
    drop(guest.life.take());
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    assert_eq!(kind(connecting.join().unwrap()), io::ErrorKind::BrokenPipe);
    let (texts, outcome) = accepting.join().unwrap();
    assert_eq!(texts, ["result"]);
    assert_eq!(kind(outcome), io::ErrorKind::BrokenPipe);
    assert_eq!(kind(endpoint.listen(8)), io::ErrorKind::BrokenPipe);
    assert_eq!(kind(endpoint.connect(8)), io::ErrorKind::BrokenPipe);
}

//! The socket device: streams between programs of host and guest, both ways.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;

use tempfile::TempDir;

use crate::driver::Vm;
use crate::guest::{LOAD_VIRTIO, boot, linux};
use crate::virtio::ask;

const LEN: usize = 8 << 20;

fn boot_with_vsock(version: &str) -> (Vm, TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("v.sock");
    let mut command = linux(version, "vmlinux");
    command.arg("--vsock");
    command.arg(format!("cid=3,socket={}", socket.display()));
    let (mut vm, _) = boot(command);
    ask(&mut vm, LOAD_VIRTIO);
    (vm, folder, socket)
}

/// A stream to a port of the guest, if it is listened on.
fn connect(socket: &Path, port: u32) -> Option<UnixStream> {
    let mut stream = UnixStream::connect(socket).unwrap();
    writeln!(stream, "CONNECT {port}").unwrap();
    let mut line = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte).unwrap() == 1 {
        if byte == *b"\n" {
            let line = String::from_utf8(line).unwrap();
            let host_port = line.strip_prefix("OK ").unwrap();
            assert!(host_port.parse::<u32>().is_ok(), "{line}");
            return Some(stream);
        }
        line.push(byte[0]);
    }
    assert_eq!(line, b"");
    None
}

/// Sends so many bytes, which are to come back.
pub(crate) fn expect_echo(mut stream: UnixStream, len: usize) {
    let bytes: Vec<u8> = (0..len).map(|at| (at / 251) as u8 ^ at as u8).collect();
    let echoed = thread::scope(|scope| {
        let mut sender = stream.try_clone().unwrap();
        let bytes = &bytes;
        scope.spawn(move || {
            sender.write_all(bytes).unwrap();
            sender.shutdown(Shutdown::Write).unwrap();
        });
        let mut echoed = Vec::new();
        stream.read_to_end(&mut echoed).unwrap();
        echoed
    });
    assert_eq!(echoed.len(), len);
    assert!(echoed == bytes, "the bytes differ");
}

/// The first connection to a port goes nowhere, as nobody listens; the second is echoed.
pub(crate) fn the_host_talks_to_the_guest() {
    let (mut vm, _folder, socket) = boot_with_vsock("6.1");
    assert!(connect(&socket, 51).is_none());
    vm.send("vsock_echo listen 52\n");
    vm.expect("vsock listens");
    expect_echo(connect(&socket, 52).expect("nobody listens"), LEN);
    vm.expect("vsock echoed");
    vm.send("poweroff -f\n");
    vm.end().expect_code(0);
    assert!(!socket.exists());
}

/// The guest is refused where nobody listens; elsewhere it is echoed; a program that goes half-way does not hurt the VM; and
/// there may be a thousand connections, which is more than a process may have descriptors for if it does not ask for more.
pub(crate) fn the_guest_talks_to_the_host() {
    let (mut vm, folder, _) = boot_with_vsock("6.1");
    let vm = &mut vm;
    vm.send("vsock_echo connect 1233 1\n");
    vm.expect("connect: Connection reset by peer");

    let listener = UnixListener::bind(folder.path().join("v.sock_1234")).unwrap();
    vm.send(&format!("vsock_echo connect 1234 {LEN}\n"));
    let (mut reader, _) = listener.accept().unwrap();
    let mut writer = reader.try_clone().unwrap();
    assert_eq!(std::io::copy(&mut reader, &mut writer).unwrap(), LEN as u64);
    writer.shutdown(Shutdown::Write).unwrap();
    vm.expect("vsock transferred");

    vm.send(&format!("vsock_echo connect 1234 {LEN}\n"));
    let (mut gone, _) = listener.accept().unwrap();
    gone.read_exact(&mut [0; 100_000]).unwrap();
    drop(gone);
    vm.expect("write: Broken pipe");

    let accepted = thread::spawn(move || {
        let streams: Vec<_> = (0..1000).map(|_| listener.accept().unwrap().0).collect();
        streams.len()
    });
    ask(vm, "vsock_echo many 1234 1000 | grep 'made 1000'");
    assert_eq!(accepted.join().unwrap(), 1000);
    ask(vm, "true");
    vm.send("poweroff -f\n");
}

/// How much goes each way in [`linux_6_12_sends_pages_from_where_they_lie`]: as many bytes as the environment says in
/// AMPOULE_TEST_VSOCK_BYTES, a multiple of 4096.
fn len() -> u64 {
    let given = std::env::var("AMPOULE_TEST_VSOCK_BYTES").ok();
    given.map_or(LEN as u64, |given| {
        given.parse().expect("a number of bytes")
    })
}

/// A newer driver, which sends a packet as many pieces as it has pages.
pub(crate) fn linux_6_12_sends_pages_from_where_they_lie() {
    let (mut vm, folder, _) = boot_with_vsock("6.12");
    let vm = &mut vm;
    let listener = UnixListener::bind(folder.path().join("v.sock_1234")).unwrap();
    // The pages are all there at once: less than the guest's memory.
    for (way, len) in [("connect", len()), ("zerocopy", LEN as u64)] {
        vm.send(&format!("vsock_echo {way} 1234 {len}\n"));
        let (mut reader, _) = listener.accept().unwrap();
        let mut writer = reader.try_clone().unwrap();
        assert_eq!(std::io::copy(&mut reader, &mut writer).unwrap(), len);
        writer.shutdown(Shutdown::Write).unwrap();
        vm.expect("vsock transferred");
    }
    vm.send("poweroff -f\n");
}

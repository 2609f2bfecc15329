//! A resolver on this host's loopback, by which guests with user networking find names. Needs root: its port is 53.

use std::fs::{self, Permissions};
use std::io::Write;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use tempfile::NamedTempFile;

use crate::user::{User, user};

/// The host's own router.
pub(crate) fn gateway() -> Ipv4Addr {
    let routes = fs::read_to_string("/proc/net/route").unwrap();
    // Columns: interface, destination, gateway in the machine's order of bytes; all zeroes is the default route.
    let router = routes.lines().find_map(|line| {
        let mut columns = line.split_whitespace().skip(1);
        columns.next().filter(|it| *it == "00000000")?;
        u32::from_str_radix(columns.next()?, 16).ok()
    });
    Ipv4Addr::from(router.expect("no default route").swap_bytes())
}

/// A resolver on the host's loopback: every name has the same address.
pub(crate) struct Resolver {
    socket: UdpSocket,
    answering: Option<JoinHandle<()>>,
    /// What programs are to find as /etc/resolv.conf.
    settings: NamedTempFile,
    /// There is one at a time.
    _turn: MutexGuard<'static, ()>,
}

impl Resolver {
    pub(crate) fn start(address: Ipv4Addr) -> Self {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let socket =
            UdpSocket::bind("127.0.0.1:53").expect("the host has a resolver on its loopback");
        let serving = socket.try_clone().unwrap();
        let answering = thread::spawn(move || {
            let mut question = [0; 512];
            while let Ok((len, peer)) = serving.recv_from(&mut question) {
                if len == 0 {
                    return;
                }
                let _ = serving.send_to(&answer(&question[..len], address), peer);
            }
        });
        let mut settings = NamedTempFile::new().unwrap();
        settings.write_all(b"nameserver 127.0.0.1\n").unwrap();
        fs::set_permissions(settings.path(), Permissions::from_mode(0o644)).unwrap();
        Self {
            socket,
            answering: Some(answering),
            settings,
            _turn: turn,
        }
    }

    /// The command, where the host's resolver is this one.
    pub(crate) fn used_by(&self, command: Command) -> Command {
        let script = format!(
            "mount --bind {} /etc/resolv.conf && exec {} \"$@\"",
            self.settings.path().display(),
            user().map_or_else(String::new, User::setpriv)
        );
        let mut other = Command::new("unshare");
        other
            .args(["--mount", "--", "sh", "-c", &script, "sh"])
            .arg(command.get_program())
            .args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => other.env(name, value),
                None => other.env_remove(name),
            };
        }
        other
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        // An empty message ends it.
        let address = self.socket.local_addr().unwrap();
        let _ = self.socket.send_to(&[], address);
        let _ = self.answering.take().map(JoinHandle::join);
    }
}

/// A DNS message that answers a question.
fn answer(question: &[u8], address: Ipv4Addr) -> Vec<u8> {
    let mut answer = question.to_vec();
    // A response, without errors, with one answer if an IPv4 address was asked for.
    let wanted = question[question.len() - 3] == 1;
    answer[2..4].copy_from_slice(&[0x81, 0x80]);
    answer[6..8].copy_from_slice(&[0, u8::from(wanted)]);
    if wanted {
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(address.octets());
    }
    answer
}

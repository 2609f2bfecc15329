//! User networking: `passt` as a helper process, which does in sockets of its own what a guest wants of the network.
//!
//! It is started when the VM is built, and has answered before the guest runs. Frames go over a socket pair, of which it has one
//! end as its standard input, and it ends with that connection ([`Helper`]).

use std::io::{self, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::config::{Forward, Protocol};
use crate::helper::Helper;

const PROGRAM: &str = "passt";

/// How long it may take to answer. On a host without IPv4 it never does, and is taken to be there when it has not ended.
const PATIENCE: Duration = Duration::from_secs(3);

/// The largest MTU, which the guest is told unless it is to have another. What is longer than 36 KiB a Unix socket may take in two
/// parts, and Debian 12's passt (2023_03_09) takes a frame of which it has read a part for lost, and all that follows with it.
pub(crate) const MAX_MTU: u16 = 32_000;

/// What it says about itself where there is no system log.
const NOISE: &str = "to syslog";

/// Why there is no user networking.
#[derive(Debug, Error)]
pub enum PasstError {
    /// The program cannot be started.
    #[error("cannot start {PROGRAM}")]
    Start(#[source] io::Error),
    /// It ended at once.
    #[error("{PROGRAM} has ended, saying \"{message}\"")]
    Ended {
        /// What it said.
        message: String,
    },
    /// The host failed.
    #[error("cannot talk to {PROGRAM}")]
    Host(#[from] io::Error),
}

impl PasstError {
    /// What a person can do about it.
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::Start(source) if source.kind() == io::ErrorKind::NotFound => Some(
                "install it: apt-get install passt; or use a tap: --net tap=NAME".into(),
            ),
            Self::Ended { message } if message.contains("interface not usable") => Some(
                "it takes the guest's addresses from the interface with the host's default route, and there is none: see ip route"
                    .into(),
            ),
            Self::Ended { message } if message.contains("bind") || message.contains("port") => Some(
                "another program has a forwarded port, or it is below 1024 and ampoule is not root: see ss -lntu".into(),
            ),
            _ => None,
        }
    }
}

/// What it is to do.
#[derive(Debug, Clone)]
pub(crate) struct PasstConfig<'a> {
    /// The network interface's name, for messages.
    pub(crate) name: &'a str,
    /// The guest's Ethernet address.
    pub(crate) mac: [u8; 6],
    /// What the guest is to be told, if anything else than [`MAX_MTU`].
    pub(crate) mtu: Option<u16>,
    /// The ports that lead into the guest.
    pub(crate) forward: &'a [Forward],
}

/// Starts it, and waits until it answers; with it comes the socket for the guest's frames.
///
/// # Errors
/// [`PasstError`].
pub(crate) fn start(config: &PasstConfig<'_>) -> Result<(Helper, UnixStream), PasstError> {
    let mut command = Command::new(PROGRAM);
    command.args(arguments(config));
    run(command, config)
}

fn run(mut command: Command, config: &PasstConfig<'_>) -> Result<(Helper, UnixStream), PasstError> {
    let (ours, theirs) = UnixStream::pair()?;
    command.stdin(OwnedFd::from(theirs));
    let mut helper =
        Helper::start(PROGRAM, config.name, command, is_noise).map_err(PasstError::Start)?;
    match wait_for_answer(&ours, config.mac) {
        Ok(()) => {
            helper.answers()?;
            Ok((helper, ours))
        }
        Err(err) if err.kind() == io::ErrorKind::UnexpectedEof => {
            let message = helper.last_words()?;
            Err(PasstError::Ended { message })
        }
        Err(err) => Err(err.into()),
    }
}

fn is_noise(message: &str) -> bool {
    message.ends_with(NOISE)
}

fn arguments(config: &PasstConfig<'_>) -> Vec<String> {
    let mut arguments: Vec<String> = ["--foreground", "--stderr", "--quiet", "--one-off"]
        .map(String::from)
        .into();
    arguments.extend(["--fd".into(), "0".into()]);
    let mtu = config.mtu.unwrap_or(MAX_MTU);
    arguments.extend(["--mtu".into(), mtu.to_string()]);
    for forward in config.forward {
        let option = match forward.protocol {
            Protocol::Tcp => "--tcp-ports",
            Protocol::Udp => "--udp-ports",
        };
        // Without an address, it would be content with what it gets of IPv4 and IPv6, and say nothing of the other.
        let address = forward.address.unwrap_or(Ipv4Addr::UNSPECIFIED);
        let ports = format!("{address}/{}:{}", forward.host, forward.guest);
        arguments.extend([option.into(), ports]);
    }
    arguments
}

/// Asks for an address that no host has, as the guest, and waits for the answer, which passt gives for all of them.
fn wait_for_answer(socket: &UnixStream, mac: [u8; 6]) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut socket = socket;
    let sent = socket.write_all(&question(mac));
    // It may have ended by now, which the next read tells.
    if let Err(err) = sent
        && err.kind() != io::ErrorKind::BrokenPipe
    {
        return Err(err);
    }
    loop {
        let mut prefix = [0; 4];
        let wait = deadline.saturating_duration_since(Instant::now());
        socket.set_read_timeout(Some(wait.max(Duration::from_millis(1))))?;
        match socket.read_exact(&mut prefix) {
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                log::debug!("{PROGRAM} does not answer, as it would by IPv4");
                return Ok(());
            }
            // It ended without having read the question.
            Err(err) if err.kind() == io::ErrorKind::ConnectionReset => {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            other => other?,
        }
        // A frame of a host's other end is short here; what is longer is none of passt's.
        let len = u32::from_be_bytes(prefix).min(1 << 16) as usize;
        let mut frame = vec![0; len];
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.read_exact(&mut frame)?;
        if frame.get(12..14) == Some(&ARP) {
            return Ok(());
        }
    }
}

const ARP: [u8; 2] = [0x08, 0x06];

/// A frame with its length: who has 240.0.0.1? (RFC 826; the address is one that is reserved, and nobody's.)
fn question(mac: [u8; 6]) -> Vec<u8> {
    const SIZE: u32 = 42;
    let mut frame = SIZE.to_be_bytes().to_vec();
    frame.extend([0xff; 6]);
    frame.extend(mac);
    frame.extend(ARP);
    // Ethernet, IPv4, their lengths, a request.
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend([0; 4]);
    frame.extend([0; 6]);
    frame.extend([240, 0, 0, 1]);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config<'a>(forward: &'a [Forward]) -> PasstConfig<'a> {
        PasstConfig {
            name: "net0",
            mac: [2, 0, 0, 0, 0, 1],
            mtu: Some(9000),
            forward,
        }
    }

    /// Runs a shell in passt's place.
    fn shell(script: &str) -> Result<(Helper, UnixStream), PasstError> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        run(command, &config(&[]))
    }

    #[test]
    fn ports_become_arguments() {
        let forward = ["8080:80", "udp:127.0.0.1:5353:53"].map(|text| text.parse().unwrap());
        let all = arguments(&config(&forward)).join(" ");
        let end = "--fd 0 --mtu 9000 --tcp-ports 0.0.0.0/8080:80 --udp-ports 127.0.0.1/5353:53";
        assert!(all.ends_with(end), "{all}");
    }

    #[test]
    fn a_helper_that_answers_is_used_and_ends_with_its_owner() {
        // It gives back the question, which is as good as an answer; and it would never end.
        let (passt, mut socket) = shell("trap '' HUP TERM; exec cat >&0").unwrap();
        socket.write_all(b"frame").unwrap();
        let mut got = [0; 5];
        socket.read_exact(&mut got).unwrap();
        assert_eq!(&got, b"frame");
        let pid = passt.id();
        drop(passt);
        assert_eq!(socket.read(&mut got).unwrap(), 0);
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn a_helper_that_ends_is_quoted() {
        for (script, message) in [
            (
                "echo one >&2; echo 'Failed to send 3 bytes to syslog' >&2; exit 1",
                "one",
            ),
            ("printf 'one\\ntwo\\n' >&2; exit 1", "two"),
            ("exit 0", "nothing"),
        ] {
            match shell(script) {
                Err(PasstError::Ended { message: said }) => assert_eq!(said, message, "{script}"),
                other => panic!("{script}: {other:?}"),
            }
        }
    }

    #[test]
    fn nonsense_is_not_an_answer() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(&[0xff; 4]).unwrap();
        theirs.write_all(&[0; 1000]).unwrap();
        drop(theirs);
        let err = wait_for_answer(&ours, [2, 0, 0, 0, 0, 1]).unwrap_err();
        assert!(matches!(
            err.kind(),
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
        ));
        let asked = question([2, 0, 0, 0, 0, 1]);
        assert_eq!(asked.len(), 4 + 42);
        assert_eq!(asked[..4], [0, 0, 0, 42]);
    }

    #[test]
    fn every_end_has_a_remedy() {
        let missing = PasstError::Start(io::ErrorKind::NotFound.into());
        assert!(missing.remedy().unwrap().contains("apt-get install passt"));
        let ended = |message: &str| {
            let message = message.to_owned();
            PasstError::Ended { message }.remedy()
        };
        assert!(
            ended("External interface not usable")
                .unwrap()
                .contains("ip route")
        );
        assert!(
            ended("Failed to bind any port for '-t 80:80', exiting")
                .unwrap()
                .contains("ss -lntu")
        );
        assert_eq!(ended("something else"), None);
    }
}

//! Tries the bare bench guests under each VMM found: `ampoule-bench try [KIND] [VMM]`.

#![allow(
    clippy::print_stdout,
    reason = "what came of it is this program's output"
)]

mod machine;
mod peer;

use std::env;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ampoule_tests::guests;
use anyhow::{Context, Result, ensure};

use machine::{Disk, Engine, Machine};
use peer::{Launch, Vmm, Vsock};

const TAP: &str = "benchtry";
const STREAM: usize = 64 << 20;

fn main() -> Result<()> {
    let kind = env::args().nth(2).unwrap_or_default();
    let only = env::args().nth(3).unwrap_or_default();
    let folder = tempfile::tempdir_in("/dev/shm")?;
    let image = folder.path().join("disk.img");
    File::create(&image)?.set_len(64 << 20)?;
    let slow = tempfile::tempdir_in("/var/tmp")?;
    let direct = slow.path().join("disk.img");
    File::create(&direct)?.write_all(&vec![0x11; 16 << 20])?;
    let (found, absent) = peer::find();
    for absent in absent {
        println!("{}: {}", absent.name, absent.why);
    }
    ip(&["tuntap", "add", "dev", TAP, "mode", "tap", "vnet_hdr"])?;
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{TAP}/disable_ipv6"), "1");
    ip(&["link", "set", TAP, "up"])?;
    for vmm in &found {
        if !vmm.name().starts_with(&only) {
            continue;
        }
        println!(
            "{}: {:?} at {}",
            vmm.name(),
            vmm.version(),
            vmm.binary().display()
        );
        for (name, machine) in machines(&image, &direct) {
            if !name.starts_with(&kind) {
                continue;
            }
            match attempt(vmm.as_ref(), &machine) {
                Ok(said) => println!("  {name}: {said}"),
                Err(err) => println!("  {name}: {err:#}"),
            }
        }
    }
    ip(&["tuntap", "del", "dev", TAP, "mode", "tap"])
}

fn ip(arguments: &[&str]) -> Result<()> {
    let status = Command::new("ip").args(arguments).status()?;
    ensure!(status.success(), "ip {}", arguments.join(" "));
    Ok(())
}

fn machines(image: &Path, direct: &Path) -> Vec<(String, Machine)> {
    let with = |kernel, cmdline: &str| Machine {
        cmdline: cmdline.into(),
        ..Machine::new(kernel)
    };
    let mut machines = vec![
        ("start".into(), with(guests::BENCH_START, "")),
        ("idle".into(), with(guests::BENCH_IDLE, "")),
    ];
    let mut two = with(guests::BENCH_IDLE, "");
    two.cpus = 2;
    machines.push(("idle 2".into(), two));
    for what in ["e", "o", "i", "r", "w"] {
        let line = format!("what={what} count=10000");
        machines.push((format!("exits {what}"), with(guests::BENCH_EXITS, &line)));
    }
    for line in [
        "op=r size=4096 depth=64 batches=5000",
        "op=r size=4096 depth=64 batches=2500 whole=1",
        "op=w size=4096 depth=64 batches=2500 whole=1",
        "op=m size=4096 depth=64 batches=2500 whole=1 random=1 span=67108864",
        "op=r size=4096 depth=64 batches=500 any=1 random=2 span=67108864",
        "op=r size=65536 depth=64 batches=500 whole=1",
        "op=r size=4096 depth=1 batches=20000 random=1 span=67108864",
    ] {
        let mut machine = with(guests::BENCH_BLOCK, line);
        machine.disks.push(Disk::new(image));
        machines.push((format!("block {line}"), machine));
    }
    for engine in [Engine::Sync, Engine::IoUring] {
        let line = "op=r size=4096 depth=64 batches=1000 whole=1";
        let mut machine = with(guests::BENCH_BLOCK, line);
        machine.disks.push(Disk {
            engine,
            read_only: true,
            ..Disk::new(image)
        });
        machines.push((format!("block {engine:?}"), machine));
        let line = "op=r size=4096 depth=16 batches=50 whole=1 random=2 span=16777216";
        let mut machine = with(guests::BENCH_BLOCK, line);
        machine.disks.push(Disk {
            engine,
            direct: true,
            serial: Some("bench".into()),
            ..Disk::new(direct)
        });
        machines.push((format!("block direct {engine:?}"), machine));
    }
    for line in [
        "op=s size=60 depth=64 batches=2000",
        "op=s size=1514 depth=64 batches=2000",
        "op=r depth=64 batches=100",
    ] {
        let mut machine = with(guests::BENCH_NET, line);
        machine.tap = Some(TAP.into());
        machines.push((format!("net {line}"), machine));
    }
    for line in [
        "op=s size=4096 depth=16",
        "op=s size=65536 depth=4",
        "op=r size=4096 depth=64",
    ] {
        let line = format!("{line} bytes={STREAM}");
        let mut machine = with(guests::BENCH_VSOCK, &line);
        machine.vsock = true;
        machines.push((format!("vsock {line}"), machine));
    }
    machines
}

/// What the guest said, how it ended, and how long it took from `begin` to `end`.
fn attempt(vmm: &dyn Vmm, machine: &Machine) -> Result<String> {
    let place = tempfile::tempdir()?;
    let Launch {
        mut command,
        status,
        held,
        vsock,
    } = match vmm.launch(machine, place.path()) {
        Ok(launch) => launch,
        Err(why) => return Ok(format!("unable: {why}")),
    };
    if let Some(Vsock::Unix(path)) = vsock {
        let mut name = path.into_os_string();
        name.push("_1234");
        let listener = UnixListener::bind(name)?;
        let receives = machine.cmdline.contains("op=r");
        thread::spawn(move || -> Result<()> {
            let (mut stream, _) = listener.accept()?;
            if receives {
                let chunk = vec![7; 1 << 16];
                for _ in 0..STREAM / chunk.len() {
                    stream.write_all(&chunk)?;
                }
                stream.read_to_end(&mut Vec::new())?;
            } else {
                let mut buffer = vec![0; 1 << 16];
                let mut read = 0;
                while read < STREAM {
                    read += stream.read(&mut buffer)?;
                }
            }
            Ok(())
        });
    }
    let started = Instant::now();
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {command:?}"))?;
    let mut errors = child.stderr.take().context("no errors")?;
    let errors = thread::spawn(move || {
        let mut said = String::new();
        errors.read_to_string(&mut said).map(|_| said)
    });
    let pid = child.id().to_string();
    let watchdog = pid.clone();
    let (alive, dead) = std::sync::mpsc::channel::<()>();
    thread::spawn(move || {
        if dead.recv_timeout(Duration::from_secs(20))
            == Err(std::sync::mpsc::RecvTimeoutError::Timeout)
        {
            let _ = Command::new("kill").arg("-9").arg(watchdog).status();
        }
    });
    let output = child.stdout.take().context("no output")?;
    let (mut begin, mut taken, mut said) = (None, Duration::ZERO, Vec::new());
    for line in BufReader::new(output).lines() {
        let line = line?;
        match line.as_str() {
            "begin" => {
                begin = Some(Instant::now());
                if machine.tap.is_some() && machine.cmdline.contains("op=r") {
                    flood()?;
                }
            }
            "end" => taken = begin.map_or(Duration::ZERO, |begin: Instant| begin.elapsed()),
            "ready" => {
                said.push(line);
                let _ = Command::new("kill").arg(&pid).status();
            }
            _ => said.push(line),
        }
    }
    let ended = child.wait()?;
    drop(alive);
    drop(held);
    let well = if ended.code() == Some(status) {
        ""
    } else {
        "NOT WELL, "
    };
    let errors = errors.join().unwrap_or_else(|_| Ok(String::new()))?;
    Ok(format!(
        "{said:?}, {well}{ended}, begin to end {taken:?}, all {:?} {}",
        started.elapsed(),
        errors.trim().chars().take(600).collect::<String>()
    ))
}

/// Frames into the tap, by UDP to an address that nobody has.
fn flood() -> Result<()> {
    ip(&["addr", "replace", "10.99.0.1/24", "dev", TAP])?;
    ip(&[
        "neigh",
        "replace",
        "10.99.0.2",
        "lladdr",
        "52:54:00:ab:ca:fe",
        "dev",
        TAP,
    ])?;
    thread::spawn(|| -> Result<()> {
        let socket = std::net::UdpSocket::bind("10.99.0.1:0")?;
        for _ in 0..20_000 {
            socket.send_to(&[0; 1000], "10.99.0.2:9")?;
            thread::sleep(Duration::from_micros(20));
        }
        Ok(())
    });
    Ok(())
}

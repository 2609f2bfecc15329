//! Those pieces of the init that compute only: users, DHCP, messages. The rest of it runs in `session.rs`.

extern crate alloc;

#[path = "../init/account.rs"]
mod account;
#[path = "../init/dhcp.rs"]
mod dhcp;

use std::process::Command;

use account::{Account, resolve};
use ampoule_image::job::{CopyIn, Job, Mount, Network, Root};
use ampoule_image::protocol::{
    Decoder, Failure, Frame, MAX_PAYLOAD, Malformed, Receipt, Started, Stream, WINDOW, WindowSize,
};
use dhcp::{Lease, answer, message};

const USERS: &[u8] = b"root:x:0:0:root:/root:/bin/sh\nme:x:1000:1001:,,,:/home/me:/bin/sh\n7:x:70:70::/seven:\nbroken\n";
const GROUPS: &[u8] = b"root:x:0:\nwheel:x:10:root,me\nme:x:1001:\nkvm:x:104:me\n";

/// No package of the workspace has all of it, so that nobody else looks.
#[test]
#[allow(clippy::print_stdout, reason = "what could not run says so")]
fn the_whole_init_is_formatted_and_without_lints() {
    let folder = tempfile::tempdir().unwrap();
    let metadata = folder.path().join("init.rmeta");
    let commands: [(&str, &[&str]); 2] = [
        ("rustfmt", &["--edition=2024", "--check"]),
        (
            "clippy-driver",
            &[
                "--edition=2024",
                "--crate-type=bin",
                "--emit=metadata",
                "-Cpanic=abort",
                "-Dwarnings",
                "-Dclippy::undocumented_unsafe_blocks",
                "-o",
                metadata.to_str().unwrap(),
            ],
        ),
    ];
    for (program, options) in commands {
        let root = env!("CARGO_MANIFEST_DIR");
        let mut command = Command::new(program);
        command.args(options).arg("init/main.rs").current_dir(root);
        match command.output() {
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr);
                assert!(output.status.success(), "{program}: {said}");
            }
            Err(err) => println!("skipped: {program}: {err}"),
        }
    }
}

#[test]
fn users_are_found_by_name_and_number() {
    let account = |user, group, groups: &[u32], home: &str| {
        Ok(Account {
            user,
            group,
            groups: groups.into(),
            home: home.into(),
        })
    };
    let resolve = |text: &str| resolve(text.as_bytes(), &[], USERS, GROUPS);
    assert_eq!(resolve(""), account(0, 0, &[0, 10], "/root"));
    assert_eq!(
        resolve("me"),
        account(1000, 1001, &[1001, 10, 104], "/home/me")
    );
    assert_eq!(resolve("1000"), resolve("me"));
    assert_eq!(resolve("me:kvm"), account(1000, 104, &[104], "/home/me"));
    assert_eq!(resolve("me:5"), account(1000, 5, &[5], "/home/me"));
    assert_eq!(resolve("4242"), account(4242, 0, &[0], "/"));
    assert_eq!(resolve("4242:4343"), account(4242, 4343, &[4343], "/"));
    // A name, although it looks like a number.
    assert_eq!(resolve("7"), account(70, 70, &[70], "/seven"));
    let absent = |name, file| Err(format!("there is no {name} in the image's {file}"));
    assert_eq!(resolve("nobody"), absent("user nobody", "/etc/passwd"));
    assert_eq!(resolve("me:none"), absent("group none", "/etc/group"));
    assert_eq!(
        resolve("99999999999"),
        absent("user 99999999999", "/etc/passwd")
    );
    let further = account::resolve(b"me:5", &[b"kvm".into(), b"6".into()], USERS, GROUPS);
    assert_eq!(further.unwrap().groups, [5, 104, 6]);
    assert_eq!(
        account::resolve(b"", &[], b"", b""),
        account(0, 0, &[0], "/")
    );
}

const HARDWARE: [u8; 6] = [2, 0, 0, 1, 2, 3];

/// A server's answer to a client's packet, with these options.
fn reply(asked: &[u8], options: &[u8]) -> Vec<u8> {
    let mut packet = asked[..28].to_vec();
    packet[20..24].copy_from_slice(&[0, 67, 0, 68]);
    packet.extend(&asked[28..28 + 236 + 4]);
    packet[28] = 2;
    packet[28 + 16..28 + 20].copy_from_slice(&[10, 0, 2, 15]);
    packet.extend(options);
    packet
}

const OPTIONS: &[u8] = &[
    53, 1, 2, 0, 1, 4, 255, 255, 0, 0, 3, 4, 10, 0, 2, 2, 6, 8, 10, 0, 2, 3, 1, 1, 1, 1, 54, 4, 10,
    0, 2, 1, 26, 2, 0x05, 0xdc, 255,
];

#[test]
fn a_lease_is_what_a_server_says() {
    let discover = message(HARDWARE, 77, None);
    // The sum over a header with its checksum is all ones.
    let words = discover[..20].chunks(2);
    let sum: u32 = words
        .map(|it| u32::from(it[0]) << 8 | u32::from(it[1]))
        .sum();
    assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
    assert_eq!(
        usize::from(u16::from_be_bytes([discover[2], discover[3]])),
        discover.len()
    );
    let offer = answer(&reply(&discover, OPTIONS), HARDWARE, 77).unwrap();
    let expected = Lease {
        is_final: false,
        address: [10, 0, 2, 15],
        server: [10, 0, 2, 1],
        mask: [255, 255, 0, 0],
        gateway: Some([10, 0, 2, 2]),
        dns: vec![[10, 0, 2, 3], [1, 1, 1, 1]],
        mtu: Some(1500),
    };
    assert_eq!(offer, expected);
    let request = message(HARDWARE, 77, Some(&offer));
    let has = |option: &[u8]| request.windows(option.len()).any(|it| it == option);
    assert!(has(&[53, 1, 3, 50, 4, 10, 0, 2, 15, 54, 4, 10, 0, 2, 1]));
    assert!(
        answer(&reply(&request, &[53, 1, 5, 255]), HARDWARE, 77)
            .unwrap()
            .is_final
    );
}

#[test]
fn what_is_no_answer_is_passed_over() {
    let discover = message(HARDWARE, 77, None);
    let good = reply(&discover, OPTIONS);
    assert_eq!(answer(&discover, HARDWARE, 77), None);
    assert_eq!(answer(&good, HARDWARE, 78), None);
    assert_eq!(answer(&good, [2; 6], 77), None);
    // A refusal; an option longer than the packet.
    assert_eq!(
        answer(&reply(&discover, &[53, 1, 6, 255]), HARDWARE, 77),
        None
    );
    assert_eq!(
        answer(&reply(&discover, &[53, 1, 2, 1, 200]), HARDWARE, 77),
        None
    );
    for length in 0..good.len() {
        let _ = answer(&good[..length], HARDWARE, 77);
    }
}

#[test]
fn messages_are_the_same_on_the_other_side() {
    let frames = [
        Frame::Hello { version: 9 },
        Frame::Job(b"job"),
        Frame::Data(Stream::Error, &[0, 255]),
        Frame::Data(Stream::Input, &[7; MAX_PAYLOAD]),
        Frame::Credit(Stream::Output, 1 << 30),
        Frame::Close(Stream::Input),
        Frame::Signal(15),
        Frame::Resize(WindowSize {
            rows: 1,
            columns: 2000,
        }),
        Frame::Started(Started {
            init: 1,
            modules: 2,
            connected: 3,
            job: 4,
            root: 5,
            network: 6,
            command: u64::MAX,
        }),
        Frame::Exited(42),
        Frame::Killed(11),
        Frame::Failed(Failure::NotFound, b"why"),
        Frame::Notice(b""),
    ];
    let mut bytes = Vec::new();
    frames.iter().for_each(|frame| frame.encode(&mut bytes));
    for piece in [1, 7, bytes.len()] {
        let mut decoder = Decoder::default();
        let mut expected = frames.iter();
        for piece in bytes.chunks(piece) {
            decoder.push(piece);
            while let Some(frame) = decoder.next_frame().unwrap() {
                assert_eq!(Some(&frame), expected.next());
            }
        }
        assert_eq!(expected.next(), None);
    }
}

#[test]
fn what_is_no_message_is_an_error() {
    let decode = |bytes: &[u8]| {
        let mut decoder = Decoder::default();
        decoder.push(bytes);
        decoder.next_frame().map(|it| it.is_some())
    };
    assert_eq!(decode(&[99, 0, 0, 0, 0, 0, 0, 0]), Err(Malformed::Kind(99)));
    let long = MAX_PAYLOAD as u32 + 1;
    let [a, b, c, d] = long.to_le_bytes();
    assert_eq!(
        decode(&[3, 0, 0, 0, a, b, c, d]),
        Err(Malformed::Length(3, long))
    );
    assert_eq!(
        decode(&[3, 5, 0, 0, 0, 0, 0, 0]),
        Err(Malformed::Content(3))
    );
    assert_eq!(
        decode(&[9, 0, 0, 0, 2, 0, 0, 0, 1, 1]),
        Err(Malformed::Content(9))
    );
    assert_eq!(
        decode(&[11, 0, 0, 0, 1, 0, 0, 0, 1]),
        Err(Malformed::Content(11))
    );
    assert_eq!(decode(&[9, 0, 0, 0, 1, 0, 0, 0]), Ok(false));
    let mut receipt = Receipt::default();
    assert_eq!(receipt.add(WINDOW as usize / 2 - 1), None);
    assert_eq!(receipt.add(2), Some(WINDOW / 2 + 1));
}

#[test]
fn jobs_are_the_same_on_the_other_side() {
    let job = Job {
        arguments: vec![b"a".into(), b"".into(), b"\xff b".into()],
        environment: vec![b"A=1".into()],
        user: b"me:kvm".into(),
        groups: vec![b"wheel".into()],
        directory: b"/srv".into(),
        host_name: b"glass".into(),
        terminal: Some(WindowSize {
            rows: 300,
            columns: 2,
        }),
        input: true,
        root: Root::Disk {
            serial: b"ampoule-root".into(),
            file_system: b"erofs".into(),
            overlay: b"".into(),
            read_only: true,
        },
        mounts: vec![Mount {
            source: b"tag".into(),
            target: b"/mnt".into(),
            file_system: b"virtiofs".into(),
            read_only: false,
        }],
        network: Network::Static {
            address: [10, 0, 0, 2],
            prefix: 24,
            gateway: Some([10, 0, 0, 1]),
            dns: vec![[1, 1, 1, 1], [8, 8, 8, 8]],
        },
        copies_in: vec![CopyIn {
            target: b"/srv/".into(),
            name: b"a b".into(),
            is_contents: true,
        }],
        copies_out: vec![b"/a".into(), b"/\xff".into()],
    };
    for job in [job, Job::default()] {
        let bytes = job.encode();
        assert_eq!(Job::decode(&bytes), Some(job));
        for length in 1..bytes.len() {
            let _ = Job::decode(&bytes[..length]);
        }
    }
    assert_eq!(Job::decode(&[200, 0, 0, 0, 0]), None);
    assert_eq!(Job::decode(&[1, 9, 0, 0, 0]), None);
}

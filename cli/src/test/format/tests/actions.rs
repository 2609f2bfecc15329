//! Steps: each action, and their order.

use super::*;

#[test]
fn every_action_is_read() {
    let literal = |text: &str| Pattern::Literal(text.into());
    let regex = |text: &str| Pattern::Regex(text.into());
    let console = |pattern| Action::Expect {
        pattern,
        on: Stream::Console,
    };
    assert_eq!(action("expect = \"a\""), console(literal("a")));
    assert_eq!(
        action("expect = { regex = 'a$' }\non = \"console\""),
        console(regex("a$"))
    );
    for (name, on) in [("output", Stream::Output), ("log", Stream::Log)] {
        let pattern = literal("a");
        assert_eq!(
            action(&format!("expect = \"a\"\non = \"{name}\"")),
            Action::Expect { pattern, on }
        );
    }
    let sent = |echo| Action::Send {
        text: "a\n".into(),
        echo,
    };
    assert_eq!(action("send = \"a\\n\""), sent(false));
    assert_eq!(action("send = \"a\\n\"\necho = true"), sent(true));
    assert_eq!(
        action("run = \"a b\""),
        Action::Run {
            command: RunCommand::Shell("a b".into()),
            input: None,
            status: Some(0),
            stdout: vec![],
            stderr: vec![]
        }
    );
    assert_eq!(
        action(
            "run = [\"a\", \"\"]\nstatus = \"any\"\ninput = \"\"\nstdout = \"o\"\nstderr = [\"e\", { regex = 'f' }]"
        ),
        Action::Run {
            command: RunCommand::Words(vec!["a".into(), String::new()]),
            input: Some(String::new()),
            status: None,
            stdout: vec![literal("o")],
            stderr: vec![literal("e"), regex("f")],
        }
    );
    let url = "http://127.0.0.1:8080/".to_owned();
    assert_eq!(
        action("http = \"http://127.0.0.1:8080/\""),
        Action::Http {
            url: url.clone(),
            status: 200,
            body: vec![]
        }
    );
    assert_eq!(
        action("http = \"http://127.0.0.1:8080/\"\nstatus = 404\nbody = \"b\""),
        Action::Http {
            url,
            status: 404,
            body: vec![literal("b")]
        }
    );
    assert_eq!(
        action("tcp = \"127.0.0.1:22\"\nsend = \"s\"\nexpect = [\"e\"]"),
        Action::Tcp {
            address: "127.0.0.1:22".into(),
            send: Some("s".into()),
            expect: vec![literal("e")]
        }
    );
    let file = |write: Option<&str>, expect| Action::File {
        path: "/f".into(),
        write: write.map(Into::into),
        expect,
    };
    assert_eq!(action("file = \"/f\""), file(None, vec![]));
    assert_eq!(
        action("file = \"/f\"\nwrite = \"\""),
        file(Some(""), vec![])
    );
    assert_eq!(
        action("file = \"/f\"\ncontent = \"c\""),
        file(None, vec![literal("c")])
    );
    for (text, reason, status) in [
        ("wait-exit = \"power-off\"", Some(EndKind::PowerOff), None),
        ("wait-exit = \"any\"", None, None),
        (
            "wait-exit = \"any\"\nstatus = 3",
            Some(EndKind::Command),
            Some(3),
        ),
        (
            "wait-exit = \"command\"\nstatus = 0",
            Some(EndKind::Command),
            Some(0),
        ),
        (
            "wait-exit = \"triple-fault\"",
            Some(EndKind::TripleFault),
            None,
        ),
    ] {
        assert_eq!(action(text), Action::WaitExit { reason, status });
    }
    assert_eq!(action("pause = true"), Action::Pause);
    assert_eq!(action("power-button = true"), Action::PowerButton);
    assert_eq!(action("reset = true"), Action::Reset);
    assert_eq!(
        action("pause = true\n[[step]]\nresume = true"),
        Action::Pause
    );
    assert_eq!(
        action("snapshot-console = \"a.b\""),
        Action::SnapshotConsole { name: "a.b".into() }
    );
    assert_eq!(
        action("timeline = \"init\"\nat-most = 3\ntimes = \"t\"\nsince = \"s\""),
        Action::Timeline {
            mark: "init".into(),
            at_most: 3.0,
            than: "t".into(),
            since: Some("s".into())
        }
    );
}

#[test]
fn faults_are_read() {
    let delay = "10ms".parse().unwrap();
    let disk = |faults: &str| match action(&format!("disk-fault = \"disk0\"\nfaults = [{faults}]"))
    {
        Action::DiskFault { disk, faults } if disk == "disk0" => faults,
        other => panic!("{other:?}"),
    };
    assert_eq!(disk(""), []);
    let (op, when) = (DiskOp::Write, When::Every(1));
    let fault = |effect| DiskFault { op, when, effect };
    assert_eq!(
        disk(
            "{ op = \"write\", every = 1, fail = \"EIO\" }, { op = \"write\", every = 1, fail = 28 }, { op = \"write\", every = 1, delay = \"10ms\" }"
        ),
        [
            fault(DiskEffect::Fail(5)),
            fault(DiskEffect::Fail(28)),
            fault(DiskEffect::Delay(delay))
        ]
    );
    let net = action(
        "net-fault = \"lan\"\nfaults = [{ direction = \"from-guest\", nth = 2, effect = \"drop\" }, { direction = \"to-guest\", every = 3, delay = \"10ms\" }]",
    );
    let faults = vec![
        NetFault {
            from_guest: true,
            when: When::Nth(2),
            effect: NetEffect::Drop,
        },
        NetFault {
            from_guest: false,
            when: When::Every(3),
            effect: NetEffect::Delay(delay),
        },
    ];
    assert_eq!(
        net,
        Action::NetFault {
            net: "lan".into(),
            faults
        }
    );
}

#[test]
fn what_is_wrong_with_a_step_is_told() {
    for (step, start) in [
        (
            "within = \"1s\"",
            "8:1: the step has no action\nit has one of expect, send,",
        ),
        (
            "expect = \"a\"\nsend = \"b\"",
            "8:1: a step has one action, and this one has expect and send\nwrite a [[step]] for each",
        ),
        (
            "expect = \"a\"\nstatus = 3",
            "10:1: status does not belong to expect\nit belongs to run and http and wait-exit; with expect go on, within, name",
        ),
        (
            "expect = \"a\"\nwihtin = \"1s\"",
            "10:1: unknown key \"wihtin\"\ndid you mean \"within\"?",
        ),
        (
            "expect = \"a\"\nwithin = \"1\"",
            "10:10: within: \"1\" is not a duration",
        ),
        (
            "expect = \"a\"\non = \"consol\"",
            "10:6: \"consol\" is no value of on\ndid you mean \"console\"?",
        ),
        (
            "expect = 7",
            "9:10: expect is a pattern: a text, or { regex = '…' }",
        ),
        (
            "expect = { regex = '[' }",
            "9:20: the regular expression cannot be used: unclosed character class",
        ),
        ("send = \"\"", "9:8: send is empty"),
        ("send = \"a\"\necho = 1", "10:8: echo is true or false"),
        ("run = []", "9:7: run is empty"),
        (
            "run = [\"a\", 1]",
            "9:13: a word of run is a string, not a value of type integer",
        ),
        (
            "run = \"a\"\nstatus = 256",
            "10:10: status is 0 to 255, not 256",
        ),
        (
            "run = \"a\"\nstatus = \"0\"",
            "10:10: status is a number, or \"any\"",
        ),
        (
            "run = \"a\"\nstdout = [{ regex = '(' }]",
            "10:21: the regular expression",
        ),
        (
            "http = \"https://a/\"",
            "9:8: a check by https cannot be made",
        ),
        (
            "http = \"http://a/\"\nstatus = 99",
            "10:10: status is 100 to 599, not 99",
        ),
        (
            "tcp = \"127.0.0.1\"",
            "9:7: \"127.0.0.1\": there is no port",
        ),
        ("file = \"etc\"", "9:8: a path in the guest begins by a /"),
        (
            "file = \"/a\"\nwrite = \"\"\ncontent = \"\"",
            "11:1: a file is either written or read",
        ),
        (
            "wait-exit = \"poweroff\"",
            "9:13: \"poweroff\" is no value of wait-exit\ndid you mean \"power-off\"?",
        ),
        (
            "wait-exit = \"panic\"\nstatus = 1",
            "10:1: only a command has a status, panic has none",
        ),
        ("pause = false", "9:9: pause = false is no action"),
        ("reset = 1", "9:9: reset is true or false"),
        ("disk-fault = \"disk0\"", "9:1: the step has no faults"),
        (
            "disk-fault = \"disk1\"\nfaults = []",
            "9:1: the machine has no disk \"disk1\"\ndid you mean \"disk0\"?",
        ),
        (
            "net-fault = \"net0\"\nfaults = []",
            "9:1: the machine has no network \"net0\"\nknown are lan",
        ),
        (
            "disk-fault = \"disk0\"\nfaults = [{ op = \"wirte\", every = 1, fail = \"EIO\" }]",
            "10:18: \"wirte\" is no value of op\ndid you mean \"write\"?",
        ),
        (
            "disk-fault = \"disk0\"\nfaults = [{ op = \"write\", fail = \"EIO\" }]",
            "10:11: a fault has either nth or every",
        ),
        (
            "disk-fault = \"disk0\"\nfaults = [{ op = \"write\", nth = 0, fail = \"EIO\" }]",
            "10:33: nth is 1 or more, not 0",
        ),
        (
            "disk-fault = \"disk0\"\nfaults = [{ op = \"write\", nth = 1, fail = \"EOI\" }]",
            "10:43: \"EOI\" is no error that is known by its name\n",
        ),
        (
            "disk-fault = \"disk0\"\nfaults = [{ op = \"write\", nth = 1, fail = 134 }]",
            "10:43: fail is 1 to 133, not 134",
        ),
        (
            "disk-fault = \"disk0\"\nfaults = [{ op = \"write\", nth = 1, delay = \"11s\" }]",
            "10:44: a delay is 10s at most, not 11s",
        ),
        (
            "disk-fault = \"disk0\"\nfaults = [{ op = \"write\", nth = 1 }]",
            "10:11: a fault of a disk has either fail or delay",
        ),
        (
            "disk-fault = \"disk0\"\nfaults = [{ op = \"write\", nth = 1, fail = 5, efect = 1 }]",
            "10:46: unknown key \"efect\"",
        ),
        (
            "net-fault = \"lan\"\nfaults = [{ nth = 1, effect = \"drop\" }]",
            "10:11: the fault has no direction",
        ),
        (
            "net-fault = \"lan\"\nfaults = [{ direction = \"to-guest\", nth = 1, effect = \"drop\", delay = \"1s\" }]",
            "10:11: a fault of a network has either effect or delay",
        ),
        (
            "timeline = \"a\"\ntimes = \"b\"",
            "9:1: the step has no at-most",
        ),
        (
            "timeline = \"a\"\nat-most = 1",
            "9:1: the step has no times",
        ),
        (
            "timeline = \"a\"\nat-most = -1\ntimes = \"b\"",
            "10:11: at-most is a number above 0",
        ),
        (
            "timeline = \"a\"\nat-most = inf\ntimes = \"b\"",
            "10:11: at-most is a number above 0",
        ),
        (
            "snapshot-console = \"a/b\"",
            "9:20: \"a/b\" is no name of a snapshot",
        ),
    ] {
        let told = step_complaint(step);
        assert!(
            told.starts_with(&format!("a.toml:{start}")),
            "{step}\n{told}"
        );
    }
}

#[test]
fn steps_are_in_an_order_that_can_come_true() {
    let step = |it: &str| format!("{it}\n[[step]]\n");
    for (first, second, start) in [
        (
            "wait-exit = \"any\"",
            "run = \"a\"",
            "run comes after wait-exit",
        ),
        (
            "wait-exit = \"any\"",
            "file = \"/a\"",
            "file comes after wait-exit",
        ),
        (
            "wait-exit = \"any\"",
            "wait-exit = \"any\"",
            "wait-exit comes after wait-exit",
        ),
        (
            "wait-exit = \"any\"",
            "pause = true",
            "pause comes after wait-exit",
        ),
        (
            "pause = true",
            "pause = true",
            "the machine is paused already",
        ),
        (
            "pause = true",
            "run = \"a\"",
            "run wants something of the guest, which is paused",
        ),
        (
            "pause = true",
            "send = \"a\"\necho = true",
            "send wants something of the guest, which is paused",
        ),
        (
            "pause = true",
            "wait-exit = \"any\"",
            "wait-exit wants something of the guest, which is paused",
        ),
        ("send = \"a\"", "resume = true", "the machine is not paused"),
        (
            "snapshot-console = \"a\"",
            "snapshot-console = \"a\"",
            "there are two snapshots named a",
        ),
    ] {
        let told = step_complaint(&(step(first) + second));
        let line = 10 + first.matches('\n').count() + 1;
        assert!(
            told.starts_with(&format!("a.toml:{line}:1: {start}")),
            "{told}"
        );
    }
    for second in [
        "expect = \"a\"",
        "snapshot-console = \"a\"",
        "timeline = \"a\"\nat-most = 1\ntimes = \"b\"",
    ] {
        action(&(step("wait-exit = \"any\"") + second));
    }
    action(&(step("pause = true") + "send = \"a\""));
}

#[test]
fn steps_need_what_they_are_about() {
    for (step, start) in [
        (
            "expect = \"a\"\non = \"output\"",
            "there is no output to expect something on",
        ),
        (
            "run = \"a\"\ninput = \"b\"",
            "input is for commands that ampoule's init runs",
        ),
        ("wait-exit = \"command\"", "there is no command to end"),
        (
            "wait-exit = \"any\"\nstatus = 0",
            "there is no command to end",
        ),
        ("wait-exit = \"reset\"", "a reset does not end this machine"),
        (
            "disk-fault = \"disk0\"\nfaults = []",
            "the machine has no disk \"disk0\"\nit has no disk at all",
        ),
    ] {
        let text = format!("[vm]\nkernel = \"k\"\non-reboot = \"restart\"\n[[step]]\n{step}\n");
        let told = complaint(&text);
        assert!(told.starts_with(&format!("a.toml:5:1: {start}")), "{told}");
    }
    // A command's machine has disks and a network of its own.
    let run = "[run]\nimage = \"debian\"\noverlay = \"size=1G\"\npublish = \"8080:80\"\n";
    for step in [
        "disk-fault = \"root\"",
        "disk-fault = \"overlay\"",
        "net-fault = \"net0\"",
    ] {
        scenario(&format!("{run}[[step]]\n{step}\nfaults = []\n"));
    }
}

use super::*;
use crate::config::{DiskConfig, NetConfig};

fn good() -> VmConfig {
    VmConfig {
        kernel: Some("k".into()),
        ..VmConfig::default()
    }
}

#[test]
fn what_a_disk_cannot_have_together_is_told() {
    let check = |change: fn(&mut DiskConfig)| {
        let mut disk = DiskConfig::new("d");
        change(&mut disk);
        let config = VmConfig {
            kernel: Some("k".into()),
            disk: vec![disk],
            ..VmConfig::default()
        };
        config.validate().map_err(|err| err.to_string())
    };
    assert_eq!(check(|disk| disk.format = DiskFormat::Qcow2), Ok(()));
    assert_eq!(
        check(|disk| {
            disk.format = DiskFormat::Qcow2;
            disk.engine = Some(DiskEngine::IoUring);
        }),
        Err("disk0 cannot have engine=io_uring with format=qcow2".into())
    );
    assert_eq!(
        check(|disk| disk.iops = Some(0)),
        Err("disk0 has a limit of 0 for iops".into())
    );
    assert_eq!(
        check(|disk| disk.bandwidth_burst = Some(MemorySize::mib(1))),
        Err("disk0 has bandwidth-burst without the limit bandwidth".into())
    );
    assert_eq!(
        check(|disk| disk.backing = BackingFiles::Allow),
        Err("disk0 cannot have backing=allow with format=raw".into())
    );
}

#[test]
fn the_default_with_a_kernel_stands() {
    assert_eq!(good().validate(), Ok(()));
    assert_eq!(VmConfig::default().validate(), Err(ConfigError::NoKernel));
}

#[test]
fn vcpus_are_bounded() {
    for cpus in [0, MAX_CPUS + 1, u32::MAX] {
        let config = VmConfig { cpus, ..good() };
        assert_eq!(config.validate(), Err(ConfigError::Cpus { cpus }));
    }
    assert_eq!(
        VmConfig {
            cpus: MAX_CPUS,
            ..good()
        }
        .validate(),
        Ok(())
    );
}

#[test]
fn a_guest_s_cid_is_its_own() {
    let with = |cid, socket: &str| VmConfig {
        vsock: Some(crate::config::VsockConfig {
            cid,
            socket: Some(socket.into()),
        }),
        ..good()
    };
    for cid in [0, 1, 2, u32::MAX] {
        let outcome = with(cid, "s").validate();
        assert!(
            matches!(outcome, Err(ConfigError::VsockCid { .. })),
            "{cid}"
        );
    }
    for cid in [3, u32::MAX - 1] {
        assert_eq!(with(cid, "s").validate(), Ok(()));
    }
    assert_eq!(with(3, "").validate(), Err(ConfigError::VsockPath));
}

#[test]
fn memory_is_bounded_and_whole() {
    for memory in [0, 1 << 20, (16 << 20) - 4096, u64::MAX, u64::MAX - 4095] {
        let config = VmConfig {
            memory: MemorySize::bytes(memory),
            ..good()
        };
        assert!(
            matches!(config.validate(), Err(ConfigError::MemoryRange { .. })),
            "{memory}"
        );
    }
    let odd = VmConfig {
        memory: MemorySize::bytes((64 << 20) + 1),
        ..good()
    };
    assert!(matches!(
        odd.validate(),
        Err(ConfigError::MemoryAlignment { .. })
    ));
    let huge = VmConfig {
        memory: MemorySize::mib(65),
        hugepages: HugePages::Huge2M,
        ..good()
    };
    let err = huge.validate().unwrap_err();
    assert_eq!(
        err.remedy().as_deref(),
        Some("use for instance --memory 64M")
    );
}

#[test]
fn the_command_line_is_bounded() {
    let longest = "x".repeat(layout::CMDLINE_MAX - 1);
    assert_eq!(
        VmConfig {
            cmdline: Some(longest.clone()),
            ..good()
        }
        .validate(),
        Ok(())
    );
    let config = VmConfig {
        cmdline: Some(longest),
        append: Some("y".into()),
        ..good()
    };
    assert!(matches!(
        config.validate(),
        Err(ConfigError::CmdlineTooLong { .. })
    ));
    let nul = VmConfig {
        cmdline: Some("a\0b".into()),
        ..good()
    };
    assert_eq!(nul.validate(), Err(ConfigError::CmdlineNul { offset: 1 }));
}

#[test]
fn consoles_are_judged() {
    let with = |serial: Option<&str>, console: &str| {
        VmConfig {
            serial: serial.map(|serial| serial.parse().unwrap()),
            console: Some(console.parse().unwrap()),
            ..good()
        }
        .validate()
    };
    assert_eq!(with(None, "stdio"), Ok(()));
    assert_eq!(with(None, "pty"), Ok(()));
    assert_eq!(with(Some("pty"), "pty"), Ok(()));
    assert_eq!(
        with(Some("stdio"), "stdio"),
        Err(ConfigError::ConsolesOnStdio)
    );
    assert_eq!(
        with(Some("file:a"), "socket:a").unwrap_err().to_string(),
        "the serial port and the console both lead to a"
    );
}

#[test]
fn no_two_devices_have_one_name() {
    let disk = |id: &str| DiskConfig {
        id: Some(id.into()),
        ..DiskConfig::new("d.img")
    };
    let with = |disk: DiskConfig| {
        VmConfig {
            disk: vec![disk],
            net: vec![NetConfig::tap("tap0")],
            ..good()
        }
        .validate()
    };
    assert_eq!(with(disk("console")), Ok(()), "there is none");
    for name in ["rng", "net0"] {
        let error = with(disk(name)).unwrap_err().to_string();
        assert_eq!(error, format!("there are two devices named {name}"));
    }
}

#[test]
fn networks_are_judged() {
    let with = |net: Vec<NetConfig>| VmConfig { net, ..good() }.validate();
    let tap = NetConfig::tap;
    assert_eq!(with(vec![tap("tap0"), NetConfig::fd(3)]), Ok(()));
    for name in ["", "sixteen-bytes-xx", "a b", "a/b", "tap%d", ".."] {
        let result = with(vec![tap(name)]);
        assert!(
            matches!(result, Err(ConfigError::NetTapName { .. })),
            "{name}"
        );
    }
    let neither = NetConfig {
        tap: None,
        ..tap("a")
    };
    let both = NetConfig {
        fd: Some(3),
        ..tap("a")
    };
    let all = NetConfig {
        user: true,
        ..tap("a")
    };
    for config in [neither, both, all] {
        let result = with(vec![config]);
        assert!(
            matches!(result, Err(ConfigError::NetBackend { .. })),
            "{result:?}"
        );
    }
    let user = |forwards: &[&str]| NetConfig {
        forward: forwards.iter().map(|it| it.parse().unwrap()).collect(),
        ..NetConfig::user()
    };
    let good = [
        "80:80",
        "udp:80:80",
        "81:80",
        "127.0.0.1:82:80",
        "127.0.0.2:82:80",
    ];
    assert_eq!(with(vec![user(&good), user(&[]), user(&["83:80"])]), Ok(()));
    for (one, other) in [("80:80", "80:81"), ("80:80", "127.0.0.1:80:80")] {
        let result = with(vec![user(&[one]), user(&[other])]);
        assert!(matches!(result, Err(ConfigError::NetForwardTwice { .. })));
    }
    let forwarding = NetConfig {
        user: false,
        tap: Some("a".into()),
        ..user(&["80:80"])
    };
    let name = || "net0".to_owned();
    assert_eq!(
        with(vec![forwarding]),
        Err(ConfigError::NetForward { name: name() })
    );
    let (vhost, queues) = (
        NetConfig {
            vhost: true,
            ..user(&[])
        },
        NetConfig {
            queues: 2,
            ..user(&[])
        },
    );
    let large = NetConfig {
        mtu: Some(MAX_MTU + 1),
        ..user(&[])
    };
    assert!(matches!(
        with(vec![large]),
        Err(ConfigError::NetUserMtu { .. })
    ));
    for (config, key) in [(vhost, "vhost"), (queues, "queues")] {
        let expected = ConfigError::NetUser { name: name(), key };
        assert_eq!(with(vec![config]), Err(expected));
    }
    let twice = with(vec![tap("a"), tap("a")]);
    assert_eq!(twice, Err(ConfigError::NetTapTwice { tap: "a".into() }));
    let named = |tap| NetConfig {
        id: Some("lan".into()),
        ..NetConfig::tap(tap)
    };
    let name = || "lan".to_owned();
    assert_eq!(
        with(vec![named("a"), named("b")]),
        Err(ConfigError::NetName { name: name() })
    );
    let mtu = NetConfig {
        mtu: Some(67),
        ..named("a")
    };
    assert!(matches!(with(vec![mtu]), Err(ConfigError::NetMtu { .. })));
    for queues in [0, MAX_PAIRS + 1, u16::MAX] {
        let config = NetConfig {
            queues,
            ..named("a")
        };
        assert!(matches!(
            with(vec![config]),
            Err(ConfigError::NetQueues { .. })
        ));
    }
    let config = NetConfig {
        queues: 2,
        ..NetConfig::fd(3)
    };
    assert!(matches!(
        with(vec![config]),
        Err(ConfigError::NetFdQueues { .. })
    ));
    let unlimited = NetConfig {
        vhost: true,
        ..named("a")
    };
    assert_eq!(with(vec![unlimited.clone()]), Ok(()));
    let limited = NetConfig {
        pps: Some(1000),
        ..unlimited
    };
    assert_eq!(
        with(vec![limited]),
        Err(ConfigError::NetVhostLimit { name: name() })
    );
    let still = NetConfig {
        pps: Some(0),
        ..named("a")
    };
    let key = "pps";
    assert_eq!(
        with(vec![still]),
        Err(ConfigError::RateZero { name: name(), key })
    );
    let alone = NetConfig {
        bandwidth_burst: Some(MemorySize::mib(1)),
        ..named("a")
    };
    let key = "bandwidth";
    assert_eq!(
        with(vec![alone]),
        Err(ConfigError::BurstAlone { name: name(), key })
    );
    for mac in ["00:00:00:00:00:00", "01:00:5e:00:00:01"] {
        let mac = mac.parse().unwrap();
        let config = NetConfig {
            mac: Some(mac),
            ..named("a")
        };
        let expected = ConfigError::NetMac { name: name(), mac };
        assert_eq!(with(vec![config]), Err(expected));
    }
    let many = (0..MAX_DEVICES)
        .map(|n| NetConfig::tap(format!("tap{n}")))
        .collect();
    assert!(matches!(
        with(many),
        Err(ConfigError::TooManyDevices { .. })
    ));
}

#[test]
fn shares_have_tags_of_their_own_and_one_origin() {
    use crate::config::FsConfig;
    let with = |fs: Vec<FsConfig>| VmConfig {
        kernel: Some("k".into()),
        fs,
        ..VmConfig::default()
    };
    let good = with(vec![FsConfig::path("a", "/a"), FsConfig::socket("b", "/b")]);
    assert_eq!(good.validate(), Ok(()));
    assert!(good.shares_memory() && good.needs_memfd());
    assert!(!with(Vec::new()).needs_memfd());
    let ids: Vec<_> = good.device_ids().collect();
    assert_eq!(ids, ["fs0", "fs1", "rng"]);
    let refusal = |fs| with(fs).validate().unwrap_err();
    for tag in ["", "a\0b", &"t".repeat(37)] {
        let err = refusal(vec![FsConfig::path(tag, "/a")]);
        assert!(matches!(err, ConfigError::FsTag { max: 36, .. }), "{err}");
    }
    let twice = refusal(vec![FsConfig::path("a", "/a"), FsConfig::path("a", "/b")]);
    assert!(matches!(twice, ConfigError::FsTagTwice { .. }), "{twice}");
    let both = FsConfig {
        socket: Some("/s".into()),
        ..FsConfig::path("a", "/a")
    };
    for fs in [both, FsConfig::path("a", ""), FsConfig::default()] {
        let fs = FsConfig {
            tag: "a".into(),
            ..fs
        };
        let err = refusal(vec![fs]);
        assert!(matches!(err, ConfigError::FsBackend { .. }), "{err}");
        assert!(err.remedy().is_some());
    }
    let read_only = FsConfig {
        readonly: true,
        ..FsConfig::socket("a", "/s")
    };
    let err = refusal(vec![read_only]);
    assert!(matches!(err, ConfigError::FsReadonly { .. }), "{err}");
    let same = FsConfig {
        id: Some("rng".into()),
        ..FsConfig::path("a", "/a")
    };
    let err = refusal(vec![same]);
    assert!(matches!(err, ConfigError::DeviceName { .. }), "{err}");
}

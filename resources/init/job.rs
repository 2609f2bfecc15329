//! What the guest is to do, as the host writes it and the init reads it: fields of one byte of name, four of length and that
//! many of value. What may be there several times is, in its order; a field that a reader does not know is an error.

use alloc::vec::Vec;

use super::protocol::WindowSize;

/// A command, and what it finds.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Job {
    /// The command and its arguments.
    pub arguments: Vec<Vec<u8>>,
    /// Its environment, `NAME=value` each. PATH, HOME, HOSTNAME and, in a terminal, TERM are added where missing.
    pub environment: Vec<Vec<u8>>,
    /// Whose it is: `USER` or `USER:GROUP`, by name or number. Root's where empty.
    pub user: Vec<u8>,
    /// Further groups of its user, by name or number.
    pub groups: Vec<Vec<u8>>,
    /// Where it starts; made where missing. `/` where empty.
    pub directory: Vec<u8>,
    /// The guest's name. As the kernel has it where empty.
    pub host_name: Vec<u8>,
    /// Its terminal's size, if it is to have one.
    pub terminal: Option<WindowSize>,
    /// Whether it has a standard input that leads to the host; else it is empty.
    pub input: bool,
    /// What is mounted at `/`.
    pub root: Root,
    /// What is mounted further, in this order.
    pub mounts: Vec<Mount>,
    /// How its network is set up.
    pub network: Network,
    /// Where the files go that the host sends before the command starts, in their order.
    pub copies_in: Vec<CopyIn>,
    /// Paths of what the host is to have when the command has ended.
    pub copies_out: Vec<Vec<u8>>,
}

/// A file or folder that the host sends.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct CopyIn {
    /// Into this, where it is a folder; else as this. Folders that it is in are made.
    pub target: Vec<u8>,
    /// What it is called on the host.
    pub name: Vec<u8>,
    /// It is a folder, and what is in it goes right into the target.
    pub is_contents: bool,
}

/// A root file system.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Root {
    /// The initramfs's own.
    #[default]
    Initramfs,
    /// A disk's, never written to, with what is written over it.
    Disk {
        /// The disk's serial number.
        serial: Vec<u8>,
        /// Its file system: `erofs`, `squashfs`, `ext4`.
        file_system: Vec<u8>,
        /// The serial number of the disk with an ext4 file system that keeps what is written; memory does where empty.
        overlay: Vec<u8>,
        /// The command may not write.
        read_only: bool,
    },
    /// A shared directory, never written to, with what is written over it in memory.
    Shared {
        /// Its tag.
        tag: Vec<u8>,
        /// The command may not write.
        read_only: bool,
    },
}

/// A file system to mount.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Mount {
    /// The tag of a shared directory, or the path of a device.
    pub source: Vec<u8>,
    /// Where; made where missing.
    pub target: Vec<u8>,
    /// `virtiofs`, `ext4` and so on.
    pub file_system: Vec<u8>,
    /// Nothing there may be written.
    pub read_only: bool,
}

/// The set-up of the first network interface. `lo` is always up.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum Network {
    /// Left alone.
    #[default]
    None,
    /// By DHCP.
    Dhcp,
    /// As the host says.
    Static {
        /// IPv4 address.
        address: [u8; 4],
        /// Length of its network's prefix.
        prefix: u8,
        /// Where what is not in that network goes.
        gateway: Option<[u8; 4]>,
        /// Name servers.
        dns: Vec<[u8; 4]>,
    },
}

const ARGUMENT: u8 = 1;
const VARIABLE: u8 = 2;
const USER: u8 = 3;
const GROUP: u8 = 4;
const DIRECTORY: u8 = 5;
const HOST_NAME: u8 = 6;
const TERMINAL: u8 = 7;
const INPUT: u8 = 8;
const ROOT: u8 = 9;
const MOUNT: u8 = 10;
const DHCP: u8 = 11;
const ADDRESS: u8 = 12;
const GATEWAY: u8 = 13;
const DNS: u8 = 14;
const COPY_IN: u8 = 15;
const COPY_OUT: u8 = 16;
const SHARED_ROOT: u8 = 20;

impl Job {
    /// The bytes of a [`super::protocol::Frame::Job`].
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let mut field = |name: u8, value: &[u8]| {
            out.push(name);
            out.extend((value.len() as u32).to_le_bytes());
            out.extend_from_slice(value);
        };
        for (name, values) in [
            (ARGUMENT, &self.arguments),
            (VARIABLE, &self.environment),
            (GROUP, &self.groups),
            (COPY_OUT, &self.copies_out),
        ] {
            values.iter().for_each(|value| field(name, value));
        }
        field(USER, &self.user);
        field(DIRECTORY, &self.directory);
        field(HOST_NAME, &self.host_name);
        if let Some(size) = self.terminal {
            let (rows, columns) = (size.rows.to_le_bytes(), size.columns.to_le_bytes());
            field(TERMINAL, &[rows, columns].concat());
        }
        if self.input {
            field(INPUT, &[]);
        }
        match &self.root {
            Root::Initramfs => {}
            Root::Disk {
                serial,
                file_system,
                overlay,
                read_only,
            } => field(ROOT, &list(*read_only, [serial, file_system, overlay])),
            Root::Shared { tag, read_only } => {
                field(SHARED_ROOT, &[&[u8::from(*read_only)], &tag[..]].concat());
            }
        }
        for mount in &self.mounts {
            let texts = [&mount.source, &mount.target, &mount.file_system];
            field(MOUNT, &list(mount.read_only, texts));
        }
        for copy in &self.copies_in {
            let texts = [&copy.target, &copy.name, &Vec::new()];
            field(COPY_IN, &list(copy.is_contents, texts));
        }
        match &self.network {
            Network::None => {}
            Network::Dhcp => field(DHCP, &[]),
            Network::Static {
                address: [a, b, c, d],
                prefix,
                gateway,
                dns,
            } => {
                field(ADDRESS, &[*a, *b, *c, *d, *prefix]);
                if let Some(gateway) = gateway {
                    field(GATEWAY, gateway);
                }
                dns.iter().for_each(|server| field(DNS, server));
            }
        }
        out
    }

    /// What [`Self::encode`] wrote; nothing where the bytes are something else.
    pub fn decode(mut bytes: &[u8]) -> Option<Self> {
        let mut job = Self::default();
        while let Some((&name, rest)) = bytes.split_first() {
            let (length, rest) = rest.split_first_chunk()?;
            let (value, rest) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
            job.take(name, value)?;
            bytes = rest;
        }
        Some(job)
    }

    fn take(&mut self, name: u8, value: &[u8]) -> Option<()> {
        match name {
            ARGUMENT => self.arguments.push(value.to_vec()),
            VARIABLE => self.environment.push(value.to_vec()),
            GROUP => self.groups.push(value.to_vec()),
            USER => self.user = value.to_vec(),
            DIRECTORY => self.directory = value.to_vec(),
            HOST_NAME => self.host_name = value.to_vec(),
            TERMINAL => {
                let &[r0, r1, c0, c1] = value else {
                    return None;
                };
                self.terminal = Some(WindowSize {
                    rows: u16::from_le_bytes([r0, r1]),
                    columns: u16::from_le_bytes([c0, c1]),
                });
            }
            INPUT => self.input = true,
            ROOT => {
                let (read_only, [serial, file_system, overlay]) = unlist(value)?;
                self.root = Root::Disk {
                    serial,
                    file_system,
                    overlay,
                    read_only,
                };
            }
            SHARED_ROOT => {
                let (read_only, tag) = value.split_first()?;
                self.root = Root::Shared {
                    tag: tag.to_vec(),
                    read_only: *read_only != 0,
                };
            }
            MOUNT => {
                let (read_only, [source, target, file_system]) = unlist(value)?;
                self.mounts.push(Mount {
                    source,
                    target,
                    file_system,
                    read_only,
                });
            }
            COPY_IN => {
                let (is_contents, [target, name, _]) = unlist(value)?;
                self.copies_in.push(CopyIn {
                    target,
                    name,
                    is_contents,
                });
            }
            COPY_OUT => self.copies_out.push(value.to_vec()),
            DHCP => self.network = Network::Dhcp,
            ADDRESS => {
                let &[a, b, c, d, prefix] = value else {
                    return None;
                };
                self.network = Network::Static {
                    address: [a, b, c, d],
                    prefix,
                    gateway: None,
                    dns: Vec::new(),
                };
            }
            GATEWAY | DNS => {
                let Network::Static { gateway, dns, .. } = &mut self.network else {
                    return None;
                };
                let address = value.try_into().ok()?;
                match name {
                    GATEWAY => *gateway = Some(address),
                    _ => dns.push(address),
                }
            }
            _ => return None,
        }
        Some(())
    }
}

/// A flag and texts, which have no NUL in them: no path or name may.
fn list(flag: bool, texts: [&Vec<u8>; 3]) -> Vec<u8> {
    let mut out = Vec::from([u8::from(flag)]);
    for text in texts {
        out.extend(text.iter().filter(|byte| **byte != 0));
        out.push(0);
    }
    out
}

fn unlist(value: &[u8]) -> Option<(bool, [Vec<u8>; 3])> {
    let (flag, texts) = value.split_first()?;
    let mut texts = texts.split(|byte| *byte == 0).map(<[u8]>::to_vec);
    Some((*flag != 0, [texts.next()?, texts.next()?, texts.next()?]))
}

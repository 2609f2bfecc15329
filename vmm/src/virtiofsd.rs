//! Shared directories: `virtiofsd` as a helper process, which opens the host's files for a guest.
//!
//! It is started when the VM is built, and ends with its connection ([`Helper`]). There are two programs of that name: the one in
//! Rust, and the older one in C of QEMU 7.2 and before, which Debian 12 has. Both want to be root: to enter a namespace in which
//! there is nothing but the shared directory, and to be any user of the guest's. So where ampoule is not root, the program is
//! started in a user namespace whose root is ampoule's user, and which has no other user. There it is:
//!
//! - The user's files are root's in the guest, all others nobody's. What the guest's root creates is the user's; no other user of
//!   the guest can create anything.
//! - It may not give up the user's groups (user_namespaces(7)), as it would, and ends if it cannot. A seccomp filter has it
//!   believe that it did: it keeps what the user may do.
//!
//! A directory that is to be read-only is so in a mount namespace of the program's own, by the host's kernel, whatever the program
//! does. Nobody else can connect to it: the socket that it listens on has no path, takes one connection, and has it already.

use std::env;
use std::ffi::{CStr, CString, OsString};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use thiserror::Error;

use crate::helper::Helper;

const PROGRAM: &str = "virtiofsd";

/// Where distributions have it, none of which is in a usual PATH.
const PLACES: [&str; 4] = [
    "/usr/libexec/virtiofsd",
    "/usr/lib/virtiofsd",
    QEMUS,
    "/usr/local/libexec/virtiofsd",
];

/// The older one's place.
const QEMUS: &str = "/usr/lib/qemu/virtiofsd";

/// Why a directory cannot be shared.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum VirtiofsdError {
    /// There is no such program.
    #[error("{PROGRAM} is not installed")]
    Missing,
    /// The directory is not there, or may not be looked at.
    #[error("cannot share \"{}\"", path.display())]
    Path {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is something else.
    #[error("cannot share \"{}\": it is not a directory", path.display())]
    NotADirectory {
        /// What is no directory.
        path: PathBuf,
    },
    /// The program cannot be started, or not in namespaces of its own.
    #[error("cannot start {} in namespaces of its own", program.display())]
    Start {
        /// Its path.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It ended at once, or does not answer.
    #[error("{} has ended, saying \"{message}\"", program.display())]
    Ended {
        /// Its path.
        program: PathBuf,
        /// What it said.
        message: String,
    },
    /// The host failed.
    #[error("cannot talk to {PROGRAM}")]
    Host(#[from] io::Error),
}

impl VirtiofsdError {
    /// What a person can do about it.
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::Missing => Some(
                "install it: apt install virtiofsd, or qemu-system-common in Debian 12; a small directory \
                 can be copied without it: --copy"
                    .into(),
            ),
            Self::Path { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Some("make it first: mkdir; nothing is made on the host unasked".into())
            }
            Self::NotADirectory { .. } => Some("share the directory that it is in".into()),
            Self::Start { .. } => Some(
                "without root's rights it needs user namespaces: see sysctl user.max_user_namespaces, \
                 kernel.unprivileged_userns_clone and kernel.apparmor_restrict_unprivileged_userns"
                    .into(),
            ),
            _ => None,
        }
    }
}

/// How it keeps itself out of the rest of the host's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sandbox {
    /// In namespaces of its own.
    Namespace,
    /// By chroot(2), where namespaces cannot be had, as in containers.
    Chroot,
}

/// What it is to do.
#[derive(Debug, Clone)]
pub(crate) struct VirtiofsdConfig<'a> {
    /// The device's name, for messages.
    pub(crate) name: &'a str,
    /// The directory.
    pub(crate) path: &'a Path,
    /// Nothing there is written.
    pub(crate) read_only: bool,
}

/// A program that can share directories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Virtiofsd {
    program: PathBuf,
}

impl Virtiofsd {
    /// The one in PATH, or where distributions have it.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn find() -> Result<Self, VirtiofsdError> {
        let path = env::var_os("PATH").unwrap_or_default();
        let in_path = env::split_paths(&path)
            .filter(|folder| folder.is_absolute())
            .map(|folder| folder.join(PROGRAM));
        let places = PLACES.iter().map(PathBuf::from);
        let program = in_path.chain(places).find(|program| program.is_file());
        let program = program.ok_or(VirtiofsdError::Missing)?;
        Ok(Self { program })
    }

    /// How it can keep itself out of the rest: the older one cannot have namespaces around all files.
    pub(crate) fn sandboxes(&self, path: &Path) -> &'static [Sandbox] {
        match self.is_older() && path == Path::new("/") {
            true => &[Sandbox::Chroot],
            false => &[Sandbox::Namespace, Sandbox::Chroot],
        }
    }

    fn is_older(&self) -> bool {
        let real = self.program.canonicalize();
        real.is_ok_and(|real| real == Path::new(QEMUS))
    }

    /// Starts it; the connection with it is there already, though it may not have begun to answer.
    ///
    /// # Errors
    /// [`VirtiofsdError`].
    pub(crate) fn start(
        &self,
        config: &VirtiofsdConfig<'_>,
        sandbox: Sandbox,
    ) -> Result<(Helper, UnixStream), VirtiofsdError> {
        let path = directory(config.path)?;
        let (listener, socket) = private_socket()?;
        let mut command = Command::new(&self.program);
        command
            .args(self.arguments(&path, sandbox))
            .stdin(OwnedFd::from(listener));
        let surroundings = Surroundings::of(config.read_only);
        // SAFETY: between fork and exec, it makes system calls only, with memory that was prepared before.
        unsafe { command.pre_exec(move || surroundings.enter()) };
        let helper = Helper::start(PROGRAM, config.name, command, is_noise);
        match helper {
            Ok(helper) => Ok((helper.has_children(), socket)),
            Err(source) => Err(VirtiofsdError::Start {
                program: self.program.clone(),
                source,
            }),
        }
    }

    /// Why it has ended.
    pub(crate) fn ended(&self, helper: Helper) -> VirtiofsdError {
        match helper.last_words() {
            Ok(message) => VirtiofsdError::Ended {
                program: self.program.clone(),
                message,
            },
            Err(err) => err.into(),
        }
    }

    fn arguments(&self, path: &Path, sandbox: Sandbox) -> Vec<OsString> {
        let sandbox = match sandbox {
            Sandbox::Namespace => "namespace",
            Sandbox::Chroot => "chroot",
        };
        // What the limit of open files is, is seen to before.
        let mut arguments: Vec<OsString> = ["--fd=0", "--rlimit-nofile=0"].map(Into::into).into();
        if self.is_older() {
            let mut source = OsString::from("source=");
            source.push(escaped(path));
            arguments.extend(["-o".into(), source]);
            let rest = format!("sandbox={sandbox},log_level=warn");
            arguments.extend(["-o".into(), rest.into()]);
        } else {
            arguments.extend(["--shared-dir".into(), path.into()]);
            arguments.extend(["--sandbox", sandbox, "--log-level", "warn"].map(Into::into));
        }
        arguments
    }
}

/// The older one's options are separated by commas.
fn escaped(path: &Path) -> OsString {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let mut bytes = Vec::new();
    for byte in path.as_os_str().as_bytes() {
        if matches!(byte, b',' | b'\\') {
            bytes.push(b'\\');
        }
        bytes.push(*byte);
    }
    OsString::from_vec(bytes)
}

fn directory(path: &Path) -> Result<PathBuf, VirtiofsdError> {
    let failed = |source| VirtiofsdError::Path {
        path: path.to_owned(),
        source,
    };
    let real = path.canonicalize().map_err(failed)?;
    match real.is_dir() {
        true => Ok(real),
        false => Err(VirtiofsdError::NotADirectory {
            path: path.to_owned(),
        }),
    }
}

fn is_noise(message: &str) -> bool {
    // The last words of both, whatever their end: the older one names its function that does nothing.
    message.contains("fv_remove_watch") || message.ends_with("Client disconnected, shutting down")
}

/// A socket that is listened on, and has the one connection that it will ever have.
fn private_socket() -> io::Result<(UnixListener, UnixStream)> {
    for _ in 0..16 {
        // A name that nobody could know before.
        let name = format!(
            "ampoule-{:016x}",
            RandomState::new().build_hasher().finish()
        );
        let address = SocketAddr::from_abstract_name(name)?;
        let listener = match UnixListener::bind_addr(&address) {
            Err(err) if err.kind() == io::ErrorKind::AddrInUse => continue,
            other => other?,
        };
        // Room for one: whoever has connected meanwhile takes it.
        // SAFETY: takes no pointer.
        if unsafe { libc::listen(listener.as_raw_fd(), 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
        match connect_now(&address) {
            Ok(socket) => return Ok((listener, socket)),
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
            Err(err) => return Err(err),
        }
    }
    Err(io::ErrorKind::AddrInUse.into())
}

/// Connects, unless that would take a wait.
fn connect_now(address: &SocketAddr) -> io::Result<UnixStream> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: takes no pointer.
    let fd = unsafe { libc::socket(libc::AF_UNIX, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just opened, and is nobody else's.
    let socket = unsafe { UnixStream::from_raw_fd(fd) };
    let name = address.as_abstract_name().unwrap_or_default();
    // SAFETY: all zeroes are an address.
    let mut raw: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    raw.sun_family = libc::AF_UNIX as libc::sa_family_t;
    // The first byte, zero, says that the rest is no path.
    for (to, from) in raw.sun_path.iter_mut().skip(1).zip(name) {
        *to = *from as libc::c_char;
    }
    let len = std::mem::offset_of!(libc::sockaddr_un, sun_path) + 1 + name.len();
    // SAFETY: pointer and length are those of an address that lives through the call; names are shorter than its room.
    let connected = unsafe {
        libc::connect(
            socket.as_raw_fd(),
            (&raw const raw).cast(),
            len as libc::socklen_t,
        )
    };
    if connected != 0 {
        return Err(io::Error::last_os_error());
    }
    socket.set_nonblocking(false)?;
    Ok(socket)
}

/// What the program finds around it; all of it is prepared before the fork.
struct Surroundings {
    /// The maps of users and groups, where it is to have a user namespace.
    maps: Option<[CString; 2]>,
    read_only: bool,
}

impl Surroundings {
    fn of(read_only: bool) -> Self {
        // SAFETY: these take nothing and cannot fail.
        let (user, group) = unsafe { (libc::geteuid(), libc::getegid()) };
        let map = |id: u32| CString::new(format!("0 {id} 1")).unwrap_or_default();
        Self {
            maps: (user != 0).then(|| [map(user), map(group)]),
            read_only,
        }
    }

    /// Goes there. Called between fork and exec.
    fn enter(&self) -> io::Result<()> {
        if let Some([users, groups]) = &self.maps {
            // SAFETY: takes no pointer.
            done(unsafe { libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS) })?;
            write(c"/proc/self/setgroups", c"deny")?;
            write(c"/proc/self/uid_map", users)?;
            write(c"/proc/self/gid_map", groups)?;
            pretend_to_set_groups()?;
        } else if self.read_only {
            // SAFETY: takes no pointer.
            done(unsafe { libc::unshare(libc::CLONE_NEWNS) })?;
        }
        if self.read_only {
            make_all_read_only()?;
        }
        raise_file_limit()
    }
}

fn done(result: libc::c_int) -> io::Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn write(path: &CStr, text: &CStr) -> io::Result<()> {
    // SAFETY: the path is a string that lives through the call.
    let fd = unsafe { libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let bytes = text.to_bytes();
    // SAFETY: pointer and length are those of the text.
    let written = unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) };
    let result = match written < 0 {
        true => Err(io::Error::last_os_error()),
        false => Ok(()),
    };
    // SAFETY: the descriptor was opened above, and is used no more.
    unsafe { libc::close(fd) };
    result
}

/// In this mount namespace, everything that is mounted can be read only, and nothing of that reaches another.
fn make_all_read_only() -> io::Result<()> {
    let slave = libc::MS_REC | libc::MS_SLAVE;
    let none = std::ptr::null();
    // SAFETY: the target is a string; what may be null is.
    done(unsafe { libc::mount(none, c"/".as_ptr(), none, slave, none.cast()) })?;
    // mount_attr(2): to set, to clear, propagation, user namespace.
    const MOUNT_ATTR_RDONLY: u64 = 1;
    let attributes: [u64; 4] = [MOUNT_ATTR_RDONLY, 0, 0, 0];
    // SAFETY: the path is a string, and pointer and size are those of the attributes.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            c"/".as_ptr(),
            libc::AT_RECURSIVE,
            attributes.as_ptr(),
            size_of_val(&attributes),
        )
    };
    done(result as libc::c_int)
}

/// From here on setgroups(2) does nothing, and says that it did.
fn pretend_to_set_groups() -> io::Result<()> {
    const fn step(code: u32, if_not: u8, operand: u32) -> libc::sock_filter {
        libc::sock_filter {
            code: code as u16,
            jt: 0,
            jf: if_not,
            k: operand,
        }
    }
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const IS: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    /// AUDIT_ARCH_X86_64.
    const ARCH: u32 = 0xc000_003e;
    // Of seccomp_data: the call's number, the architecture.
    const STEPS: [libc::sock_filter; 6] = [
        step(LOAD, 0, 4),
        step(IS, 3, ARCH),
        step(LOAD, 0, 0),
        step(IS, 1, libc::SYS_setgroups as u32),
        step(RETURN, 0, libc::SECCOMP_RET_ERRNO),
        step(RETURN, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let mut steps = STEPS;
    let filter = libc::sock_fprog {
        len: STEPS.len() as u16,
        filter: steps.as_mut_ptr(),
    };
    // SAFETY: the program and what it points to live through the call.
    done(unsafe {
        libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const filter,
        )
    })
}

/// It has a file open for each that the guest knows.
fn raise_file_limit() -> io::Result<()> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the pointer is to a live structure.
    done(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) })?;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: the pointer is to a live structure.
    done(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_program_gets_its_own_options() {
        let all = |program: &str| {
            let program = PathBuf::from(program);
            let arguments =
                Virtiofsd { program }.arguments(Path::new("/a,b\\c"), Sandbox::Namespace);
            let words: Vec<_> = arguments.iter().map(|it| it.to_string_lossy()).collect();
            words.join(" ")
        };
        let rust = all("/usr/libexec/virtiofsd");
        assert!(
            rust.contains("--fd=0") && rust.contains("--shared-dir /a,b\\c --sandbox namespace"),
            "{rust}"
        );
        if Path::new(QEMUS).exists() {
            let older = all(QEMUS);
            assert!(older.contains(r"-o source=/a\,b\\c"), "{older}");
            assert!(older.contains("-o sandbox=namespace"), "{older}");
        }
    }

    #[test]
    fn a_private_socket_has_its_only_connection() {
        use std::io::{Read, Write};
        let (listener, mut socket) = private_socket().unwrap();
        let address = listener.local_addr().unwrap();
        let other = connect_now(&address).unwrap_err();
        assert_eq!(other.kind(), io::ErrorKind::WouldBlock);
        socket.write_all(b"x").unwrap();
        let mut byte = [0];
        listener.accept().unwrap().0.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
    }

    #[test]
    fn what_is_no_directory_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let err = directory(file.path()).unwrap_err();
        assert!(err.to_string().ends_with("it is not a directory"), "{err}");
        let err = directory(Path::new("/no/such")).unwrap_err();
        assert_eq!(err.to_string(), "cannot share \"/no/such\"");
        assert!(err.remedy().unwrap().contains("mkdir"));
        let missing = VirtiofsdError::Missing.remedy().unwrap();
        assert!(missing.contains("apt install virtiofsd"), "{missing}");
    }
}

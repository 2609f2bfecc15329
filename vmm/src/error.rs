//! Why a VM could not be built or started.

use std::io;
use std::path::PathBuf;

use ampoule_devices::backend::disk::DiskError;
use ampoule_devices::backend::tap::TapError;
use ampoule_devices::backend::unix_socket::SocketError;
use ampoule_devices::backend::vhost_net::VhostNetError;
use ampoule_devices::backend::vhost_user::VhostUserError;
use ampoule_devices::error_chain;

use crate::config::ConfigError;
use crate::kernel::KernelError;
use crate::kvm::KvmError;
use crate::limit;
use crate::memory::MemoryError;
use crate::own_backends::WrapError;
use crate::own_devices::OwnDeviceError;
use crate::passt::PasstError;
use crate::vcpu::VcpuError;
use crate::virtiofsd::VirtiofsdError;

/// Why a VM could not be built or started. Nothing of it is left when this is returned.
///
/// ```
/// use ampoule_vmm::{Error, VmBuilder, config::VmConfig};
///
/// // No kernel is named.
/// let error = VmBuilder::new(VmConfig::default()).build().err().unwrap();
/// assert!(matches!(error, Error::Config(_)));
/// assert_eq!(error.to_string(), "invalid configuration");
/// if let Some(remedy) = error.remedy() {
///     println!("help: {remedy}");
/// }
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration cannot be a VM.
    #[error("invalid configuration")]
    Config(#[from] ConfigError),
    /// The host's KVM is missing or refused something.
    #[error("cannot use KVM")]
    Kvm(#[from] KvmError),
    /// There is no memory for the guest.
    #[error("cannot allocate guest memory")]
    Memory(#[from] MemoryError),
    /// The kernel or the initrd cannot be booted.
    #[error("cannot load the guest")]
    Kernel(#[from] KernelError),
    /// The tables that the guest wakes up to could not be written.
    #[error("cannot prepare the guest's {what}")]
    Platform {
        /// Which of them.
        what: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A vCPU could not be set up.
    #[error("cannot set up a vCPU")]
    Vcpu(#[from] VcpuError),
    /// A console's file or socket could not be opened.
    #[error("cannot open the {console}'s {what} \"{}\"", path.display())]
    Console {
        /// "serial port" or "console".
        console: &'static str,
        /// "file" or "socket".
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A disk image cannot be used.
    #[error("cannot use a disk")]
    Disk(#[from] DiskError),
    /// A tap cannot be used.
    #[error("cannot use a network")]
    Tap(#[from] TapError),
    /// The host's kernel does not move frames for a network interface.
    #[error("cannot use vhost for a network")]
    Vhost(#[from] VhostNetError),
    /// There is no user networking.
    #[error("cannot set up user networking")]
    Passt(#[from] PasstError),
    /// A directory cannot be shared with the guest.
    #[error("cannot share a directory")]
    Virtiofsd(#[from] VirtiofsdError),
    /// Another process cannot be the back end of a device.
    #[error("cannot use a back end of another process")]
    VhostUser(#[from] VhostUserError),
    /// The socket device's Unix socket cannot be listened on.
    #[error("cannot set up the socket device")]
    Vsock(#[from] SocketError),
    /// A device that its owner brings cannot be put into the VM.
    #[error("cannot add the device \"{device}\"")]
    OwnDevice {
        /// Its id.
        device: String,
        /// Why.
        #[source]
        source: OwnDeviceError,
    },
    /// The back end of a configured device cannot be wrapped.
    #[error("cannot wrap the back end of \"{device}\"")]
    Wrap {
        /// The device's id.
        device: String,
        /// Why.
        #[source]
        source: WrapError,
    },
    /// There are more virtio devices than interrupt lines.
    #[error("a VM has at most {max} virtio devices")]
    TooManyDevices {
        /// The most.
        max: usize,
    },
    /// The host refused a thread, an event or another small thing that every VM needs.
    #[error("cannot create the {what}")]
    Host {
        /// What.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// What a person can do about it, in the terms of the command line.
    pub fn remedy(&self) -> Option<String> {
        if let Some(remedy) = limit::remedy(self) {
            return Some(remedy.into());
        }
        match self {
            Self::Config(err) => err.remedy(),
            Self::Kvm(err) => err.remedy(),
            Self::Memory(err) => err.remedy(),
            Self::Kernel(err) => err.remedy(),
            Self::Disk(err) => err.remedy(),
            Self::Tap(err) => err.remedy(),
            Self::Vhost(err) => err.remedy(),
            Self::Passt(err) => err.remedy(),
            Self::Virtiofsd(err) => err.remedy(),
            Self::VhostUser(err) => err.remedy(),
            Self::Vsock(err) => err.remedy(),
            Self::Wrap { source, .. } => source.remedy(),
            Self::Console {
                source,
                what: "socket",
                ..
            } if source.kind() == io::ErrorKind::AddrInUse => Some(
                "another process has it, or left it behind: remove the file, or name another"
                    .into(),
            ),
            Self::Vcpu(_)
            | Self::Platform { .. }
            | Self::Console { .. }
            | Self::OwnDevice { .. }
            | Self::TooManyDevices { .. } => None,
            Self::Host { source, .. } => {
                let is_thread = source.raw_os_error() == Some(libc::EAGAIN);
                is_thread.then(|| limit::THREADS.into())
            }
        }
    }

    /// All of it in one line, for who gets no error but a text.
    pub(crate) fn in_full(&self) -> String {
        let text = error_chain(self);
        match self.remedy() {
            Some(remedy) => format!("{text}; {remedy}"),
            None => text,
        }
    }

    pub(crate) fn host(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Host { what, source }
    }

    pub(crate) fn platform<E>(what: &'static str) -> impl FnOnce(E) -> Self
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        move |source| Self::Platform {
            what,
            source: Box::new(source),
        }
    }
}

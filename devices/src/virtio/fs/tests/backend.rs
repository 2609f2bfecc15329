//! A vhost-user back end for tests: it does what it is told, and remembers what that was.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::*;
use vhost::vhost_user::{
    BackendReqHandler, Error, GpuBackend, Result, VhostUserBackendReqHandlerMut,
};

use crate::virtio::status::features;

/// What it knows of a queue.
#[derive(Debug, Default)]
pub(super) struct Ring {
    pub(super) size: u32,
    /// Descriptors, available, used.
    pub(super) places: [u64; 3],
    pub(super) base: u32,
    pub(super) kick: Option<File>,
    pub(super) call: Option<File>,
    pub(super) enabled: bool,
}

/// What it is, and what it has been told.
#[derive(Debug)]
pub(super) struct State {
    pub(super) offered: u64,
    pub(super) queues: u64,
    /// It never gives a queue back.
    pub(super) hangs: bool,
    pub(super) accepted: u64,
    /// Guest-physical address and size.
    pub(super) memory: Vec<(u64, u64)>,
    pub(super) rings: [Ring; 2],
}

impl Default for State {
    fn default() -> Self {
        Self {
            offered: features::COMMON | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits(),
            queues: 2,
            hangs: false,
            accepted: 0,
            memory: Vec::new(),
            rings: Default::default(),
        }
    }
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// The back end, on a thread of its own. It closes its connection when this is dropped.
pub(super) struct Backend {
    shared: Arc<Shared>,
    connection: UnixStream,
    thread: Option<JoinHandle<()>>,
}

impl Backend {
    /// One that is as `state` says, and the other end of its connection.
    pub(super) fn start(state: State) -> (Self, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        let handler = Arc::new(Mutex::new(Handler(shared.clone())));
        let connection = theirs.try_clone().unwrap();
        let mut requests = BackendReqHandler::from_stream(theirs, handler);
        let thread = thread::spawn(move || while requests.handle_request().is_ok() {});
        let backend = Self {
            shared,
            connection,
            thread: Some(thread),
        };
        (backend, ours)
    }

    /// Waits until it has been told so.
    #[track_caller]
    pub(super) fn wait(&self, what: &str, condition: impl Fn(&State) -> bool) {
        let state = self.shared.state.lock().unwrap();
        let patience = Duration::from_secs(60);
        let waited = self
            .shared
            .changed
            .wait_timeout_while(state, patience, |state| !condition(state))
            .unwrap();
        assert!(!waited.1.timed_out(), "not {what}: {:?}", waited.0);
    }

    /// Waits until it may work on both queues.
    #[track_caller]
    pub(super) fn wait_for_queues(&self) {
        self.wait("given its queues", |state| {
            state.rings.iter().all(|ring| ring.enabled)
        });
    }

    /// What it knows, and is.
    pub(super) fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        look(&mut self.shared.state.lock().unwrap())
    }

    /// The driver's notifications of a queue, for which it waits.
    pub(super) fn notifications(&self, queue: usize) -> u64 {
        self.wait("given an event", |state| state.rings[queue].kick.is_some());
        self.with(|state| {
            let mut count = [0; 8];
            let mut kick = state.rings[queue].kick.as_ref().unwrap();
            kick.read_exact(&mut count)
                .map_or(0, |()| u64::from_ne_bytes(count))
        })
    }

    /// Lets it go on that hangs.
    pub(super) fn unpark(&self) {
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }

    /// Raises a queue's interrupt.
    pub(super) fn interrupt(&self, queue: usize) {
        self.with(|state| {
            let mut call = state.rings[queue].call.as_ref().unwrap();
            call.write_all(&1_u64.to_ne_bytes()).unwrap();
        });
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let _ = self.connection.shutdown(std::net::Shutdown::Both);
        let _ = self.thread.take().unwrap().join();
    }
}

struct Handler(Arc<Shared>);

impl Handler {
    fn change(&self, change: impl FnOnce(&mut State)) -> Result<()> {
        change(&mut self.0.state.lock().unwrap());
        self.0.changed.notify_all();
        Ok(())
    }

    fn ring(&self, index: u32, change: impl FnOnce(&mut Ring)) -> Result<()> {
        self.change(|state| change(&mut state.rings[index as usize]))
    }
}

/// No test asks for it.
const UNKNOWN: Error = Error::InvalidOperation("unknown");

impl VhostUserBackendReqHandlerMut for Handler {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }
    fn reset_owner(&mut self) -> Result<()> {
        Err(UNKNOWN)
    }
    fn reset_device(&mut self) -> Result<()> {
        Err(UNKNOWN)
    }
    fn get_features(&mut self) -> Result<u64> {
        Ok(self.0.state.lock().unwrap().offered)
    }
    fn set_features(&mut self, features: u64) -> Result<()> {
        self.change(|state| state.accepted = features)
    }
    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        assert_eq!(regions.len(), files.len());
        let regions = regions
            .iter()
            .map(|region| (region.guest_phys_addr, region.memory_size));
        self.change(|state| state.memory = regions.collect())?;
        Ok(None)
    }
    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        self.ring(index, |ring| ring.size = num)
    }
    fn set_vring_addr(
        &mut self,
        index: u32,
        _: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _: u64,
    ) -> Result<()> {
        self.ring(index, |ring| ring.places = [descriptor, available, used])
    }
    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        self.ring(index, |ring| ring.base = base)
    }
    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        if self.0.state.lock().unwrap().hangs {
            thread::park();
        }
        let mut base = 0;
        self.ring(index, |ring| {
            base = ring.base;
            ring.enabled = false;
            (ring.kick, ring.call) = (None, None);
        })?;
        Ok(VhostUserVringState::new(index, base))
    }
    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.ring(index.into(), |ring| ring.kick = fd)
    }
    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        self.ring(index.into(), |ring| ring.call = fd)
    }
    fn set_vring_err(&mut self, _: u8, _: Option<File>) -> Result<()> {
        Ok(())
    }
    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::REPLY_ACK)
    }
    fn set_protocol_features(&mut self, _: u64) -> Result<()> {
        Ok(())
    }
    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.0.state.lock().unwrap().queues)
    }
    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.ring(index, |ring| ring.enabled = enable)
    }
    fn get_config(&mut self, _: u32, _: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        Err(UNKNOWN)
    }
    fn set_config(&mut self, _: u32, _: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        Err(UNKNOWN)
    }
    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        Err(UNKNOWN)
    }
    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        Err(UNKNOWN)
    }
    fn get_inflight_fd(&mut self, _: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        Err(UNKNOWN)
    }
    fn set_inflight_fd(&mut self, _: &VhostUserInflight, _: File) -> Result<()> {
        Err(UNKNOWN)
    }
    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Err(UNKNOWN)
    }
    fn add_mem_region(
        &mut self,
        _: &VhostUserSingleMemoryRegion,
        _: File,
        _: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        Err(UNKNOWN)
    }
    fn remove_mem_region(&mut self, _: &VhostUserSingleMemoryRegion) -> Result<()> {
        Err(UNKNOWN)
    }
    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        Err(UNKNOWN)
    }
    fn check_device_state(&mut self) -> Result<()> {
        Err(UNKNOWN)
    }
    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(UNKNOWN)
    }
    fn set_log_base(&mut self, _: &VhostUserLog, _: File) -> Result<()> {
        Err(UNKNOWN)
    }
}

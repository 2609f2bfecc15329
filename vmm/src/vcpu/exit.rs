//! What a vCPU does when it leaves the guest: one short match.

use std::io;
use std::ptr::NonNull;

use kvm_bindings::{
    KVM_MP_STATE_RUNNABLE, KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET,
    KVM_SYSTEM_EVENT_SHUTDOWN, kvm_run,
};
use kvm_ioctls::VcpuExit;

use ampoule_devices::bus::Bus;

use crate::exit::{ExitReason, GuestPanic};
use crate::limit;

use super::{FailureKind, Vcpu};

/// So often in a row a vCPU that could run is put off. Once is as it should be, and a few times more harm nobody.
const MAX_PUT_OFF: u32 = 16;

/// What came of entering the guest.
pub(super) enum Turn {
    /// The guest asked for something, which was answered.
    Served,
    /// It asked for nothing: something wants the vCPU's attention.
    Interrupted,
    /// The VM ends.
    End(ExitReason),
}

impl Vcpu {
    /// Enters the guest once and answers its exit.
    pub(super) fn run_once(&mut self) -> Turn {
        let shared = self.shared;
        let metrics = &self.context.metrics;
        let outcome = self.fd.run();
        if outcome.is_ok() {
            self.put_off = 0;
        }
        let kind = match outcome {
            Ok(VcpuExit::IoOut(port, data)) => {
                metrics.port.add_owned(1);
                write_port(&self.context.ports, port, access_size(shared), data);
                return Turn::Served;
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                metrics.port.add_owned(1);
                read_port(&self.context.ports, port, access_size(shared), data);
                return Turn::Served;
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                metrics.mmio.add_owned(1);
                self.context.mmio.read(address, data);
                return Turn::Served;
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                metrics.mmio.add_owned(1);
                self.context.mmio.write(address, data);
                return Turn::Served;
            }
            // The loop asks for the reason of an interruption.
            Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen) => {
                metrics.other.add_owned(1);
                return Turn::Interrupted;
            }
            Ok(VcpuExit::Shutdown) => {
                return Turn::End(ExitReason::TripleFault { vcpu: self.index });
            }
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) => {
                return Turn::End(ExitReason::PowerOff);
            }
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _)) => {
                return Turn::End(ExitReason::Reset);
            }
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_CRASH, _)) => {
                return Turn::End(ExitReason::Panic(GuestPanic::default()));
            }
            Ok(VcpuExit::InternalError) => FailureKind::internal_error(shared),
            Ok(VcpuExit::FailEntry(reason, _)) => FailureKind::EntryRefused { reason },
            Ok(other) => FailureKind::UnexpectedExit {
                name: format!("{other:?}"),
            },
            Err(err) => return self.not_run(err.errno()),
        };
        Turn::End(ExitReason::VcpuFailed(Box::new(self.failure(kind))))
    }

    /// KVM_RUN itself has returned with an error.
    fn not_run(&mut self, errno: i32) -> Turn {
        let why = match errno {
            libc::EINTR => None,
            // What a vCPU returns that waits for its start-up interrupt (INIT, SIPI), when one has come; it runs the next time.
            // But also what any vCPU returns for as long as KVM gets no thread, of this process, that it has for each VM.
            libc::EAGAIN => {
                self.put_off += 1;
                (self.put_off > MAX_PUT_OFF && self.is_runnable()).then_some(limit::THREADS)
            }
            libc::ENOMEM => Some("the host is out of memory"),
            errno => {
                let failure = self.failure(FailureKind::RunFailed { errno });
                return Turn::End(ExitReason::VcpuFailed(Box::new(failure)));
            }
        };
        let Some(why) = why else {
            self.context.metrics.other.add_owned(1);
            return Turn::Interrupted;
        };
        let error = io::Error::from_raw_os_error(errno);
        Turn::End(ExitReason::HostFailed {
            message: format!("KVM_RUN of vCPU {} failed: {error}; {why}", self.index),
        })
    }

    /// Whether it waits for no start-up interrupt.
    fn is_runnable(&self) -> bool {
        let state = self.fd.get_mp_state();
        state.is_ok_and(|state| state.mp_state == KVM_MP_STATE_RUNNABLE)
    }
}

/// Size in bytes of one access of the port I/O exit at hand. A string instruction makes several accesses in one exit.
fn access_size(shared: NonNull<kvm_run>) -> usize {
    // SAFETY: `shared` is the page of the vCPU whose KVM_RUN has just returned on this thread with KVM_EXIT_IO, so that
    // `io` is the union's live field; KVM writes the page only during KVM_RUN.
    let size = unsafe { (*shared.as_ptr()).__bindgen_anon_1.io.size };
    usize::from(size).max(1)
}

fn write_port(ports: &Bus, port: u16, size: usize, data: &[u8]) {
    for access in data.chunks(size) {
        ports.write(u64::from(port), access);
    }
}

fn read_port(ports: &Bus, port: u16, size: usize, data: &mut [u8]) {
    for access in data.chunks_mut(size) {
        ports.read(u64::from(port), access);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ampoule_devices::bus::BusDevice;
    use std::sync::{Arc, Mutex};

    #[derive(Default)]
    struct Recorder(Mutex<Vec<Vec<u8>>>);

    impl BusDevice for Recorder {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8 + 1);
        }

        fn write(&self, _: u64, data: &[u8]) {
            self.0.lock().unwrap().push(data.to_vec());
        }
    }

    #[test]
    fn a_string_instruction_is_as_many_accesses_as_it_has_elements() {
        let recorder = Arc::new(Recorder::default());
        let ports = Bus::new();
        ports.insert(0x3f8, 8, recorder.clone()).unwrap();
        write_port(&ports, 0x3f8, 1, b"abc");
        write_port(&ports, 0x3f8, 2, b"defg");
        let seen = recorder.0.lock().unwrap().clone();
        assert_eq!(seen, [&b"a"[..], b"b", b"c", b"de", b"fg"]);
        let mut data = [0; 4];
        read_port(&ports, 0x3f9, 2, &mut data);
        assert_eq!(data, [2; 4]);
    }
}

//! Pause, resume, reset and stop, in every order.

use std::thread;

use ampoule_tests::guests;
use ampoule_vmm::{ExitReason, StateError, VmBuilder, VmHandle, VmState};

use crate::guest::{config, count, ready};

/// Lets the guest run until it has counted on from `from`.
fn counts_on(vm: &VmHandle, from: u32) -> u32 {
    loop {
        vm.resume().unwrap();
        thread::yield_now();
        vm.pause().unwrap();
        let now = count(vm);
        if now != from {
            return now;
        }
    }
}

pub(crate) fn a_paused_guest_stands_still_and_goes_on() {
    let (vm, _) = ready(guests::COUNTER, 1);
    assert_eq!(vm.state(), VmState::Running);
    vm.pause().unwrap();
    assert_eq!(vm.state(), VmState::Paused);
    let mut last = count(&vm);
    for _ in 0..50 {
        last = counts_on(&vm, last);
        let registers = vm.vcpu_registers(0).unwrap();
        assert_eq!(count(&vm), last, "a paused guest counts");
        // It stands before or behind the instruction that writes.
        let ahead = (registers.rsi as u32).wrapping_sub(last);
        assert!(ahead <= 1, "{registers}, {last} in memory");
    }
    // What its owner writes is what the guest goes on with... and overwrites, counting by its register.
    let memory = vm.memory().unwrap();
    memory.write(guests::COUNT, &[0xff; 4]).unwrap();
    drop(memory);
    assert_eq!(count(&vm), u32::MAX);
    assert_ne!(counts_on(&vm, u32::MAX), u32::MAX);
    let end = memory_size(&vm);
    let memory = vm.memory().unwrap();
    assert_eq!(
        memory.read(end - 1, &mut [0; 2]),
        Err(StateError::NotMemory {
            address: end - 1,
            len: 2
        })
    );
    assert!(memory.write(u64::MAX, &[0]).is_err());
    drop(memory);
    vm.stop();
    assert_eq!(vm.wait(), ExitReason::Stopped);
    assert_eq!(vm.state(), VmState::Ended);
}

fn memory_size(vm: &VmHandle) -> u64 {
    vm.memory().unwrap().size()
}

/// One in the guest, the others in KVM, where they wait to be started.
pub(crate) fn sixteen_vcpus_pause_wherever_they_are() {
    let (vm, _) = ready(guests::COUNTER, 16);
    vm.pause().unwrap();
    let mut last = count(&vm);
    for _ in 0..10 {
        for vcpu in 0..16 {
            vm.vcpu_registers(vcpu).unwrap();
        }
        last = counts_on(&vm, last);
    }
    assert_eq!(vm.vcpu_registers(16), Err(StateError::NoVcpu { index: 16 }));
    vm.stop();
    assert_eq!(vm.wait(), ExitReason::Stopped);
}

pub(crate) fn a_paused_vm_can_be_stopped_and_reset() {
    let (vm, mut console) = ready(guests::COUNTER, 2);
    vm.pause().unwrap();
    vm.pause().unwrap();
    vm.reset().unwrap();
    console.wait_for("ready", 2);
    assert_eq!(vm.state(), VmState::Running);
    vm.resume().unwrap();
    vm.pause().unwrap();
    vm.stop();
    assert_eq!(vm.wait(), ExitReason::Stopped);
}

pub(crate) fn what_a_state_does_not_allow_is_an_error() {
    let vm = VmBuilder::new(config(guests::COUNTER, 1)).build().unwrap();
    let handle = vm.handle();
    let refused = |state| Err(StateError::State { state });
    assert_eq!(handle.state(), VmState::Created);
    assert_eq!(handle.pause(), refused(VmState::Created));
    assert_eq!(handle.resume(), refused(VmState::Created));
    assert_eq!(handle.reset(), refused(VmState::Created));
    assert!(handle.memory().is_err());
    let handle = vm.start().unwrap();
    while handle.state() == VmState::Created {
        thread::yield_now();
    }
    assert_eq!(
        handle.vcpu_registers(0),
        refused(VmState::Running).map(|()| Default::default())
    );
    handle.stop();
    handle.wait();
    for outcome in [handle.pause(), handle.resume(), handle.reset()] {
        assert_eq!(outcome, refused(VmState::Ended));
    }
}

pub(crate) fn twenty_resets_in_a_row() {
    let (vm, mut console) = ready(guests::COUNTER, 1);
    for reset in 2..22 {
        vm.reset().unwrap();
        console.wait_for("ready", reset);
    }
    vm.pause().unwrap();
    count(&vm);
    vm.stop();
    assert_eq!(vm.wait(), ExitReason::Stopped);
}

/// Whatever the order, every call returns, and the VM is as the last one left it.
pub(crate) fn calls_from_several_threads_in_any_order() {
    let (vm, _) = ready(guests::COUNTER, 2);
    thread::scope(|scope| {
        for seed in 0..4_u32 {
            let vm = vm.clone();
            scope.spawn(move || {
                let mut random = seed.wrapping_mul(0x9e37_79b9) | 1;
                for _ in 0..200 {
                    // xorshift
                    random ^= random << 13;
                    random ^= random >> 17;
                    random ^= random << 5;
                    let outcome = match random % 16 {
                        0 => vm.reset(),
                        1..=6 => vm.pause(),
                        7..=11 => vm.resume(),
                        12 => vm.memory().map(drop),
                        13 => vm.vcpu_registers(random % 2).map(drop),
                        14 => vm.press_power_button().map_err(|err| panic!("{err}")),
                        _ => {
                            vm.metrics();
                            Ok(())
                        }
                    };
                    // Another thread's call may have come first.
                    if let Err(error) = outcome {
                        assert!(matches!(error, StateError::State { .. }), "{error}");
                    }
                }
            });
        }
    });
    vm.stop();
    assert_eq!(vm.wait(), ExitReason::Stopped);
}

/*
 * The floor of a start: opens KVM, creates VM, irqchip and vCPU, maps 128 MiB, runs one instruction, and prints what
 * each took. No VMM that does the same work can use less.
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#define MEMORY (128UL << 20)
static struct timespec start;
static void done(const char *what, long result)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    printf("%-10s %6ld us\n", what,
           (t.tv_sec - start.tv_sec) * 1000000 + (t.tv_nsec - start.tv_nsec) / 1000);
    if (result < 0) {
        perror(what);
        exit(1);
    }
}
int main(void)
{
    clock_gettime(CLOCK_MONOTONIC, &start);
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC), vm, vcpu, size;
    done("open", kvm);
    done("vm", vm = ioctl(kvm, KVM_CREATE_VM, 0));
    char *ram = mmap(0, MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    struct kvm_userspace_memory_region region = { .memory_size = MEMORY, .userspace_addr = (unsigned long)ram };
    done("memory", ram == MAP_FAILED ? -1 : ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region));
    done("irqchip", ioctl(vm, KVM_CREATE_IRQCHIP));
    done("vcpu", vcpu = ioctl(vm, KVM_CREATE_VCPU, 0));
    done("map", size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE));
    struct kvm_run *run = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    struct kvm_sregs sregs;
    ioctl(vcpu, KVM_GET_SREGS, &sregs);
    sregs.cs.base = sregs.cs.selector = 0;
    done("sregs", ioctl(vcpu, KVM_SET_SREGS, &sregs));
    struct kvm_regs regs = { .rip = 0x1000, .rflags = 2 };
    done("regs", ioctl(vcpu, KVM_SET_REGS, &regs));
    ram[0x1000] = 0xe6, ram[0x1001] = 0x80; /* out %al, $0x80: a HLT would sleep inside KVM's irqchip */
    done("run", ioctl(vcpu, KVM_RUN, 0));
    return run->exit_reason == KVM_EXIT_IO ? 0 : 1;
}

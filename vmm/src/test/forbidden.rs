//! What no console may show, unless a test says otherwise: the words of a kernel that has come to grief.
//!
//! They are the kernel's own (kernel/panic.c, arch/x86/kernel/dumpstack.c, kernel/watchdog.c, kernel/rcu/tree_stall.h, mm/, lib/), and
//! precise: a test that prints "BUG" or "debug:" has done nothing wrong. A line of the kernel's is one by its time stamp; without
//! one (`printk.time=0`) it is one by its words.

/// What a healthy guest's console never shows: panics, oopses, bugs, lockups, stalls, programs that crash, tasks that hang. Each as a
/// name and a regular expression.
pub const FORBIDDEN: [(&str, &str); 9] = [
    ("a panic", r"Kernel panic - not syncing"),
    (
        "an oops",
        r"\b(?:Oops|general protection fault|invalid opcode|divide error|stack segment|double fault|int3)\b[^\n]*: [0-9a-f]{4,16} \[#[0-9]+\]",
    ),
    (
        "a bug, by its time stamp",
        r"\[ *[0-9]+\.[0-9]{6}\](?:\[ *[TC][0-9]+\])? (?:watchdog: )?BUG: ",
    ),
    (
        "a bug, by its words",
        r"^(?:watchdog: )?BUG: (?:unable to handle|kernel NULL pointer|soft lockup - CPU#|sleeping function called|scheduling while atomic|workqueue |spinlock |rwlock |using |Bad page |bad |KASAN: |KCSAN: |KFENCE: |KMSAN: |MAX_LOCK|(?:TASK |IRQ )?stack guard page|stack overflow)",
    ),
    ("a bug's line", r"\bkernel BUG at [^\s:]+:[0-9]+!"),
    (
        "a hard lockup",
        r"Watchdog detected hard LOCKUP on cpu [0-9]+",
    ),
    (
        "a stall of RCU",
        r"INFO: rcu\w* (?:self-detected stall on CPU|detected (?:expedited )?stalls? on )|\brcu: (?:\w+: )?\w+ kthread (?:starved|timer wakeup didn't happen) for [0-9]+ jiffies",
    ),
    (
        "a program's fault",
        r"\[[0-9]+\]: segfault at [0-9a-f]+ ip [0-9a-f]+ sp [0-9a-f]+ error [0-9a-f]+|traps: [^\n]+\[[0-9]+\] (?:general protection fault|trap )[^\n]* ip:[0-9a-f]+ sp:[0-9a-f]+",
    ),
    (
        "a task that hangs",
        r"INFO: task [^\n]+:[0-9]+ blocked (?:in I/O wait )?for more than [0-9]+ seconds",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;
    use regex::RegexBuilder;

    /// What a line is taken for.
    fn found(line: &str) -> Vec<&'static str> {
        let console = format!("before\r\n{line}\r\nafter\r\n");
        let matches = |text: &str| {
            let regex = RegexBuilder::new(text).multi_line(true).build().unwrap();
            regex.is_match(&console)
        };
        let found = FORBIDDEN.iter().filter(|(_, text)| matches(text));
        found.map(|(name, _)| *name).collect()
    }

    #[test]
    fn what_kernels_say_is_seen() {
        for (line, expected) in [
            (
                "[    1.234567] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)",
                "a panic",
            ),
            (
                "# [   12.000001][    T1] Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000009",
                "a panic",
            ),
            (
                "Kernel panic - not syncing: sysrq triggered crash",
                "a panic",
            ),
            ("[    2.000000] Oops: 0002 [#1] PREEMPT SMP PTI", "an oops"),
            (
                "[    2.000000] Oops: general protection fault, probably for non-canonical address 0xdead000000000108: 0000 [#1] SMP NOPTI",
                "an oops",
            ),
            (
                "[    2.000000] general protection fault, probably for non-canonical address 0xdead000000000108: 0000 [#1] SMP",
                "an oops",
            ),
            ("[    2.000000] invalid opcode: 0000 [#1] SMP", "an oops"),
            (
                "[    2.000000] Internal error: Oops: 0000000096000004 [#1] PREEMPT SMP",
                "an oops",
            ),
            (
                "[    2.000000] BUG: kernel NULL pointer dereference, address: 0000000000000000",
                "a bug, by its time stamp",
            ),
            (
                "[  211.000000][  C0] watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [stress:312]",
                "a bug, by its time stamp",
            ),
            (
                "half a line[    2.000000] BUG: something that is new",
                "a bug, by its time stamp",
            ),
            (
                "BUG: unable to handle page fault for address: ffffffffc0000000",
                "a bug, by its words",
            ),
            (
                "watchdog: BUG: soft lockup - CPU#1 stuck for 22s! [sh:1]",
                "a bug, by its words",
            ),
            (
                "BUG: KASAN: slab-out-of-bounds in foo+0x1/0x2",
                "a bug, by its words",
            ),
            (
                "BUG: sleeping function called from invalid context at kernel/locking/mutex.c:580",
                "a bug, by its words",
            ),
            (
                "BUG: scheduling while atomic: sh/1/0x00000002",
                "a bug, by its words",
            ),
            (
                "[    2.000000] kernel BUG at mm/slub.c:448!",
                "a bug's line",
            ),
            (
                "[    2.000000] NMI watchdog: Watchdog detected hard LOCKUP on cpu 1",
                "a hard lockup",
            ),
            (
                "[    2.000000] watchdog: CPU3: Watchdog detected hard LOCKUP on cpu 3",
                "a hard lockup",
            ),
            (
                "[   21.000000] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
                "a stall of RCU",
            ),
            (
                "[   21.000000] rcu: INFO: rcu_sched self-detected stall on CPU",
                "a stall of RCU",
            ),
            (
                "[   21.000000] rcu: INFO: rcu_preempt detected expedited stalls on CPUs/tasks: { 0-.... } 3899 jiffies s: 61 root: 0x1/.",
                "a stall of RCU",
            ),
            (
                "[   21.000000] INFO: rcu_tasks detected stalls on tasks:",
                "a stall of RCU",
            ),
            (
                "[   21.000000] rcu: rcu_preempt kthread starved for 5250 jiffies! g-1 f0x0 RCU_GP_WAIT_FQS(5)",
                "a stall of RCU",
            ),
            (
                "[    3.000000] a b.sh[71]: segfault at 0 ip 0000000000401136 sp 00007ffd0c0ffee0 error 6 in crash[401000+1000]",
                "a program's fault",
            ),
            (
                "[    3.000000] traps: crash[71] general protection fault ip:401136 sp:7ffd0c0ffee0 error:0 in crash[401000+1000]",
                "a program's fault",
            ),
            (
                "[    3.000000] traps: crash[71] trap invalid opcode ip:401136 sp:7ffd0c0ffee0 error:0",
                "a program's fault",
            ),
            (
                "[  242.000000] INFO: task kworker/0:1:12 blocked for more than 120 seconds.",
                "a task that hangs",
            ),
            (
                "[  242.000000] INFO: task tar:312 blocked in I/O wait for more than 120 seconds.",
                "a task that hangs",
            ),
        ] {
            assert!(found(line).contains(&expected), "{line}: {:?}", found(line));
        }
    }

    #[test]
    fn what_others_say_is_not() {
        for line in [
            "debug: all is well",
            "DEBUG: all is well",
            "found BUG: 12 in the list",
            "BUG: 1234 is fixed",
            "BUG",
            "a BUG in prose",
            "# grep BUG: /var/log/messages",
            "[    1.000000] Command line: console=ttyS0 panic=-1 oops=panic",
            "[    1.000000] systemd[1]: Starting debug: shell",
            "kernel panic is what this test is about",
            "Oops, something went wrong",
            "Oops: see issue [#1]",
            "segfault at dawn",
            "Segmentation fault (core dumped)",
            "[    1.000000] rcu: Hierarchical RCU implementation.",
            "[    1.000000] rcu: INFO: all is well",
            "INFO: task 3 of 5 is done",
            "[    1.000000] NMI watchdog: Enabled. Permanently consumes one hw-PMU counter.",
            "[    1.000000] watchdog: Delayed init of the lockup detector failed: -19",
            "[    1.000000] traps: all set",
            "invalid opcode: see [#1]",
        ] {
            assert_eq!(found(line), [""; 0], "{line}");
        }
    }
}

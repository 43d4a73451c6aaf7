//! The default profile of containers: the same calls as Docker's.
//!
//! Everything that is not listed is refused with `EPERM`. Calls that belong to a capability are allowed if the
//! container has it.

use types::spec::runtime::{LinuxSeccomp, SeccompArg, SeccompRule};

/// Calls that every container may make.
const ALLOWED: &str = "\
    accept accept4 access adjtimex alarm arch_prctl bind brk cachestat capget capset chdir chmod chown chown32 \
    clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep \
    clock_nanosleep_time64 close close_range connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 \
    epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit \
    exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 \
    fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat \
    fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait \
    futex_waitv futex_wake futimesat get_robust_list get_thread_area getcpu getcwd getdents getdents64 \
    getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getitimer getpeername getpgid getpgrp \
    getpid getppid getpriority getrandom getresgid getresgid32 getresuid getresuid32 getrlimit getrusage getsid \
    getsockname getsockopt gettid gettimeofday getuid getuid32 getxattr getxattrat inotify_add_watch inotify_init \
    inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup \
    io_submit ioctl ioprio_get ioprio_set ipc kill landlock_add_rule landlock_create_ruleset landlock_restrict_self \
    lchown lchown32 lgetxattr link linkat listen listmount listxattr listxattrat llistxattr _llseek lremovexattr lseek \
    lsetxattr lstat lstat64 madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod \
    mknodat mlock mlock2 mlockall mmap mmap2 modify_ldt mprotect mq_getsetattr mq_notify mq_open mq_timedreceive \
    mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync \
    munlock munlockall munmap name_to_handle_at nanosleep newfstatat _newselect open openat openat2 pause pidfd_open \
    pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl pread64 preadv preadv2 \
    prlimit64 process_mrelease pselect6 pselect6_time64 pwrite64 pwritev pwritev2 read readahead readlink readlinkat \
    readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages removexattr removexattrat rename renameat \
    renameat2 restart_syscall riscv_hwprobe rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo \
    rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_get_priority_max \
    sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval \
    sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp \
    select semctl semget semop semtimedop semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg sendto setfsgid \
    setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid setpriority setregid \
    setregid32 setresgid setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit set_robust_list setsid \
    setsockopt set_thread_area set_tid_address setuid setuid32 setxattr setxattrat shmat shmctl shmdt shmget shutdown \
    sigaltstack signalfd signalfd4 sigprocmask sigreturn socketcall socketpair splice stat stat64 statfs statfs64 \
    statmount statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete \
    timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime \
    timerfd_gettime64 timerfd_settime timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask uname unlink \
    unlinkat uretprobe utime utimensat utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid write writev \
    process_vm_readv process_vm_writev ptrace sync_file_range2 breakpoint cacheflush set_tls riscv_flush_icache";

/// Calls that belong to a capability.
const BY_CAPABILITY: &[(&str, &str)] = &[
    ("CAP_DAC_READ_SEARCH", "open_by_handle_at"),
    (
        "CAP_SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr \
         lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl \
         quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare",
    ),
    ("CAP_SYS_BOOT", "reboot"),
    ("CAP_SYS_CHROOT", "chroot"),
    ("CAP_SYS_MODULE", "delete_module init_module finit_module"),
    ("CAP_SYS_PACCT", "acct"),
    ("CAP_SYS_PTRACE", "kcmp pidfd_getfd process_madvise"),
    ("CAP_SYS_RAWIO", "iopl ioperm"),
    ("CAP_SYS_TIME", "settimeofday stime clock_settime clock_settime64"),
    ("CAP_SYS_TTY_CONFIG", "vhangup"),
    ("CAP_SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    ("CAP_SYSLOG", "syslog"),
    ("CAP_BPF", "bpf"),
    ("CAP_PERFMON", "perf_event_open"),
];

/// Harmless values of personality(2): PER_LINUX, PER_LINUX32, either with UNAME26, and the query.
const PERSONALITIES: [u64; 5] = [0x0, 0x0008, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// The `CLONE_NEW…` flags of all namespaces.
const NAMESPACES: u64 = 0x7e02_0000;

/// Socket families without namespaces are refused: AF_ALG (38), the kernel's cryptography, whose parsers any program
/// could reach, and AF_VSOCK (40), the hypervisor. Filters see 64 bits of the argument and the kernel uses 32: families
/// above are allowed one by one, as `2³² + 38` is greater than 40. (32-bit programs use `socketcall`, whose arguments
/// are in memory, where no filter looks: AppArmor and SELinux do.)
const AF_ALG: u64 = 38;
const ABOVE: [u64; 6] = [39, 41, 42, 43, 44, 45];

const ENOSYS: u32 = 38;

/// The profile for a container with these capabilities (`CAP_…`).
pub fn default_profile(capabilities: &[String]) -> LinuxSeccomp {
    let has = |name: &str| capabilities.iter().any(|own| own.eq_ignore_ascii_case(name));
    let mut syscalls = vec![allow(ALLOWED.split_whitespace(), Vec::new())];
    for value in PERSONALITIES {
        syscalls.push(allow(["personality"], vec![compare(0, "SCMP_CMP_EQ", value, 0)]));
    }
    syscalls.push(allow(["socket"], vec![compare(0, "SCMP_CMP_LT", AF_ALG, 0)]));
    for family in ABOVE {
        syscalls.push(allow(["socket"], vec![compare(0, "SCMP_CMP_EQ", family, 0)]));
    }
    for (_, names) in BY_CAPABILITY.iter().filter(|(capability, _)| has(capability)) {
        syscalls.push(allow(names.split_whitespace(), Vec::new()));
    }
    if !has("CAP_SYS_ADMIN") {
        syscalls.push(allow(["clone"], vec![compare(0, "SCMP_CMP_MASKED_EQ", NAMESPACES, 0)]));
        // Its flags are in memory, where no filter looks: programs fall back to clone.
        let mut unknown = allow(["clone3"], Vec::new());
        (unknown.action, unknown.errno_ret) = ("SCMP_ACT_ERRNO".into(), Some(ENOSYS));
        syscalls.push(unknown);
    }
    let architectures: &[&str] = if cfg!(target_arch = "x86_64") {
        &["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
    } else if cfg!(target_arch = "aarch64") {
        &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"]
    } else {
        &["SCMP_ARCH_RISCV64"]
    };
    LinuxSeccomp {
        default_action: "SCMP_ACT_ERRNO".into(),
        default_errno_ret: Some(1),
        architectures: architectures.iter().map(ToString::to_string).collect(),
        syscalls,
        ..LinuxSeccomp::default()
    }
}

fn allow<'a>(names: impl IntoIterator<Item = &'a str>, args: Vec<SeccompArg>) -> SeccompRule {
    let names = names.into_iter().map(str::to_owned).collect();
    SeccompRule { names, action: "SCMP_ACT_ALLOW".into(), errno_ret: None, args }
}

fn compare(index: u32, op: &str, value: u64, value_two: u64) -> SeccompArg {
    SeccompArg { index, value, value_two, op: op.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_to_the_hypervisor_and_the_kernels_cryptography_are_refused() {
        let profile = default_profile(&[]);
        let allowed = |family: u64| {
            let rules = profile.syscalls.iter().filter(|rule| rule.names == ["socket"]);
            rules.flat_map(|rule| &rule.args).any(|arg| match arg.op.as_str() {
                "SCMP_CMP_LT" => family < arg.value,
                "SCMP_CMP_EQ" => family == arg.value,
                other => panic!("no rule compares by {other}"),
            })
        };
        for (family, expected) in
            [(1, true), (2, true), (17, true), (38, false), (39, true), (40, false), (41, true), (45, true)]
        {
            assert_eq!(allowed(family), expected, "{family}");
            assert!(!allowed(1 << 32 | family), "the kernel sees {family}");
        }
    }

    #[test]
    fn calls_of_a_capability_are_allowed_only_with_it() {
        let names = |capabilities: &[&str]| -> Vec<String> {
            let capabilities: Vec<String> = capabilities.iter().map(ToString::to_string).collect();
            let rules = default_profile(&capabilities).syscalls.into_iter();
            rules.filter(|rule| rule.action == "SCMP_ACT_ALLOW").flat_map(|rule| rule.names).collect()
        };
        let has = |capabilities: &[&str], name: &str| names(capabilities).iter().any(|own| own == name);
        assert!(!has(&[], "mount") && has(&["CAP_SYS_ADMIN"], "mount"));
        assert!(!has(&[], "get_mempolicy") && has(&["CAP_SYS_NICE"], "get_mempolicy"));
        assert!(!has(&["CAP_SYS_ADMIN"], "io_uring_setup"), "nobody gets the rings");
    }
}

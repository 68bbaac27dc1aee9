//! The system calls that a worker makes (seccomp(2)). Every other one kills it.
//!
//! Most are allowed whatever their arguments, which the kernel looks up in a bitmap; those that could do more than a worker
//! needs are compared by theirs. On the way of a handoff that is `ioctl` alone, and the first comparison finds KVM's.
//!
//! vCPU threads, which run what the guest gives them to run, are left less still.

use super::Layer;
use crate::error::{Error, Result};
use libc::c_long;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen as Length, SeccompCmpOp as Compare, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};
use std::collections::BTreeMap;

type Rules = BTreeMap<c_long, Vec<SeccompRule>>;
type Compiled<T> = std::result::Result<T, BackendError>;

/// What a process of ours does when it makes a call that is not allowed.
const FORBIDDEN: SeccompAction = SeccompAction::KillProcess;
/// Set, it has a forbidden call raise `SIGSYS` in the thread that made it, so that a handler can name it. For development:
/// who has taken a worker over could install a handler, too.
const NAME_CALLS: &str = "NIL_SANDBOX_TRAP";

/// All calls of vCPU threads but those that are compared; the other threads make them, too. They run the guest, save and load it, wait, and write their log;
/// they talk to nobody and start nothing, and what they open is refused ([`no_open`]).
const VCPU: &[c_long] = &[
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_mincore,
    libc::SYS_msync,
    libc::SYS_membarrier,
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_close,
    libc::SYS_read,
    libc::SYS_pread64,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_statx,
    libc::SYS_fcntl,
    libc::SYS_futex,
    libc::SYS_gettid,
    libc::SYS_getpid,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_restart_syscall,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_timer_create,
    libc::SYS_timer_settime,
    libc::SYS_timer_delete,
    libc::SYS_nanosleep,
    libc::SYS_getrandom,
    libc::SYS_getcpu,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Further calls of memory: its own, its guest's, its pools'.
const MEMORY: &[c_long] = &[
    libc::SYS_mlock,
    libc::SYS_mlock2,
    libc::SYS_munlock,
    libc::SYS_mbind,
    libc::SYS_get_mempolicy,
    libc::SYS_userfaultfd,
];
/// Further calls of files that are open, or that landlock permits to open.
const FILES: &[c_long] = &[
    libc::SYS_readv,
    libc::SYS_pwrite64,
    libc::SYS_newfstatat,
    libc::SYS_fstatfs,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_fallocate,
    libc::SYS_eventfd2,
];
/// Calls of its own socket and of who has called there. It makes no other socket, and calls nobody.
const CONNECTIONS: &[c_long] = &[
    libc::SYS_accept4,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_shutdown,
    libc::SYS_setsockopt,
    libc::SYS_getsockopt,
    libc::SYS_getsockname,
    libc::SYS_poll,
    libc::SYS_ppoll,
];
/// Further calls of threads, signals and time.
const THREADS: &[c_long] = &[
    libc::SYS_clone3,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sched_getscheduler,
    libc::SYS_clock_getres,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    libc::SYS_geteuid,
];

/// `KVMIO` (linux/kvm.h) and `UFFDIO` (linux/userfaultfd.h), in the second byte of their ioctls' numbers.
const KVM_TYPE: u64 = 0xAE00;
const USERFAULT_TYPE: u64 = 0xAA00;
const TYPE: u64 = 0xFF00;
/// `PAGEMAP_SCAN` (linux/fs.h).
const PAGEMAP_SCAN: u64 = 0xC060_6610;

/// Allows the calling thread, and those that it starts, what a worker does.
pub(super) fn restrict() -> Result<Layer> {
    let failed = |error: seccompiler::Error| match error {
        seccompiler::Error::Prctl(error) | seccompiler::Error::Seccomp(error) => {
            Ok(Layer::Missing(format!("this kernel takes no system call filter: {error}")))
        }
        other => Err(Error::refused(format!("the system call filter was refused: {other}"))),
    };
    let programs = worker(forbidden()).and_then(|filter| Ok((filter, no_clone3()?)));
    let (filter, no_clone3) = programs.map_err(|error| Error::refused(format!("no system call filter: {error}")))?;
    let applied = seccompiler::apply_filter(&no_clone3).and_then(|()| seccompiler::apply_filter(&filter));
    if let Err(error) = applied {
        return failed(error);
    }
    nil_vmm::confine_vcpu_threads(restrict_vcpu);
    Ok(Layer::Whole)
}

/// Allows the calling thread what a vCPU thread does, on top of [`restrict`].
pub(super) fn restrict_vcpu() {
    let filters = no_open().and_then(|no_open| Ok([no_open, vcpu(forbidden())?])).map_err(seccompiler::Error::Backend);
    let applied = filters.and_then(|filters| filters.iter().try_for_each(|filter| seccompiler::apply_filter(filter)));
    if let Err(error) = applied {
        // The process took a filter before, so it takes this one; if not, no guest must run here.
        tracing::error!("a vCPU thread cannot be confined: {error}");
        std::process::abort();
    }
}

pub(super) fn vcpu(forbidden: SeccompAction) -> Compiled<BpfProgram> {
    let mut rules: Rules = VCPU.iter().map(|&call| (call, vec![])).collect();
    rules.insert(libc::SYS_ioctl, vec![rule([of_type(KVM_TYPE)?])?]);
    rules.extend(
        compared()?.into_iter().filter(|(call, _)| {
            matches!(*call, libc::SYS_mmap | libc::SYS_mprotect | libc::SYS_tgkill | libc::SYS_prctl)
        }),
    );
    compile(rules, forbidden, SeccompAction::Allow)
}

pub(super) fn worker(forbidden: SeccompAction) -> Compiled<BpfProgram> {
    let mut rules: Rules =
        [VCPU, MEMORY, FILES, CONNECTIONS, THREADS].concat().into_iter().map(|call| (call, vec![])).collect();
    rules.insert(libc::SYS_ioctl, ioctls()?);
    rules.extend(compared()?);
    compile(rules, forbidden, SeccompAction::Allow)
}

fn forbidden() -> SeccompAction {
    if std::env::var_os(NAME_CALLS).is_some() { SeccompAction::Trap } else { FORBIDDEN }
}

/// `clone3` takes its flags where no filter can see them: who wants a thread is to use `clone`.
pub(super) fn no_clone3() -> Compiled<BpfProgram> {
    refuse(&[libc::SYS_clone3], libc::ENOSYS)
}

/// A vCPU thread opens nothing by itself. But glibc does (`/proc/sys/vm/overcommit_memory`, when it gives memory back), and
/// does without if it may not.
pub(super) fn no_open() -> Compiled<BpfProgram> {
    refuse(&[libc::SYS_open, libc::SYS_openat], libc::EACCES)
}

/// Lets these calls fail, whatever other filters allow.
fn refuse(calls: &[c_long], error: i32) -> Compiled<BpfProgram> {
    let rules = calls.iter().map(|&call| (call, vec![])).collect();
    compile(rules, SeccompAction::Allow, SeccompAction::Errno(error.cast_unsigned()))
}

fn ioctls() -> Compiled<Vec<SeccompRule>> {
    Ok(vec![
        rule([of_type(KVM_TYPE)?])?,
        rule([of_type(USERFAULT_TYPE)?])?,
        equal(1, PAGEMAP_SCAN)?,
        equal(1, libc::FIONBIO)?,
    ])
}

fn of_type(kind: u64) -> Compiled<SeccompCondition> {
    condition(1, Length::Dword, Compare::MaskedEq(TYPE), kind)
}

/// The calls that are allowed with certain arguments only.
fn compared() -> Compiled<Rules> {
    let none_of = |bits: i32| Compare::MaskedEq(u64::from(bits.cast_unsigned()));
    let thread = u64::from((libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND).cast_unsigned());
    let own = u64::from(std::process::id());
    Ok([
        // No code but what the program came with.
        (libc::SYS_mmap, vec![rule([condition(2, Length::Dword, none_of(libc::PROT_EXEC), 0)?])?]),
        (libc::SYS_mprotect, vec![rule([condition(2, Length::Dword, none_of(libc::PROT_EXEC), 0)?])?]),
        // Threads, no processes.
        (libc::SYS_clone, vec![rule([condition(0, Length::Qword, Compare::MaskedEq(thread), thread)?])?]),
        // Signals to itself, nobody else; and whether somebody else is there.
        (libc::SYS_tgkill, vec![equal(0, own)?]),
        (libc::SYS_kill, vec![equal(1, 0)?]),
        // Its own priority and its own pages.
        (libc::SYS_sched_setscheduler, vec![equal(0, 0)?]),
        (libc::SYS_move_pages, vec![equal(0, 0)?]),
        (libc::SYS_migrate_pages, vec![equal(0, own)?]),
        // Messages to who has called, to no other address.
        (libc::SYS_sendto, vec![rule([condition(4, Length::Qword, Compare::Eq, 0)?])?]),
        // To ask for its limits, not to change them.
        (libc::SYS_prlimit64, vec![rule([condition(2, Length::Qword, Compare::Eq, 0)?])?]),
        (
            libc::SYS_prctl,
            PRCTLS.iter().map(|&option| equal(0, u64::from(option.cast_unsigned()))).collect::<Compiled<_>>()?,
        ),
        // To restrict itself further.
        (libc::SYS_seccomp, vec![equal(0, SET_MODE_FILTER)?]),
    ]
    .into())
}

/// `PR_GET_AUXV` (linux/prctl.h): how large a page is, and the like.
const PR_GET_AUXV: i32 = 0x4155_5856;
/// A thread's name; what the kernel told the program at its start; and what a filter wants first.
const PRCTLS: [i32; 3] = [libc::PR_SET_NAME, PR_GET_AUXV, libc::PR_SET_NO_NEW_PRIVS];
/// `SECCOMP_SET_MODE_FILTER` (linux/seccomp.h).
const SET_MODE_FILTER: u64 = 1;

fn equal(argument: u8, value: u64) -> Compiled<SeccompRule> {
    rule([condition(argument, Length::Dword, Compare::Eq, value)?])
}

fn condition(argument: u8, length: Length, compare: Compare, value: u64) -> Compiled<SeccompCondition> {
    SeccompCondition::new(argument, length, compare, value)
}

fn rule(conditions: impl Into<Vec<SeccompCondition>>) -> Compiled<SeccompRule> {
    SeccompRule::new(conditions.into())
}

fn compile(rules: Rules, otherwise: SeccompAction, matched: SeccompAction) -> Compiled<BpfProgram> {
    SeccompFilter::new(rules, otherwise, matched, TargetArch::x86_64)?.try_into()
}

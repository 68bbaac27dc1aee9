//! What a confined process can do and cannot.
//!
//! A sandbox has no way out, so each attempt is made in a process of its own: this test program once more, told by its
//! environment what to attempt. And as a filter that is too wide fails nothing, its program is also run over calls here.

use super::*;
use libc::c_long;
use rustix::process::{Pid, Resource, Signal, getrlimit, kill_process};
use seccompiler::SeccompAction;
use std::fs::{self, File};
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitStatus};

/// Names the attempt to the process that makes it, and the directory in which it does.
const ATTEMPT: &str = "NIL_TEST_SANDBOX_ATTEMPT";
const PLACE: &str = "NIL_TEST_SANDBOX_PLACE";
/// What the process that makes an attempt ends with if it was let do it, and if it was told that it may not.
const DONE: i32 = 40;
const REFUSED: i32 = 41;

type Attempt = fn(&Path) -> std::io::Result<()>;

const ATTEMPTS: &[(&str, Attempt)] = &[
    ("read its image", |place| fs::read(place.join("images/image")).map(drop)),
    ("read about itself", |_| fs::read_to_string("/proc/self/status").map(drop)),
    ("look at the machine's nodes", |_| fs::read_dir("/sys/devices/system/node").map(drop)),
    ("start a thread", |_| std::thread::Builder::new().spawn(|| ()).map(|thread| thread.join().expect("it ends"))),
    ("answer who has called", |place| {
        // It listened before it was confined; this is the other end of what it accepted.
        let mut connection = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
        connection.write_all(place.as_os_str().as_encoded_bytes())
    }),
    ("have no capability", |_| expect(hold_nothing(&["CapEff", "CapPrm", "CapInh", "CapAmb"]))),
    ("have no way to gain one", |_| expect(hold_nothing(&["CapBnd"]) && status("NoNewPrivs") == Some(1))),
    ("leave no core dump", |_| expect(getrlimit(Resource::Core).maximum == Some(0))),
    ("read a pool", |place| fs::read(place.join("other")).map(drop)),
    ("read the passwords", |_| fs::read("/etc/shadow").map(drop)),
    ("read another process's memory", |_| File::open("/proc/1/mem").map(drop)),
    ("write its image", |place| File::options().append(true).open(place.join("images/image")).map(drop)),
    ("make a file", |place| File::create(place.join("new")).map(drop)),
    ("list a directory", |place| fs::read_dir(place).map(drop)),
    ("remove a file", |place| fs::remove_file(place.join("other"))),
    ("rename a file", |place| fs::rename(place.join("other"), place.join("mine"))),
    ("call the agent", |place| UnixStream::connect(place.join("socket")).map(drop)),
    ("listen on a socket", |place| UnixListener::bind(place.join("mine")).map(drop)),
    ("call another machine", |_| TcpStream::connect("127.0.0.1:9").map(drop)),
    ("listen to other machines", |_| TcpListener::bind("127.0.0.1:0").map(drop)),
    ("run a program", |_| Command::new("/bin/true").status().map(drop)),
    ("signal another process", |_| Ok(kill_process(Pid::INIT, Signal::WINCH)?)),
    ("raise a limit", |_| Ok(rustix::process::setrlimit(Resource::Core, getrlimit(Resource::Core))?)),
    ("change its root", |_| Ok(rustix::process::chroot("/")?)),
];

fn expect(so: bool) -> std::io::Result<()> {
    if so { Ok(()) } else { Err(std::io::ErrorKind::PermissionDenied.into()) }
}

/// A hexadecimal figure of the calling thread's status.
fn status(name: &str) -> Option<u64> {
    let status = fs::read_to_string("/proc/thread-self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    u64::from_str_radix(line.trim(), 16).ok()
}

/// Whether these sets hold no capability that a worker may not have.
fn hold_nothing(sets: &[&str]) -> bool {
    sets.iter().all(|set| status(set).is_some_and(|held| held & !may_stay() == 0))
}

/// `CAP_SYS_NICE`, where this user may not raise `RLIMIT_RTPRIO`.
fn may_stay() -> u64 {
    if getrlimit(Resource::Rtprio).maximum == Some(0) { 1 << 23 } else { 0 }
}

/// Makes the attempt that the environment names. As a test by itself it has none to make.
#[test]
fn attempts_are_made_from_inside() {
    let Some(name) = std::env::var_os(ATTEMPT) else { return };
    let place = PathBuf::from(std::env::var_os(PLACE).expect("a place"));
    let (_, attempt) = ATTEMPTS.iter().find(|(known, _)| *known == name).expect("a known attempt");
    confine(&WorkerSandbox { readable: vec![place.join("images")], ..WorkerSandbox::default() }).expect("confined");
    std::process::exit(match attempt(&place) {
        Ok(()) => DONE,
        Err(_) => REFUSED,
    });
}

/// How the process ended that has made an attempt.
fn attempt(name: &str) -> ExitStatus {
    let place = tempfile::tempdir().expect("a directory");
    fs::create_dir(place.path().join("images")).expect("a directory");
    for file in ["other", "images/image"] {
        fs::write(place.path().join(file), "bytes").expect("written");
    }
    let _agent = UnixListener::bind(place.path().join("socket")).expect("a socket");
    let (ours, theirs) = UnixStream::pair().expect("two sockets");
    let mut program = Command::new(std::env::current_exe().expect("this program"));
    program.args(["--exact", "worker::sandbox::tests::attempts_are_made_from_inside"]);
    program.env(ATTEMPT, name).env(PLACE, place.path()).env_remove("NIL_SANDBOX_TRAP");
    program.stdin(OwnedFd::from(theirs)).stdout(std::process::Stdio::null());
    let status = program.status().expect("it runs");
    drop(ours);
    status
}

fn attempts(names: &[&str], ending: fn(&ExitStatus) -> bool) {
    for name in names {
        let status = attempt(name);
        assert!(ending(&status), "to {name}: {status}");
    }
}

#[test]
fn a_confined_worker_does_its_work() {
    let names = [
        "read its image",
        "read about itself",
        "look at the machine's nodes",
        "start a thread",
        "answer who has called",
    ];
    attempts(&names, |status| status.code() == Some(DONE));
}

#[test]
fn a_confined_worker_has_no_privilege_and_leaves_no_core_dump() {
    let names = ["have no capability", "have no way to gain one", "leave no core dump"];
    attempts(&names, |status| status.code() == Some(DONE));
}

#[test]
fn a_confined_worker_opens_no_file_but_its_own() {
    let names = [
        "read a pool",
        "read the passwords",
        "read another process's memory",
        "write its image",
        "make a file",
        "list a directory",
    ];
    let landlock = fs::read_to_string("/sys/kernel/security/lsm").is_ok_and(|lsm| !lsm.contains("landlock"));
    if landlock {
        return println!("skipped: this kernel has no landlock; boot it with `lsm=landlock,…`");
    }
    attempts(&names, |status| status.code() == Some(REFUSED));
}

#[test]
fn a_confined_worker_that_does_what_it_never_does_is_killed() {
    let names = [
        "remove a file",
        "rename a file",
        "call the agent",
        "listen on a socket",
        "call another machine",
        "listen to other machines",
        "run a program",
        "signal another process",
        "raise a limit",
        "change its root",
    ];
    attempts(&names, |status| status.signal() == Some(Signal::SYS.as_raw()));
}

#[test]
fn every_attempt_is_one_that_is_expected_to_end_in_some_way() {
    let source = include_str!("tests.rs");
    for (name, _) in ATTEMPTS {
        assert_eq!(source.matches(&format!("\"{name}\"")).count(), 2, "{name}");
    }
}

/// What the kernel would do with a call, by the filter's program (classic BPF: linux/bpf_common.h, linux/seccomp.h).
fn verdict(program: &[seccompiler::sock_filter], call: c_long, arguments: [u64; 6]) -> u32 {
    const AUDIT_ARCH_X86_64: u32 = 0xC000_003E;
    let word = |offset: u32| match offset {
        0 => u32::try_from(call).expect("a number of a call"),
        4 => AUDIT_ARCH_X86_64,
        16.. => {
            let (argument, upper) = ((offset - 16) / 8, (offset - 16) % 8 / 4);
            u32::try_from(arguments[argument as usize] >> (32 * upper) & u64::from(u32::MAX)).expect("32 bits")
        }
        _ => 0,
    };
    let (mut accumulator, mut at) = (0, 0);
    loop {
        let seccompiler::sock_filter { code, jt, jf, k } = program[at];
        at += 1;
        let jump = |taken: bool| usize::from(if taken { jt } else { jf });
        match code {
            0x20 => accumulator = word(k),
            0x54 => accumulator &= k,
            0x05 => at += k as usize,
            0x15 => at += jump(accumulator == k),
            0x25 => at += jump(accumulator > k),
            0x35 => at += jump(accumulator >= k),
            0x06 => return k,
            other => panic!("an instruction of a kind that filters do not have: {other:#x}"),
        }
    }
}

const ALLOW: u32 = 0x7FFF_0000;
const KILL: u32 = 0x8000_0000;

#[track_caller]
fn check(call: c_long, arguments: [u64; 6], expected: u32) {
    let program = calls::worker(SeccompAction::KillProcess).expect("a filter");
    assert_eq!(verdict(&program, call, arguments), expected, "call {call} with {arguments:x?}");
}

#[test]
fn memory_is_never_made_executable() {
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        check(call, [0, 4096, 3, 0x22, u64::MAX, 0], ALLOW);
        check(call, [0, 4096, 7, 0x22, u64::MAX, 0], KILL);
        check(call, [0, 4096, 4, 0x22, u64::MAX, 0], KILL);
    }
}

#[test]
fn threads_are_started_and_processes_are_not() {
    // What glibc asks for: CLONE_VM|FS|FILES|SIGHAND|THREAD|SYSVSEM|SETTLS|PARENT_SETTID|CHILD_CLEARTID.
    check(libc::SYS_clone, [0x3D_0F00, 0, 0, 0, 0, 0], ALLOW);
    for flags in [0, 0x11, 0x4111, 0x0100, 0x1_0000] {
        check(libc::SYS_clone, [flags, 0, 0, 0, 0, 0], KILL);
    }
    for call in [libc::SYS_fork, libc::SYS_vfork, libc::SYS_execve, libc::SYS_execveat] {
        check(call, [0; 6], KILL);
    }
    let unknown = calls::no_clone3().expect("a filter");
    assert_eq!(verdict(&unknown, libc::SYS_clone3, [0; 6]), 0x0005_0000 | libc::ENOSYS.cast_unsigned());
    assert_eq!(verdict(&unknown, libc::SYS_clone, [0; 6]), ALLOW);
}

#[test]
fn signals_go_to_the_worker_itself_and_to_nobody_else() {
    let own = u64::from(std::process::id());
    check(libc::SYS_tgkill, [own, 7, 34, 0, 0, 0], ALLOW);
    check(libc::SYS_tgkill, [1, 1, 9, 0, 0, 0], KILL);
    check(libc::SYS_kill, [1, 0, 0, 0, 0, 0], ALLOW);
    for call in [libc::SYS_kill, libc::SYS_tkill, libc::SYS_pidfd_send_signal, libc::SYS_rt_tgsigqueueinfo] {
        check(call, [own, own, 9, 0, 0, 0], KILL);
    }
}

#[test]
fn only_the_ioctls_of_kvm_userfaultfd_and_page_maps_are_made() {
    const KVM_RUN: u64 = 0xAE80;
    const UFFDIO_API: u64 = 0xC018_AA3F;
    const PAGEMAP_SCAN: u64 = 0xC060_6610;
    const TIOCSTI: u64 = 0x5412;
    const SIOCGIFCONF: u64 = 0x8912;
    const FS_IOC_SETFLAGS: u64 = 0x4008_6602;
    for request in [KVM_RUN, UFFDIO_API, PAGEMAP_SCAN, libc::FIONBIO] {
        check(libc::SYS_ioctl, [3, request, 0, 0, 0, 0], ALLOW);
    }
    for request in [TIOCSTI, SIOCGIFCONF, FS_IOC_SETFLAGS] {
        check(libc::SYS_ioctl, [3, request, 0, 0, 0, 0], KILL);
    }
}

#[test]
fn no_priority_but_its_own_is_changed_and_no_pages_but_its_own_are_moved() {
    let own = u64::from(std::process::id());
    for call in [libc::SYS_sched_setscheduler, libc::SYS_move_pages] {
        check(call, [0; 6], ALLOW);
        check(call, [1, 0, 0, 0, 0, 0], KILL);
    }
    check(libc::SYS_migrate_pages, [own, 0, 0, 0, 0, 0], ALLOW);
    check(libc::SYS_migrate_pages, [1, 0, 0, 0, 0, 0], KILL);
}

#[test]
fn nobody_is_written_to_by_address_and_no_limit_is_changed() {
    check(libc::SYS_sendto, [3, 0, 0, 0, 0, 0], ALLOW);
    check(libc::SYS_sendto, [3, 0, 0, 0, 0x7FFF_0000_0000, 16], KILL);
    check(libc::SYS_prlimit64, [0, 3, 0, 0x7FFF_0000_0000, 0, 0], ALLOW);
    check(libc::SYS_prlimit64, [0, 3, 0x7FFF_0000_0000, 0, 0, 0], KILL);
    check(libc::SYS_prctl, [libc::PR_SET_NAME.cast_unsigned().into(), 0, 0, 0, 0, 0], ALLOW);
    check(libc::SYS_prctl, [libc::PR_SET_MM.cast_unsigned().into(), 0, 0, 0, 0, 0], KILL);
}

#[test]
fn the_calls_by_which_sandboxes_are_left_are_forbidden() {
    let ways_out = [
        libc::SYS_socket,
        libc::SYS_connect,
        libc::SYS_bind,
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_pidfd_getfd,
        libc::SYS_io_uring_setup,
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_keyctl,
        libc::SYS_mount,
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_chroot,
        libc::SYS_open_by_handle_at,
        libc::SYS_unlinkat,
        libc::SYS_renameat2,
        libc::SYS_memfd_create,
        libc::SYS_pkey_mprotect,
        libc::SYS_personality,
        libc::SYS_capset,
        libc::SYS_setuid,
    ];
    for call in ways_out {
        check(call, [0; 6], KILL);
    }
}

#[test]
fn vcpu_threads_open_nothing_talk_to_nobody_and_start_nothing() {
    let program = calls::vcpu(SeccompAction::KillProcess).expect("a filter");
    let thread = 0x3D_0F00;
    for call in [libc::SYS_accept4, libc::SYS_recvmsg, libc::SYS_sendto, libc::SYS_userfaultfd] {
        assert_eq!(verdict(&program, call, [0; 6]), KILL, "call {call}");
    }
    let refused = calls::no_open().expect("a filter");
    for call in [libc::SYS_open, libc::SYS_openat] {
        assert_eq!(verdict(&refused, call, [0; 6]), 0x0005_0000 | libc::EACCES.cast_unsigned(), "call {call}");
    }
    assert_eq!(verdict(&program, libc::SYS_clone, [thread, 0, 0, 0, 0, 0]), KILL);
    assert_eq!(verdict(&program, libc::SYS_ioctl, [3, 0xC018_AA3F, 0, 0, 0, 0]), KILL);
    assert_eq!(verdict(&program, libc::SYS_ioctl, [3, 0xAE80, 0, 0, 0, 0]), ALLOW);
}

#[test]
fn vcpu_threads_are_left_nothing_that_other_threads_are_not() {
    let (vcpu, worker) = (calls::vcpu(SeccompAction::KillProcess), calls::worker(SeccompAction::KillProcess));
    let (vcpu, worker) = (vcpu.expect("a filter"), worker.expect("a filter"));
    for call in 0..512 {
        if verdict(&vcpu, call, [0; 6]) == ALLOW {
            assert_eq!(verdict(&worker, call, [0; 6]), ALLOW, "call {call}");
        }
    }
}

#[test]
fn a_sandbox_that_is_off_leaves_the_process_as_it_is() {
    let report = confine(&WorkerSandbox { mode: SandboxMode::Off, ..WorkerSandbox::default() }).expect("nothing to do");
    assert_eq!(report, SandboxReport::default());
    assert_eq!(report.to_string(), "off");
}

#[test]
fn a_report_says_what_there_is_and_what_is_missing() {
    let mut report = SandboxReport::default();
    note(&mut report, SandboxLayer::Capabilities, Layer::Whole);
    note(&mut report, SandboxLayer::Landlock, Layer::Missing("no landlock".to_owned()));
    note(&mut report, SandboxLayer::Seccomp, Layer::Whole);
    assert_eq!(report.to_string(), "seccomp+capabilities (no landlock)");
}

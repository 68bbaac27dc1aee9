//! What the handlers let pass, and what they leave to the end of the process: a process that is to end so is a child.
#![allow(unsafe_code)]

use super::*;
use crate::dram::{AddressRange, PAGE};
use crate::userfault::Userfault;
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap};
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::gettid;
use std::io::{PipeReader, Write, pipe};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::sync::mpsc;

const GUEST: usize = 2 << 20;

/// Tells a child that it is one.
const CHILD: &str = "NIL_MOVER_TEST_CHILD";

/// Runs the test of this name in a child, where it calls `end`, and tells by which signal that ended.
fn signal_that_ends(test: &str, end: fn()) -> Option<i32> {
    if std::env::var_os(CHILD).is_some() {
        setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }).expect("no core file");
        end();
        std::process::exit(0);
    }
    let mut child = Command::new(std::env::current_exe().expect("this program"));
    child
        .args([&format!("lost::tests::{test}"), "--exact"])
        .env(CHILD, "1")
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    child.status().expect("a child").signal()
}

/// A guest's memory, watched.
fn guest() -> (AddressRange, Watch) {
    let range = AddressRange::private(GUEST).expect("addresses");
    let watch = Watch::over(range.addresses()).expect("handlers");
    (range, watch)
}

/// Has the page at this offset fail from now on.
fn poison(range: &AddressRange, offset: usize) {
    let page = range.addresses().start + offset;
    let userfault = Userfault::open().expect("a userfaultfd");
    userfault.register(&range.addresses()).expect("registered");
    userfault.poison(&(page..page + PAGE)).expect("poisoned");
}

fn read_byte(address: *const u8) {
    // SAFETY: the callers pass addresses that are mapped; that the access fails is what they are about.
    let byte = unsafe { address.read_volatile() };
    std::hint::black_box(byte);
}

#[test]
fn a_fault_outside_of_guests_memory_ends_the_process() {
    let signal = signal_that_ends("a_fault_outside_of_guests_memory_ends_the_process", || {
        let (_range, _watch) = guest();
        let file = tempfile::tempfile().expect("a file");
        // SAFETY: a new mapping at an address of the kernel's choice; the file is empty, so that no byte of it is there.
        let mapped = unsafe { mmap(std::ptr::null_mut(), PAGE, ProtFlags::READ, MapFlags::SHARED, &file, 0) };
        read_byte(mapped.expect("a mapping").cast());
    });
    assert_eq!(signal, Some(libc::SIGBUS));
}

#[test]
fn an_access_of_this_program_to_lost_memory_of_a_guest_ends_the_process() {
    let signal = signal_that_ends("an_access_of_this_program_to_lost_memory_of_a_guest_ends_the_process", || {
        let (range, _watch) = guest();
        poison(&range, PAGE);
        read_byte(range.at(0));
        read_byte(range.at(PAGE));
    });
    assert_eq!(signal, Some(libc::SIGBUS));
}

#[test]
fn a_child_that_touches_nothing_lost_ends_by_itself() {
    let signal = signal_that_ends("a_child_that_touches_nothing_lost_ends_by_itself", || {
        let (range, _watch) = guest();
        poison(&range, PAGE);
        read_byte(range.at(0));
    });
    assert_eq!(signal, None);
}

/// Waits until the thread is in read(2).
fn wait_for_read(thread: rustix::process::Pid) {
    let path = format!("/proc/self/task/{}/syscall", thread.as_raw_nonzero());
    let read = format!("{} ", libc::SYS_read);
    while !std::fs::read_to_string(&path).expect("/proc").starts_with(&read) {
        std::thread::yield_now();
    }
}

/// Reads from the pipe into a page of the guest's, as a device does.
fn read_into(pipe: &PipeReader, page: usize) -> Result<usize, Errno> {
    let page = std::ptr::with_exposed_provenance_mut::<u8>(page);
    // SAFETY: the page is mapped, and nobody else uses it; the kernel does not mind that it has failed.
    let page = unsafe { std::slice::from_raw_parts_mut(page.cast::<std::mem::MaybeUninit<u8>>(), PAGE) };
    rustix::io::read(pipe, page).map(|(read, _)| read.len())
}

#[test]
fn a_system_call_that_fills_a_page_which_has_failed_meanwhile_fails_and_nothing_else_does() {
    let (range, _watch) = guest();
    let (reader, mut writer) = pipe().expect("a pipe");
    let addresses = range.addresses();
    std::thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        let reading = scope.spawn(move || {
            sender.send(gettid()).expect("somebody waits");
            (read_into(&reader, addresses.start + PAGE), read_into(&reader, addresses.start))
        });
        wait_for_read(receiver.recv().expect("a thread"));
        poison(&range, PAGE);
        writer.write_all(b"from a device").expect("room in the pipe");
        let (into_the_lost, into_the_next) = reading.join().expect("a thread that lives");
        assert_eq!(into_the_lost, Err(Errno::FAULT));
        assert_eq!(into_the_next, Ok(b"from a device".len()));
    });
}

#[test]
fn a_fault_that_a_system_call_reports_by_signal_is_remembered_and_ends_nothing() {
    let (range, watch) = guest();
    // As KVM does for a vCPU that touches such a page (kvm_send_hwpoison_signal in arch/x86/kvm/mmu/mmu.c): to the calling
    // thread, out of a system call of its own.
    let mut words = [0usize; size_of::<libc::siginfo_t>() / size_of::<usize>()];
    words[2] = range.addresses().start + 5 * PAGE;
    // SAFETY: any bytes are a valid siginfo_t.
    let mut info: libc::siginfo_t = unsafe { std::mem::transmute(words) };
    (info.si_signo, info.si_code) = (libc::SIGBUS, libc::BUS_MCEERR_AR);
    let (process, thread) = (std::process::id(), gettid().as_raw_nonzero().get());
    // SAFETY: the kernel copies `info`, which is alive.
    let sent = unsafe { libc::syscall(libc::SYS_rt_tgsigqueueinfo, process, thread, libc::SIGBUS, &raw const info) };
    assert_eq!((sent, watch.lost()), (0, Some(5 * PAGE)));
}

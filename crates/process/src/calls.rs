//! Which system calls behave otherwise on memory in the pool than on private memory, and what is done before they run.
//!
//! | Call | On a shared mapping | What happens |
//! |---|---|---|
//! | `fork`, `clone` without `CLONE_VM` | parent and child would share memory | all of it becomes private first |
//! | `madvise`: `DONTNEED`, `FREE`, `REMOVE`, … | old contents would come back | the range becomes private first |
//! | `mremap` | growing would show what lies behind in the pool | the range becomes private first |
//! | `mprotect` with `PROT_EXEC` | file systems of pools may forbid it | the range becomes private first |
//! | `io_uring_setup`, `io_setup`, `userfaultfd` | devices and others would hold on to pages that move | all of it becomes private first |
//! | other calls that change mappings | the same | nothing moves while they run |

use std::ops::Range;

/// What must be done before a call runs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Need {
    /// Nothing, and it changes no mappings.
    Nothing,
    /// It changes mappings.
    Quiet,
    /// This range must be private.
    Private(Range<usize>),
    /// Everything must be private, and remain so; why.
    AllPrivate(&'static str),
}

const EVERY_FLAG: u64 = u64::MAX;

/// What a call needs, by its number and arguments on x86-64. `clone3` keeps its flags in memory: `word` reads there.
pub(crate) fn need(number: u64, arguments: [u64; 6], word: impl Fn(u64) -> Option<u64>) -> Need {
    let [first, second, third, ..] = arguments;
    match libc::c_long::try_from(number).unwrap_or(-1) {
        libc::SYS_fork => fork(0),
        libc::SYS_clone => fork(first),
        // Flags that cannot be read make the call fail, too.
        libc::SYS_clone3 => fork(word(first).unwrap_or(EVERY_FLAG)),
        libc::SYS_mremap => Need::Private(pages(first, second.max(1))),
        libc::SYS_madvise if changes_contents(third) => Need::Private(pages(first, second)),
        libc::SYS_mprotect | libc::SYS_pkey_mprotect if third & 4 != 0 => Need::Private(pages(first, second)),
        libc::SYS_io_uring_setup | libc::SYS_io_setup => Need::AllPrivate("it has begun asynchronous I/O"),
        libc::SYS_userfaultfd => Need::AllPrivate("it has begun to handle its own page faults"),
        libc::SYS_process_madvise | libc::SYS_remap_file_pages => Need::AllPrivate("it changes its memory's mappings"),
        libc::SYS_mmap
        | libc::SYS_munmap
        | libc::SYS_brk
        | libc::SYS_madvise
        | libc::SYS_mprotect
        | libc::SYS_pkey_mprotect
        | libc::SYS_shmat
        | libc::SYS_shmdt
        | libc::SYS_mlock
        | libc::SYS_mlock2
        | libc::SYS_mlockall
        | libc::SYS_munlock
        | libc::SYS_munlockall
        | libc::SYS_execve
        | libc::SYS_execveat
        | libc::SYS_mbind => Need::Quiet,
        _ => Need::Nothing,
    }
}

fn fork(flags: u64) -> Need {
    let shares = flags & u64::from(libc::CLONE_VM.unsigned_abs()) != 0;
    if shares { Need::Nothing } else { Need::AllPrivate("it has forked") }
}

/// Advice that does more than tell what is to be expected.
fn changes_contents(advice: u64) -> bool {
    const HINTS: [i32; 11] = [
        libc::MADV_NORMAL,
        libc::MADV_RANDOM,
        libc::MADV_SEQUENTIAL,
        libc::MADV_WILLNEED,
        libc::MADV_HUGEPAGE,
        libc::MADV_NOHUGEPAGE,
        libc::MADV_DONTDUMP,
        libc::MADV_DODUMP,
        libc::MADV_COLD,
        libc::MADV_PAGEOUT,
        libc::MADV_POPULATE_READ,
    ];
    !HINTS.iter().any(|hint| i32::try_from(advice) == Ok(*hint))
}

/// The whole pages that a range touches.
fn pages(start: u64, bytes: u64) -> Range<usize> {
    let at = |address: u64| usize::try_from(address).unwrap_or(usize::MAX);
    at(start & !4095)..at(start.saturating_add(bytes).saturating_add(4095) & !4095)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(number: libc::c_long, arguments: [u64; 3]) -> Need {
        let [first, second, third] = arguments;
        need(number.cast_unsigned(), [first, second, third, 0, 0, 0], |_| Some(0))
    }

    #[test]
    fn a_fork_needs_all_memory_private_and_a_new_thread_does_not() {
        assert_eq!(of(libc::SYS_fork, [0; 3]), Need::AllPrivate("it has forked"));
        assert_eq!(of(libc::SYS_clone, [17, 0, 0]), Need::AllPrivate("it has forked"));
        assert_eq!(of(libc::SYS_clone3, [0x1000, 88, 0]), Need::AllPrivate("it has forked"));
        assert_eq!(of(libc::SYS_clone, [0x3d0f00, 0, 0]), Need::Nothing);
        assert_eq!(of(libc::SYS_vfork, [0; 3]), Need::Nothing);
    }

    #[test]
    fn advice_that_changes_contents_is_told_from_hints() {
        assert_eq!(of(libc::SYS_madvise, [0x1000, 0x1001, 4]), Need::Private(0x1000..0x3000));
        assert_eq!(of(libc::SYS_madvise, [0x1000, 0x1000, 14]), Need::Quiet);
    }

    #[test]
    fn a_range_is_taken_by_whole_pages_wherever_it_ends() {
        assert_eq!(of(libc::SYS_mremap, [0x5000, 0, 0]), Need::Private(0x5000..0x6000));
        assert_eq!(pages(u64::MAX - 10, 100).end, usize::MAX & !4095);
    }
}

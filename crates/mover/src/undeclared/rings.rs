//! Registered buffers of the process's io_uring instances, as `/proc/self/fdinfo/FD` of each lists them
//! (`io_uring_show_fdinfo` in io_uring/fdinfo.c):
//!
//! ```text
//! UserBufs:  3
//!     0: 0x7f2c4e601000/8192
//!     1: <none>
//!     2: 0x7f2c4ea00064/1048576
//! ```

use super::Undetectable;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::ops::Range;
use std::time::Duration;

const DESCRIPTORS: &str = "/proc/self/fd";
/// Until 6.17, a ring that is at work lists no buffers: it is asked again.
const ATTEMPTS: u32 = 50;
const BETWEEN_ATTEMPTS: Duration = Duration::from_micros(100);

/// A buffer registered with a ring.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct RingBuffer {
    /// The ring's descriptor.
    pub(super) ring: u32,
    /// The buffer's index in the ring.
    pub(super) index: u32,
    /// Its addresses, rounded to whole pages.
    pub(super) range: Range<u64>,
}

impl RingBuffer {
    pub(super) fn holder(&self) -> String {
        format!("io_uring (descriptor {}, registered buffer {})", self.ring, self.index)
    }
}

/// All buffers of all rings of this process that have a descriptor.
pub(super) fn registered_buffers() -> Result<Vec<RingBuffer>, Undetectable> {
    let mut buffers = Vec::new();
    for entry in fs::read_dir(DESCRIPTORS).map_err(Undetectable::of(DESCRIPTORS))? {
        let entry = entry.map_err(Undetectable::of(DESCRIPTORS))?;
        // A descriptor that is gone by now holds nothing.
        let is_ring =
            fs::read_link(entry.path()).is_ok_and(|target| target.as_os_str() == OsStr::new("anon_inode:[io_uring]"));
        if let (true, Some(ring)) = (is_ring, entry.file_name().to_str().and_then(|name| name.parse().ok())) {
            buffers.extend(buffers_of(ring)?);
        }
    }
    Ok(buffers)
}

fn buffers_of(ring: u32) -> Result<Vec<RingBuffer>, Undetectable> {
    let path = format!("/proc/self/fdinfo/{ring}");
    for _ in 0..ATTEMPTS {
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Undetectable::of(&path)(error)),
        };
        if let Some(buffers) = parse(ring, &text) {
            return Ok(buffers);
        }
        std::thread::sleep(BETWEEN_ATTEMPTS);
    }
    // What it holds is in VmPin, and will be found there as the remainder that nobody can locate.
    Ok(Vec::new())
}

/// The buffers in a ring's fdinfo; `None` when it says that there are some and does not list them.
fn parse(ring: u32, text: &str) -> Option<Vec<RingBuffer>> {
    let mut lines = text.lines().skip_while(|line| !line.starts_with("UserBufs:"));
    let count: usize =
        lines.next().and_then(|line| line.split_once(':')).map_or(Some(0), |(_, count)| count.trim().parse().ok())?;
    let slots: Vec<_> = lines.map_while(slot).collect();
    if slots.len() < count {
        return None;
    }
    let buffers =
        slots.into_iter().take(count).filter_map(|(index, range)| range.map(|range| RingBuffer { ring, index, range }));
    Some(buffers.collect())
}

/// A line `index: 0xADDRESS/LENGTH`, or `index: <none>`. Kernel memory that is lent to a ring stands at address 0.
fn slot(line: &str) -> Option<(u32, Option<Range<u64>>)> {
    let (index, what) = line.split_once(':')?;
    let index = index.trim().parse().ok()?;
    let Some((address, length)) = what.trim().strip_prefix("0x").and_then(|what| what.split_once('/')) else {
        return Some((index, None));
    };
    let (start, length) = (u64::from_str_radix(address, 16).ok()?, length.parse::<u64>().ok()?);
    let end = start.checked_add(length)?.checked_next_multiple_of(4096)?;
    Some((index, Some(start & !4095..end).filter(|_| start != 0 && length != 0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Linux 6.18: one buffer on whole pages, an empty slot, one at an odd address.
    const LINUX_6_18: &str = "pos:\t0\nflags:\t02000002\nmnt_id:\t17\nino:\t4722890\nSqMask:\t0x3\nSqHead:\t0\nSqTail:\t0\n\
        CachedSqHead:\t0\nCqMask:\t0x7\nCqHead:\t0\nCqTail:\t0\nCachedCqTail:\t0\nSQEs:\t0\nCQEs:\t0\nSqThread:\t-1\n\
        SqThreadCpu:\t-1\nSqTotalTime:\t0\nSqWorkTime:\t0\nUserFiles:\t0\nUserBufs:\t3\n    0: 0x7f2c4e601000/8192\n    \
        1: <none>\n    2: 0x7f2c4ea00064/1048576\nPollList:\nCqOverflowList:\nNAPI:\tdisabled\n";
    /// Linux 5.15 prints registered files in the same way, and an empty slot as a buffer of nothing.
    const LINUX_5_15: &str = "pos:\t0\nflags:\t02000002\nmnt_id:\t15\nino:\t2076\nSqThread:\t-1\nSqThreadCpu:\t-1\n\
        UserFiles:\t2\n    0: data.img\n    1: <none>\nUserBufs:\t2\n    0: 0x7fb3c8000000/4096\n    1: 0x0/0\nPollList:\n";
    /// A ring that was at work when it was asked.
    const BUSY: &str = "SqThread:\t-1\nUserFiles:\t1\nUserBufs:\t2\nPollList:\nCqOverflowList:\n";

    fn buffer(ring: u32, index: u32, range: Range<u64>) -> RingBuffer {
        RingBuffer { ring, index, range }
    }

    #[test]
    fn buffers_are_found_by_address_and_length_rounded_to_pages() {
        let all = parse(3, LINUX_6_18).unwrap();
        let (first, second) = (0x7f2c_4e60_1000..0x7f2c_4e60_3000, 0x7f2c_4ea0_0000..0x7f2c_4eb0_1000);
        assert_eq!(all, [buffer(3, 0, first), buffer(3, 2, second)]);
    }

    #[test]
    fn files_are_not_taken_for_buffers_and_empty_slots_hold_nothing() {
        assert_eq!(parse(9, LINUX_5_15).unwrap(), [buffer(9, 0, 0x7fb3_c800_0000..0x7fb3_c800_1000)]);
    }

    #[test]
    fn a_ring_that_does_not_list_its_buffers_is_asked_again() {
        assert_eq!(parse(3, BUSY), None);
    }

    #[test]
    fn a_ring_without_buffers_and_a_kernel_without_such_lines_have_none() {
        assert_eq!(parse(3, "UserFiles:\t0\nUserBufs:\t0\nPollList:\n"), Some(Vec::new()));
        assert_eq!(parse(3, "pos:\t0\nflags:\t02\n"), Some(Vec::new()));
        assert_eq!(parse(3, ""), Some(Vec::new()));
    }

    #[test]
    fn memory_that_the_kernel_lent_to_a_ring_is_nobodys() {
        assert_eq!(parse(3, "UserBufs:\t1\n    0: 0x0/65536\nPollList:\n"), Some(Vec::new()));
    }

    #[test]
    fn lines_that_make_no_sense_are_never_half_understood() {
        for bad in
            ["UserBufs:\tmany\n", "UserBufs:\t1\n    0: 0xffffffffffffffff/8192\n", "UserBufs:\t1\n    0: 0xzz/1\n"]
        {
            assert_eq!(parse(3, bad), None, "{bad}");
        }
    }
}

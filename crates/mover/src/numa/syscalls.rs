//! The kernel's calls for memory policy, and nothing else: the only unsafe code of `numa`.
//!
//! None of them changes what memory holds, nor whether it may be read or written: they say from which node pages come,
//! and move pages behind the addresses at which they stay. So a wrong address is an error of the kernel's (EFAULT), not
//! undefined behaviour, and these functions are safe to call.
//!
//! Constants: `include/uapi/linux/mempolicy.h`; nodes are counted as in `mm/mempolicy.c` (`get_nodes`), which takes one
//! more than the number of bits.

#![allow(unsafe_code)]

use super::mask::{MASK_BITS, NodeMask};
use rustix::io::Errno;
use std::ffi::{c_int, c_long, c_ulong, c_void};
use std::ptr;

/// `MPOL_DEFAULT`: pages come from where the process's own policy says; without a mask.
pub(super) const DEFAULT: c_int = 0;
/// `MPOL_BIND`: pages come from the nodes of the mask, or not at all.
pub(super) const BIND: c_int = 2;
/// `MPOL_F_STATIC_NODES`: a change of the process's cpuset does not turn the nodes of the mask into others.
pub(super) const STATIC_NODES: c_int = 1 << 15;
/// `MPOL_MF_MOVE`: move the pages that are elsewhere, if this process alone has them.
pub(super) const MOVE: c_int = 1 << 1;
/// `MPOL_F_ADDR` of `get_mempolicy`: the policy at an address.
const AT_ADDRESS: c_long = 1 << 1;
/// `MPOL_F_MEMS_ALLOWED` of `get_mempolicy`: the nodes that the process may have at all.
const MEMS_ALLOWED: c_long = 1 << 2;

const _: () = assert!(BIND == libc::MPOL_BIND && STATIC_NODES == libc::MPOL_F_STATIC_NODES);
const _: () = assert!(size_of::<NodeMask>() * 8 == MASK_BITS && MASK_BITS.is_multiple_of(c_ulong::BITS as usize));
#[cfg(target_arch = "x86_64")]
const _: () = assert!(
    libc::SYS_mbind == 237
        && libc::SYS_get_mempolicy == 239
        && libc::SYS_migrate_pages == 256
        && libc::SYS_move_pages == 279
);

/// What the kernel is told about the size of a mask.
const MAX_NODE: usize = MASK_BITS + 1;

/// Sets the policy of `bytes` from `start`, and moves pages if `flags` says so.
pub(super) fn mbind(start: usize, bytes: usize, mode: c_int, nodes: &NodeMask, flags: c_int) -> Result<(), Errno> {
    // SAFETY: the kernel reads `MASK_BITS` bits from the mask, which has as many (asserted above), and dereferences
    // `start` in no other way than through its own page tables; what the memory holds stays as it is.
    result(unsafe {
        libc::syscall(
            libc::SYS_mbind,
            start,
            bytes,
            c_long::from(mode),
            ptr::from_ref(nodes),
            MAX_NODE,
            c_long::from(flags),
        )
    })?;
    Ok(())
}

/// The policy at an address: its mode with the flags of the mode, and its nodes.
pub(super) fn policy_at(address: usize) -> Result<(c_int, NodeMask), Errno> {
    let (mut mode, mut nodes): (c_int, NodeMask) = (0, NodeMask::default());
    // SAFETY: the kernel writes one int and `MASK_BITS` bits, into a variable and a mask that have them and that nobody
    // else knows; the address is looked up, not dereferenced.
    result(unsafe {
        libc::syscall(
            libc::SYS_get_mempolicy,
            ptr::from_mut(&mut mode),
            ptr::from_mut(&mut nodes),
            MAX_NODE,
            address,
            AT_ADDRESS,
        )
    })?;
    Ok((mode, nodes))
}

/// The nodes that this process may have memory of: those that have some and that its cpuset grants.
pub(super) fn allowed() -> Result<NodeMask, Errno> {
    let mut nodes = NodeMask::default();
    // SAFETY: as in `policy_at`; for no mode, and no address, the kernel takes null.
    result(unsafe {
        libc::syscall(
            libc::SYS_get_mempolicy,
            ptr::null_mut::<c_int>(),
            ptr::from_mut(&mut nodes),
            MAX_NODE,
            0_usize,
            MEMS_ALLOWED,
        )
    })?;
    Ok(nodes)
}

/// Says of each page of this process in `pages` on which node it is: `status` gets its number, or a negated errno.
pub(super) fn query_pages(pages: &[*mut c_void], status: &mut [c_int]) -> Result<(), Errno> {
    move_pages(pages, ptr::null(), status).map(drop)
}

/// Moves each page of this process in `pages` to the node in the same place of `nodes`. `status` gets what became of it;
/// where the kernel gives up midway, the rest of `status` is left as it was. Returns how many it did not move, as far as
/// it says.
pub(super) fn place_pages(pages: &[*mut c_void], nodes: &[c_int], status: &mut [c_int]) -> Result<u64, Errno> {
    assert_eq!(pages.len(), nodes.len(), "a node for each page");
    move_pages(pages, nodes.as_ptr(), status)
}

fn move_pages(pages: &[*mut c_void], nodes: *const c_int, status: &mut [c_int]) -> Result<u64, Errno> {
    assert_eq!(pages.len(), status.len(), "a place for the answer about each page");
    const THIS_PROCESS: c_long = 0;
    // SAFETY: the kernel reads `pages.len()` addresses (and as many nodes, unless null: the callers see to that) and
    // writes as many answers, for which there is room (asserted above). The addresses themselves are looked up only.
    result(unsafe {
        libc::syscall(
            libc::SYS_move_pages,
            THIS_PROCESS,
            pages.len(),
            pages.as_ptr(),
            nodes,
            status.as_mut_ptr(),
            c_long::from(MOVE),
        )
    })
}

/// Moves all pages of a process that lie on nodes of `from` to nodes of `to`. Returns how many would not move.
pub(super) fn migrate_pages(process: rustix::process::Pid, from: &NodeMask, to: &NodeMask) -> Result<u64, Errno> {
    // SAFETY: the kernel reads `MASK_BITS` bits from each of two masks that have as many (asserted above).
    result(unsafe {
        libc::syscall(
            libc::SYS_migrate_pages,
            c_long::from(process.as_raw_nonzero().get()),
            MAX_NODE,
            ptr::from_ref(from),
            ptr::from_ref(to),
        )
    })
}

/// What a call returned, or why it failed.
fn result(returned: c_long) -> Result<u64, Errno> {
    u64::try_from(returned).map_err(|_| Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
}

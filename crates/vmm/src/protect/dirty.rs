//! Which pages of a guest have been written: by its vCPUs, as KVM logs it, and by this process.
//!
//! The log is cleared by us, not by being read (`KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2`): reading it costs a copy of the bitmap,
//! clearing it protects the pages whose bits are cleared, and no others (Documentation/virt/kvm/api.rst). It begins with every
//! bit set and nothing protected, so that turning it on does not stop the guest.

use crate::error::{Error, Result};
use crate::memory::GuestRam;
use kvm_bindings::{
    KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, KVM_MEM_LOG_DIRTY_PAGES, kvm_clear_dirty_log, kvm_clear_dirty_log__bindgen_ty_1,
    kvm_dirty_log, kvm_dirty_log__bindgen_ty_1, kvm_enable_cap,
};
use kvm_ioctls::VmFd;
use nil_pool::LOG_PAGE;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

/// `_IOW(KVMIO, 0x42, struct kvm_dirty_log)`; kvm-ioctls allocates at every call.
const KVM_GET_DIRTY_LOG: libc::c_ulong = 0x4010_AE42;
/// `_IOWR(KVMIO, 0xc0, struct kvm_clear_dirty_log)`
const KVM_CLEAR_DIRTY_LOG: libc::c_ulong = 0xC018_AEC0;
const _: () = assert!(size_of::<kvm_dirty_log>() == 0x10 && size_of::<kvm_clear_dirty_log>() == 0x18);

/// `KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET`
const MANUAL: u64 = 1 | 2;
/// Pages whose bits are cleared by one call while the guest runs: its faults wait meanwhile.
const AT_ONCE: u64 = 4096;

/// The dirty log of a guest's memory; turned off on drop.
pub(super) struct DirtyLog {
    vm: Arc<VmFd>,
    ram: Arc<GuestRam>,
    slots: Vec<SlotLog>,
}

/// That of one slot.
struct SlotLog {
    slot: u32,
    /// The page of the guest's memory with which it begins.
    first: u64,
    pages: u64,
    bitmap: Vec<u64>,
    /// Pages that are not protected once they have been written: they count as written until they are protected again.
    open: Vec<u64>,
}

impl DirtyLog {
    /// Begins to log. Every page counts as written.
    pub(super) fn begin(vm: &Arc<VmFd>, ram: &Arc<GuestRam>) -> Result<Self> {
        let cap =
            kvm_enable_cap { cap: KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, args: [MANUAL, 0, 0, 0], ..Default::default() };
        vm.enable_cap(&cap).map_err(Error::kvm("KVM_ENABLE_CAP(KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2)"))?;
        let mut first = 0;
        let slots = ram.slots().map(|(slot, bytes)| {
            let pages = bytes / LOG_PAGE as u64;
            let words = usize::try_from(pages.div_ceil(64)).unwrap_or(usize::MAX);
            let log = SlotLog { slot, first, pages, bitmap: vec![0; words], open: vec![0; words] };
            first += pages;
            log
        });
        let log = Self { vm: Arc::clone(vm), ram: Arc::clone(ram), slots: slots.collect() };
        log.ram.set_flags(vm, KVM_MEM_LOG_DIRTY_PAGES)?;
        Ok(log)
    }

    /// How many pages there are.
    pub(super) fn pages(&self) -> u64 {
        self.slots.last().map_or(0, |slot| slot.first + slot.pages)
    }

    /// Protects a part of the memory, whether it was written or not: pages `from` up to `to`, multiples of 64.
    pub(super) fn protect(&mut self, from: u64, to: u64) -> Result<()> {
        for log in &mut self.slots {
            let (from, to) = (from.max(log.first), to.min(log.first + log.pages));
            if from < to {
                log.bitmap.fill(u64::MAX);
                log.clear(&self.vm, from - log.first, to - log.first)?;
            }
        }
        Ok(())
    }

    /// Leaves these pages open, and no others, from when they are written next.
    pub(super) fn leave_open(&mut self, pages: impl Iterator<Item = u64>) {
        self.slots.iter_mut().for_each(|log| log.open.fill(0));
        for page in pages {
            let slot = self.slots.partition_point(|log| log.first + log.pages <= page);
            if let Some(log) = self.slots.get_mut(slot) {
                let bit = page - log.first;
                if let Some(word) = usize::try_from(bit / 64).ok().and_then(|word| log.open.get_mut(word)) {
                    *word |= 1 << (bit % 64);
                }
            }
        }
    }

    /// How many pages vCPUs have written since they were last protected, without those that are left open.
    pub(super) fn count(&mut self) -> Result<u64> {
        let mut pages = 0;
        for log in &mut self.slots {
            log.read(&self.vm)?;
            pages += log.protected_words().map(|word| u64::from(word.count_ones())).sum::<u64>();
        }
        Ok(pages)
    }

    /// Takes the pages that vCPUs have written since they were last protected, and protects them again: they are to be copied
    /// after this. In parts if the guest runs, each of which is told when it is protected. Pages that are left open are told
    /// when it stands still, and not protected.
    pub(super) fn take(&mut self, stands_still: bool, mut written: impl FnMut(u64)) -> Result<()> {
        for log in &mut self.slots {
            log.read(&self.vm)?;
            let mut open_written = |page| {
                if stands_still {
                    written(page);
                }
            };
            let Some((begin, end)) = log.leave_out_open(&mut open_written) else { continue };
            let step = if stands_still { end } else { AT_ONCE };
            let mut from = begin;
            while from < end {
                let to = (from + step).min(end);
                if log.words(from, to).iter().any(|word| *word != 0) {
                    log.clear(&self.vm, from, to)?;
                    log.tell(from, to, &mut written);
                }
                from = to;
            }
        }
        Ok(())
    }
}

impl Drop for DirtyLog {
    fn drop(&mut self) {
        // A log that stays on costs the guest time, and nothing else.
        if let Err(error) = self.ram.set_flags(&self.vm, 0) {
            debug_assert!(false, "the dirty log cannot be turned off: {error}");
        }
    }
}

impl SlotLog {
    fn words(&self, from: u64, to: u64) -> &[u64] {
        let index = |page: u64| usize::try_from(page).unwrap_or(usize::MAX);
        &self.bitmap[index(from / 64)..index(to.div_ceil(64))]
    }

    /// The bits of the pages that are not left open.
    fn protected_words(&self) -> impl Iterator<Item = u64> + '_ {
        self.bitmap.iter().zip(&self.open).map(|(word, open)| word & !open)
    }

    /// Takes the pages that are left open out of the bitmap, and tells those that have been written. From which page up to
    /// which there is something in it then.
    fn leave_out_open(&mut self, written: &mut impl FnMut(u64)) -> Option<(u64, u64)> {
        let mut part = None;
        for (index, (word, open)) in (0..).zip(self.bitmap.iter_mut().zip(&self.open)) {
            if *word == 0 {
                continue;
            }
            tell_word(self.first + index * 64, *word & open, written);
            *word &= !open;
            if *word != 0 {
                let (begin, _) = *part.get_or_insert((index, index));
                part = Some((begin, index));
            }
        }
        part.map(|(begin, last): (u64, u64)| (begin * 64, ((last + 1) * 64).min(self.pages)))
    }

    fn read(&mut self, vm: &VmFd) -> Result<()> {
        let dirty_bitmap = self.bitmap.as_mut_ptr().cast();
        let log = kvm_dirty_log {
            slot: self.slot,
            padding1: 0,
            __bindgen_anon_1: kvm_dirty_log__bindgen_ty_1 { dirty_bitmap },
        };
        // SAFETY: the fd is a VM's, and the bitmap is alive and has a bit for each page of the slot, rounded up to words.
        let result = unsafe { libc::ioctl(vm.as_raw_fd(), KVM_GET_DIRTY_LOG, &raw const log) };
        done("KVM_GET_DIRTY_LOG", result)
    }

    /// Clears the bits that are set in the bitmap, of pages `from` (a multiple of 64) up to `to`.
    fn clear(&mut self, vm: &VmFd, from: u64, to: u64) -> Result<()> {
        let dirty_bitmap = self.words(from, to).as_ptr().cast_mut().cast();
        let log = kvm_clear_dirty_log {
            slot: self.slot,
            num_pages: u32::try_from(to - from).unwrap_or(u32::MAX),
            first_page: from,
            __bindgen_anon_1: kvm_clear_dirty_log__bindgen_ty_1 { dirty_bitmap },
        };
        // SAFETY: the fd is a VM's; the bitmap has a bit for each of these pages, and KVM only reads it.
        let result = unsafe { libc::ioctl(vm.as_raw_fd(), KVM_CLEAR_DIRTY_LOG, &raw const log) };
        done("KVM_CLEAR_DIRTY_LOG", result)
    }

    fn tell(&self, from: u64, to: u64, written: &mut impl FnMut(u64)) {
        for (index, &word) in (from / 64..).zip(self.words(from, to)) {
            tell_word(self.first + index * 64, word, written);
        }
    }
}

/// The pages whose bits are set, of which the lowest is `first`.
fn tell_word(first: u64, word: u64, written: &mut impl FnMut(u64)) {
    let mut left = word;
    while left != 0 {
        written(first + u64::from(left.trailing_zeros()));
        left &= left - 1;
    }
}

fn done(ioctl: &'static str, result: libc::c_int) -> Result<()> {
    if result == 0 { Ok(()) } else { Err(Error::Kvm { ioctl, source: io::Error::last_os_error() }) }
}

//! The time stamp counter: the one clock that costs no system call and that both sides of a handoff on one machine share.

/// The present value of this CPU's time stamp counter.
#[inline]
#[must_use]
#[allow(unsafe_code, reason = "the intrinsic is declared unsafe")]
pub fn now() -> u64 {
    // SAFETY: RDTSC reads a counter into registers and touches no memory. It faults only where CR4.TSD is set for user
    // space, which Linux does only for a process that asked for it by prctl(PR_SET_TSC); nil does not.
    unsafe { core::arch::x86_64::_rdtsc() }
}

//! What a guest does when it finds a bug in itself.

use crate::boot::control;
use crate::run::halt;
use crate::serial::Serial;
use core::fmt::Write;
use core::panic::PanicInfo;
use core::sync::atomic::Ordering;
use nil_guest_abi::layout::EXIT_PANICKED;
use nil_guest_abi::{ErrorKind, GuestState};

/// Says so, records it as an error of vCPU 0 and stops. Which vCPU it was does not matter: no guest panics on purpose.
#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    let line = info.location().map_or(0, |location| u64::from(location.line()));
    control().vcpu[0].record_error(ErrorKind::Panic, 0, 0, line);
    control().state.store(GuestState::Panicked as u32, Ordering::Release);
    // The serial port never fails.
    let _ = writeln!(Serial, "nil guest: {info}");
    halt(EXIT_PANICKED)
}

//! The first serial port, for the one line that a guest says.

use crate::cpu::out;
use core::fmt;
use nil_guest_abi::layout::SERIAL_PORT;

/// Writes to the serial port; nobody is asked whether it is ready.
pub(crate) struct Serial;

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| out(SERIAL_PORT, byte));
        Ok(())
    }
}

//! The first serial port: what a guest says of itself when it boots, and the turns that it counts aloud.

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

/// Says a number: `#`, sixteen hexadecimal digits, the end of the line. So a line that was cut in two is known for one.
pub(crate) fn say(number: u64) {
    out(SERIAL_PORT, b'#');
    for digit in (0..16).rev() {
        out(SERIAL_PORT, b"0123456789abcdef"[(number >> (digit * 4)) as usize & 0xF]);
    }
    out(SERIAL_PORT, b'\n');
}

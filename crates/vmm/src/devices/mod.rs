//! The devices on the port bus: a serial console, an exit port, a port to rest at. Ports that nothing answers read as all ones.
//!
//! Devices are plain data behind one lock of this process; while a guest is frozen no vCPU can touch them, so they are
//! saved by whichever vCPU thread stops last. (PCI and virtio come with Linux guests.)

mod serial;

use nil_guest_abi::layout::{LONGEST_REST_US, REST_PORT};
pub use serial::Console;
pub(crate) use serial::SerialPort;
use std::time::Duration;

/// First port of the serial console (COM1).
const COM1: u16 = 0x3F8;
/// Writing a byte here stops the guest with that code (as QEMU's isa-debug-exit does at the same port).
const EXIT_PORT: u16 = 0xF4;

/// What a port access asks of the vCPU thread.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum PortAction {
    /// Go on.
    Continue,
    /// The guest has asked to be stopped.
    Exit(u8),
    /// The guest has nothing to do for that long.
    Rest(Duration),
}

/// The device model of one machine.
#[derive(Debug)]
pub(crate) struct Devices {
    pub(crate) serial: SerialPort,
}

impl Devices {
    pub(crate) fn new(serial: SerialPort) -> Self {
        Self { serial }
    }

    /// The guest has written `data` to `port`.
    pub(crate) fn port_out(&mut self, port: u16, data: &[u8]) -> PortAction {
        match (port, data) {
            (COM1..=0x3FF, [byte]) => self.serial.write(offset(port), *byte),
            (EXIT_PORT, [code, ..]) => return PortAction::Exit(*code),
            (REST_PORT, &[a, b, c, d]) => {
                let microseconds = u32::from_le_bytes([a, b, c, d]).min(LONGEST_REST_US);
                return PortAction::Rest(Duration::from_micros(microseconds.into()));
            }
            _ => {}
        }
        PortAction::Continue
    }

    /// The guest reads `port`.
    pub(crate) fn port_in(&mut self, port: u16, data: &mut [u8]) {
        match (port, data) {
            (COM1..=0x3FF, [byte]) => *byte = self.serial.read(offset(port)),
            (_, data) => data.fill(0xFF),
        }
    }
}

/// Register of the serial port behind `port`.
fn offset(port: u16) -> u8 {
    u8::try_from(port - COM1).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn devices() -> (Devices, Console) {
        let console = Console::default();
        (Devices::new(SerialPort::new(console.clone(), None)), console)
    }

    #[test]
    fn what_the_guest_writes_to_com1_appears_on_the_console() {
        let (mut devices, console) = devices();
        for byte in b"hello" {
            assert_eq!(devices.port_out(COM1, &[*byte]), PortAction::Continue);
        }
        assert_eq!(console.read_from(0), (b"hello".to_vec(), 5));
    }

    #[test]
    fn a_write_to_the_exit_port_stops_the_guest_with_its_code() {
        assert_eq!(devices().0.port_out(EXIT_PORT, &[7]), PortAction::Exit(7));
    }

    #[test]
    fn a_guest_rests_for_as_long_as_it_says_and_never_for_long() {
        let rest = |microseconds: u32| devices().0.port_out(REST_PORT, &microseconds.to_le_bytes());
        assert_eq!(rest(20_000), PortAction::Rest(Duration::from_millis(20)));
        assert_eq!(rest(u32::MAX), PortAction::Rest(Duration::from_secs(1)));
        assert_eq!(devices().0.port_out(REST_PORT, &[7]), PortAction::Continue, "a byte is no time");
    }

    #[test]
    fn a_port_that_nothing_answers_reads_as_all_ones() {
        let mut data = [0; 4];
        devices().0.port_in(0x80, &mut data);
        assert_eq!(data, [0xFF; 4]);
    }
}

//! A 16550 serial port (vm-superio), whose output is kept as the guest's console.

use crate::error::{Error, Result};
use crate::state::{self, Kind};
use nil_pool::{SectionWriter, Sections};
use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vm_superio::serial::{NoEvents, SerialState};
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

/// How much console output is kept; older bytes are dropped.
const KEPT: usize = 64 << 10;

/// The last 64 KiB that the guest wrote to its console, and how many bytes it wrote in all.
#[derive(Clone, Debug, Default)]
pub struct Console(Arc<Mutex<Output>>);

#[derive(Debug, Default)]
struct Output {
    kept: VecDeque<u8>,
    written: u64,
    /// So many bytes are shown; all of them, if nothing is held.
    shown: Option<u64>,
}

impl Console {
    /// From now on what is written is shown only once it is released.
    pub(crate) fn hold(&self) {
        let mut output = self.output();
        output.shown = Some(output.written);
    }

    /// How many bytes have been written.
    pub(crate) fn said(&self) -> u64 {
        self.output().written
    }

    /// Releases the first so many bytes ever written, if output is held.
    pub(crate) fn show_up_to(&self, said: u64) {
        let mut output = self.output();
        output.shown = output.shown.map(|shown| shown.max(said));
    }

    /// Releases everything, and holds nothing any more.
    pub(crate) fn show_all(&self) {
        self.output().shown = None;
    }

    fn output(&self) -> MutexGuard<'_, Output> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the guest wrote from byte number `from` on (as far as it is still kept), and the number to go on from.
    #[must_use]
    pub fn read_from(&self, from: u64) -> (Vec<u8>, u64) {
        let output = self.output();
        let oldest = output.written - output.kept.len() as u64;
        let end = output.shown.unwrap_or(output.written).max(oldest);
        let begin = from.clamp(oldest, end);
        let place = |at: u64| usize::try_from(at - oldest).unwrap_or(usize::MAX);
        (output.kept.iter().take(place(end)).skip(place(begin)).copied().collect(), end)
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut output = self.output();
        output.kept.extend(bytes);
        output.written += bytes.len() as u64;
        let surplus = output.kept.len().saturating_sub(KEPT);
        output.kept.drain(..surplus);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The port's interrupt line; not connected without an irqchip.
#[derive(Debug)]
pub(crate) struct Line(Option<EventFd>);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.as_ref().map_or(Ok(()), |line| line.write(1))
    }
}

/// The registers that travel, in this order, followed by the bytes that wait to be read by the guest.
const REGISTERS: usize = 9;

/// The serial port.
#[derive(Debug)]
pub(crate) struct SerialPort {
    port: Serial<Line, NoEvents, Console>,
}

impl SerialPort {
    pub(crate) fn new(console: Console, line: Option<EventFd>) -> Self {
        Self { port: Serial::new(Line(line), console) }
    }

    pub(crate) fn write(&mut self, register: u8, value: u8) {
        // The only possible failures are those of the interrupt's eventfd (whose counter cannot overflow: KVM reads it)
        // and of the console (which has none).
        let _ = self.port.write(register, value);
    }

    pub(crate) fn read(&mut self, register: u8) -> u8 {
        self.port.read(register)
    }

    pub(crate) fn save(&self, out: &mut SectionWriter<'_>) -> Result<()> {
        let state = self.port.state();
        let mut bytes = [0; REGISTERS + 64];
        bytes[..REGISTERS].copy_from_slice(&[
            state.baud_divisor_low,
            state.baud_divisor_high,
            state.interrupt_enable,
            state.interrupt_identification,
            state.line_control,
            state.line_status,
            state.modem_control,
            state.modem_status,
            state.scratch,
        ]);
        let waiting = state.in_buffer.len().min(64);
        bytes[REGISTERS..REGISTERS + waiting].copy_from_slice(&state.in_buffer[..waiting]);
        state::put(out, Kind::Serial, 0, &bytes[..REGISTERS + waiting])
    }

    pub(crate) fn load(&mut self, sections: &Sections<'_>) -> Result<()> {
        let payload = state::bytes(sections, "machine area", Kind::Serial, 0)?;
        let bad = |found| Error::BadSection { section: Kind::Serial.name(), version: 1, found, expected: REGISTERS };
        let (registers, waiting) = payload.split_at_checked(REGISTERS).ok_or_else(|| bad(payload.len()))?;
        let state = SerialState {
            baud_divisor_low: registers[0],
            baud_divisor_high: registers[1],
            interrupt_enable: registers[2],
            interrupt_identification: registers[3],
            line_control: registers[4],
            line_status: registers[5],
            modem_control: registers[6],
            modem_status: registers[7],
            scratch: registers[8],
            in_buffer: waiting.to_vec(),
        };
        let line = Line(match &self.port.interrupt_evt().0 {
            Some(line) => Some(line.try_clone().map_err(|source| Error::Kvm { ioctl: "dup(eventfd)", source })?),
            None => None,
        });
        let console = self.port.writer().clone();
        self.port = Serial::from_state(&state, line, NoEvents, console).map_err(|_| bad(payload.len()))?;
        Ok(())
    }
}

//! Pins of guests' memory: declared by devices and operators, and the holds by which parts are pulled back.

use super::Host;
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::message::WorkerRequest;
use crate::name::GuestName;
use crate::order::PinMemory;
use crate::report::PinReport;
use nil_mover::MoveRange;
use nil_pool::{GuestControl, Pin};
use std::time::Duration;

/// Who owns the pins by which parts of a guest's memory are held in DRAM.
pub(super) const HOLDER: &str = "nil recouple";
/// Why, if nobody has said.
const NO_REASON: &str = "pulled back by an operator";
/// How long a worker may take to write a pin down. It may have to wait for a chunk that is being moved.
const PATIENCE: Duration = Duration::from_secs(10);

impl Host {
    /// Declares memory of a guest pinned; returns the pin.
    pub(crate) fn pin(&self, order: &PinMemory) -> Result<PinReport> {
        let PinMemory { guest, range, owner, reason } = order;
        let entry = self.movable(guest)?;
        if owner == HOLDER {
            return Err(Error::refused(format!(
                "the owner {HOLDER} is for parts that are pulled back; use `nil recouple {guest} --range {range}`"
            )));
        }
        let bytes = layout(&entry.control)?.bytes_of(*range)?;
        let id = self.take_pin(guest, bytes, owner, reason)?;
        find_pin(&entry.control, &id)
    }

    /// All pins of a guest, wherever in the host's pools it is.
    pub(crate) fn pins(&self, guest: &GuestName) -> Result<Vec<PinReport>> {
        let entry = self.table.find(guest).ok_or_else(|| self.unknown_guest(guest))?;
        let layout = layout(&entry.control)?;
        let pins = entry.control.map_state()?.pins().list();
        Ok(pins.into_iter().map(|pin| pin_report(&entry.control, &layout, pin)).collect())
    }

    /// Ends a pin.
    pub(crate) fn release_pin(&self, guest: &GuestName, pin: &str) -> Result<()> {
        let entry = self.movable(guest)?;
        let found = find_pin(&entry.control, pin)?;
        self.order(guest, &WorkerRequest::ReleasePin { pin: found.id }, PATIENCE).map(|_| ())
    }

    fn take_pin(&self, guest: &GuestName, range: MoveRange, owner: &str, reason: &str) -> Result<String> {
        let request = WorkerRequest::Pin { range, owner: owner.to_owned(), reason: reason.to_owned() };
        match self.order(guest, &request, PATIENCE)? {
            crate::message::WorkerReply::Pinned(id) => Ok(id),
            other => Err(Error::refused(format!("the worker of guest {guest} said {other:?} when it was to pin"))),
        }
    }

    /// Holds a part in DRAM, unless it is held already.
    pub(super) fn hold(
        &self,
        guest: &GuestName,
        control: &GuestControl,
        range: MoveRange,
        reason: Option<&str>,
    ) -> Result<()> {
        if holds(control)?.iter().any(|hold| is_on(hold, range)) {
            return Ok(());
        }
        let id = self.take_pin(guest, range, HOLDER, reason.unwrap_or(NO_REASON))?;
        tracing::info!("guest {guest}: {} MiB of its memory are held ({id})", range.bytes >> 20);
        Ok(())
    }

    /// Lifts the holds on exactly that part; `None` is all memory. Returns what was lifted, in sentences.
    pub(super) fn lift_holds(
        &self,
        guest: &GuestName,
        control: &GuestControl,
        range: Option<MoveRange>,
    ) -> Result<Vec<String>> {
        let all = MoveRange { offset: 0, bytes: control.config()?.memory_bytes };
        self.lift_holds_where(guest, control, |hold| is_on(hold, range.unwrap_or(all)))
    }

    /// Lifts the holds that are meant. Returns what was lifted, in sentences.
    pub(super) fn lift_holds_where(
        &self,
        guest: &GuestName,
        control: &GuestControl,
        is_meant: impl Fn(&Pin) -> bool,
    ) -> Result<Vec<String>> {
        let layout = layout(control)?;
        let mut lifted = Vec::new();
        for hold in holds(control)?.into_iter().filter(is_meant) {
            self.order(guest, &WorkerRequest::ReleasePin { pin: hold.id.to_string() }, PATIENCE)?;
            let part = layout.range_at(hold.offset, hold.bytes);
            lifted.push(format!("the hold on {part} is lifted ({})", hold.reason));
        }
        Ok(lifted)
    }
}

fn find_pin(control: &GuestControl, id: &str) -> Result<PinReport> {
    let layout = layout(control)?;
    let pins = control.map_state()?.pins().list();
    let found = pins.into_iter().find(|pin| pin.id.to_string() == id);
    found
        .map(|pin| pin_report(control, &layout, pin))
        .ok_or_else(|| Error::Unknown(format!("there is no pin {id}; `nil pin list` shows those that there are")))
}

/// Where the guest has its memory.
pub(super) fn layout(control: &GuestControl) -> Result<Layout> {
    Ok(Layout::of_vm(control.config()?.memory_bytes))
}

/// The parts of a guest's memory that are held.
fn holds(control: &GuestControl) -> Result<Vec<Pin>> {
    let mut pins = control.map_state()?.pins().list();
    pins.retain(|pin| pin.owner == HOLDER);
    Ok(pins)
}

fn is_on(pin: &Pin, range: MoveRange) -> bool {
    (pin.offset, pin.bytes) == (range.offset, range.bytes)
}

fn pin_report(control: &GuestControl, layout: &Layout, pin: Pin) -> PinReport {
    PinReport {
        id: pin.id.to_string(),
        range: layout.range_at(pin.offset, pin.bytes),
        owner: pin.owner,
        reason: pin.reason,
        host: control.pool().host_name(pin.host),
    }
}

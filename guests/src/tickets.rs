//! Tickets by `lock xadd`.
//!
//! Every vCPU draws from one shared counter: its own tickets must strictly increase, and the counter must be the sum of
//! what all of them drew. It also increments a counter that no other vCPU touches and compares it with a copy that lives
//! in a register: if this very vCPU ever runs twice at the same time, both instances increment the counter, and each sees
//! at its next turn that it is not alone.

use core::sync::atomic::Ordering;
use nil_guest_abi::{ControlBlock, ErrorKind, VcpuBlock};

/// Tickets per slice.
const SLICE: u64 = 8;

/// One vCPU's tickets.
pub struct Tickets {
    control: &'static ControlBlock,
    vcpu: &'static VcpuBlock,
    next: u64,
    drawn: u64,
    private: u64,
}

impl Tickets {
    /// None drawn yet.
    #[must_use]
    pub fn new(control: &'static ControlBlock, vcpu: &'static VcpuBlock) -> Self {
        Self { control, vcpu, next: 0, drawn: 0, private: 0 }
    }

    /// Draws a few.
    pub fn slice(&mut self) {
        let mut private = self.private;
        for _ in 0..SLICE {
            let ticket = self.control.tickets.fetch_add(1, Ordering::AcqRel);
            if ticket < self.next {
                self.vcpu.record_error(ErrorKind::TicketRepeated, 0, self.next, ticket);
            }
            self.next = ticket.wrapping_add(1);
            let mine = self.vcpu.private_tickets.fetch_add(1, Ordering::AcqRel);
            if mine != private {
                self.vcpu.record_error(ErrorKind::Twin, 0, private, mine);
            }
            private = mine.wrapping_add(1);
        }
        self.private = private;
        self.drawn += SLICE;
        self.vcpu.tickets.store(self.drawn, Ordering::Release);
        self.vcpu.last_ticket.store(self.next.wrapping_sub(1), Ordering::Relaxed);
    }

    /// Compares the shared counter with the sum. Only to be called while every vCPU is parked.
    pub fn verify_sum(&self) {
        let drawn = self.control.vcpus().map(|vcpu| vcpu.tickets.load(Ordering::Acquire)).fold(0, u64::wrapping_add);
        let counter = self.control.tickets.load(Ordering::Acquire);
        if counter != drawn {
            self.vcpu.record_error(ErrorKind::TicketSum, 0, drawn, counter);
        }
    }
}

//! What a guest says of its own memory and registers, in words.

use nil_guest_abi::control::register;
use nil_guest_abi::{ControlBlock, ErrorKind, FirstError, VcpuBlock};
use serde::Serialize;
use std::sync::atomic::{AtomicU64, Ordering};

/// The guest's verdict.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct Verdict {
    /// Differences found.
    pub(crate) errors: u64,
    /// The first of them, as a sentence.
    pub(crate) first_error: Option<String>,
    /// Pages under test; a verification goes over each of them.
    pub(crate) pages: u64,
    /// Pages verified since boot, each time counted.
    pub(crate) page_checks: u64,
    /// Pages written since boot.
    pub(crate) pages_written: u64,
    /// Times that all registers were verified.
    pub(crate) register_rounds: u64,
}

impl Verdict {
    /// Reads it from the control block.
    pub(crate) fn of(block: &ControlBlock) -> Self {
        let sum = |field: fn(&VcpuBlock) -> &AtomicU64| {
            block.vcpus().map(|vcpu| field(vcpu).load(Ordering::Acquire)).fold(0, u64::saturating_add)
        };
        Self {
            errors: block.errors(),
            first_error: block.first_error().map(|(vcpu, error)| format!("vCPU {vcpu}: {}", describe(&error))),
            pages: sum(|vcpu| &vcpu.pages),
            page_checks: sum(|vcpu| &vcpu.pages_verified),
            pages_written: sum(|vcpu| &vcpu.pages_written),
            register_rounds: sum(|vcpu| &vcpu.register_rounds),
        }
    }

    /// Whether nothing differed.
    pub(crate) fn is_clean(&self) -> bool {
        self.errors == 0
    }
}

fn describe(error: &FirstError) -> String {
    let FirstError { kind, address, expected, found } = *error;
    let differs = format!("expected {expected:#x}, found {found:#x}");
    match kind {
        Ok(ErrorKind::PageLost) => format!("the page at {address:#x} is lost: it holds nothing ({differs})"),
        Ok(ErrorKind::PageMisplaced) => format!("the page at {address:#x} holds another page's contents ({differs})"),
        Ok(ErrorKind::PageStale) => format!("the page at {address:#x} is of the wrong generation ({differs})"),
        Ok(ErrorKind::PageTorn) => format!("the word at {address:#x} is not what was written ({differs})"),
        Ok(ErrorKind::PageChecksum) => format!("the checksum of the page at {address:#x} is wrong ({differs})"),
        Ok(ErrorKind::Register) => format!("register {} differs ({differs})", register_name(address)),
        Ok(ErrorKind::TscBackwards) => format!("its clock went backwards, from {expected} to {found}"),
        Ok(ErrorKind::TicketRepeated) => format!("it drew ticket {found} after ticket {expected}"),
        Ok(ErrorKind::TicketSum) => format!("the vCPUs drew {expected} tickets in all, and the counter says {found}"),
        Ok(ErrorKind::Twin) => format!("somebody else ran as this very vCPU ({differs})"),
        Ok(ErrorKind::Panic) => format!("the guest found a bug in itself (line {found})"),
        Ok(ErrorKind::HeardBackwards) => {
            format!("it heard {found:#x} from another guest after {expected:#x}: what that one had said was undone")
        }
        Err(kind) => format!("an error of the unknown kind {kind} at {address:#x} ({differs})"),
    }
}

fn register_name(number: u64) -> String {
    let general = usize::try_from(number).ok().and_then(|index| register::GENERAL_NAMES.get(index));
    match number {
        _ if general.is_some() => general.copied().unwrap_or_default().to_owned(),
        register::FLAGS => "rflags".into(),
        register::FS_BASE | register::FS_LOAD => "fs".into(),
        register::GS_BASE | register::GS_LOAD => "gs".into(),
        register::FCW => "the x87 control word".into(),
        register::FSW => "the x87 status word".into(),
        register::FTW => "the x87 tag word".into(),
        register::MXCSR => "mxcsr".into(),
        register::ST..48 => format!("st{}", (number - register::ST) / 2),
        register::XMM..96 => format!("xmm{}", (number - register::XMM) / 2),
        register::YMM_HIGH..128 => format!("ymm{} (upper half)", (number - register::YMM_HIGH) / 2),
        _ => format!("number {number}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(kind: Result<ErrorKind, u64>, address: u64) -> String {
        describe(&FirstError { kind, address, expected: 0x10, found: 0x1F })
    }

    #[test]
    fn an_error_names_the_thing_and_both_values() {
        assert_eq!(
            error(Ok(ErrorKind::PageTorn), 0x40_1008),
            "the word at 0x401008 is not what was written (expected 0x10, found 0x1f)"
        );
        assert_eq!(error(Ok(ErrorKind::Register), 65), "register xmm0 differs (expected 0x10, found 0x1f)");
        assert_eq!(error(Err(99), 0x40), "an error of the unknown kind 99 at 0x40 (expected 0x10, found 0x1f)");
    }

    #[test]
    fn registers_have_the_names_that_people_know() {
        let names = [(0, "rax"), (15, "r15"), (24, "mxcsr"), (47, "st7"), (95, "xmm15"), (127, "ymm15 (upper half)")];
        for (number, name) in names {
            assert_eq!(register_name(number), name);
        }
        assert_eq!(register_name(u64::MAX), format!("number {}", u64::MAX));
    }
}

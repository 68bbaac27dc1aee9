//! Reads the headers of an ELF executable.
//!
//! `linux_loader::loader::Elf` leaves to its caller what matters for an image from a stranger: it takes any machine and
//! class, neither checks segments against each other nor against a reserved range, and does not zero what lies behind a
//! segment's bytes. So the three structures are read here. Source: System V ABI, chapters 4 and 5; psABI for x86-64.

use crate::boot::image::{SEGMENTS, Segment};
use crate::boot::{Error, Result};

/// The first four bytes.
pub(crate) const MAGIC: &[u8] = b"\x7FELF";

const HEADER_BYTES: u64 = 64;
const PROGRAM_HEADER_BYTES: u16 = 56;
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const EXECUTABLE: u16 = 2;
const X86_64: u16 = 62;
const LOAD: u32 = 1;
const DYNAMIC: u32 = 2;
const INTERPRETER: u32 = 3;

/// The entry point and what is to be loaded where. Addresses are not yet checked against RAM or each other.
pub(crate) fn parse(image: &[u8]) -> Result<(u64, Vec<Segment<'_>>)> {
    let header = Header::read(image)?;
    let mut segments = Vec::new();
    for index in 0..u64::from(header.program_headers) {
        // At most 2^16 headers of 56 bytes behind a 64-bit offset.
        let at = header.program_header_offset.checked_add(index * u64::from(PROGRAM_HEADER_BYTES));
        let at = at.ok_or(truncated("program header", u64::MAX, image))?;
        let program = slice(image, at, u64::from(PROGRAM_HEADER_BYTES), "program header")?;
        match u32_at(program, 0) {
            LOAD => segments.extend(segment(image, program)?),
            DYNAMIC | INTERPRETER => return Err(Error::Dynamic),
            _ => {}
        }
    }
    if segments.is_empty() || segments.len() > SEGMENTS {
        return Err(Error::SegmentCount { found: segments.len() });
    }
    Ok((header.entry, segments))
}

/// What is needed of `Elf64_Ehdr`.
struct Header {
    entry: u64,
    program_header_offset: u64,
    program_headers: u16,
}

impl Header {
    fn read(image: &[u8]) -> Result<Self> {
        // The class decides how long the header is: look at it first.
        match image.get(4) {
            Some(&CLASS_64) | None => {}
            Some(_) => return Err(Error::NotElf64),
        }
        let header = slice(image, 0, HEADER_BYTES, "ELF header")?;
        if header[5] != LITTLE_ENDIAN {
            return Err(Error::BigEndian);
        }
        let machine = u16_at(header, 18);
        if machine != X86_64 {
            return Err(Error::OtherMachine { machine });
        }
        match u16_at(header, 16) {
            EXECUTABLE => {}
            1 => return Err(Error::NotExecutable { what: "an object file" }),
            3 => return Err(Error::NotExecutable { what: "position-independent" }),
            _ => return Err(Error::NotExecutable { what: "no executable" }),
        }
        let (size, program_headers) = (u16_at(header, 54), u16_at(header, 56));
        if program_headers != 0 && size != PROGRAM_HEADER_BYTES {
            return Err(Error::ProgramHeaderSize { found: size });
        }
        Ok(Self { entry: u64_at(header, 24), program_header_offset: u64_at(header, 32), program_headers })
    }
}

/// A segment from its `Elf64_Phdr`; none if it takes no memory.
fn segment<'a>(image: &'a [u8], program: &[u8]) -> Result<Option<Segment<'a>>> {
    let (offset, virtual_address, address) = (u64_at(program, 8), u64_at(program, 16), u64_at(program, 24));
    let (file, memory) = (u64_at(program, 32), u64_at(program, 40));
    if file > memory {
        return Err(Error::SegmentSize { address, file, memory });
    }
    if memory == 0 {
        return Ok(None);
    }
    if virtual_address != address {
        return Err(Error::NotIdentity { virtual_address, address });
    }
    Ok(Some(Segment { address, bytes: slice(image, offset, file, "segment")?, memory_bytes: memory }))
}

fn slice<'a>(image: &'a [u8], offset: u64, bytes: u64, what: &'static str) -> Result<&'a [u8]> {
    let end = offset.checked_add(bytes).ok_or(truncated(what, u64::MAX, image))?;
    let range = usize::try_from(offset).ok().zip(usize::try_from(end).ok());
    range.and_then(|(start, end)| image.get(start..end)).ok_or(truncated(what, end, image))
}

fn truncated(what: &'static str, end: u64, image: &[u8]) -> Error {
    Error::Truncated { what, end, len: image.len() as u64 }
}

/// The bytes at `offset` of a header whose length was checked.
fn array<const N: usize>(header: &[u8], offset: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&header[offset..offset + N]);
    bytes
}

fn u16_at(header: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes(array(header, offset))
}

fn u32_at(header: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(array(header, offset))
}

fn u64_at(header: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(array(header, offset))
}

//! What kind of image it is, and where its parts go.

use crate::boot::{Error, Result, elf};
use nil_guest_abi::layout::IMAGE;
use std::ops::Range;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Most segments of an image.
pub(crate) const SEGMENTS: usize = 64;

/// Bytes written at a time when memory is zeroed.
const ZEROS: [u8; 4096] = [0; 4096];

/// Kinds of image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ImageKind {
    /// A static 64-bit ELF executable for x86_64, linked at the physical addresses where it is to run.
    Elf64,
    /// 64-bit code without any header, loaded and entered at 2 MiB.
    Flat,
    /// A Linux kernel, to be started by the Linux boot protocol. Recognised, and refused.
    LinuxBzImage,
}

impl ImageKind {
    /// Tells by the magic numbers. What has none is a flat image.
    #[must_use]
    pub fn of(image: &[u8]) -> Self {
        // Documentation/arch/x86/boot.rst: "HdrS" at 0x202, behind the boot sector's signature.
        let is_bz_image = image.get(0x1FE..0x200) == Some(&[0x55, 0xAA]) && image.get(0x202..0x206) == Some(b"HdrS");
        if image.starts_with(elf::MAGIC) {
            Self::Elf64
        } else if is_bz_image {
            Self::LinuxBzImage
        } else {
            Self::Flat
        }
    }
}

/// A part of an image: `bytes` at `address`, and zeros behind it up to `memory_bytes`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Segment<'a> {
    pub(crate) address: u64,
    pub(crate) bytes: &'a [u8],
    pub(crate) memory_bytes: u64,
}

impl Segment<'_> {
    /// Guest-physical addresses that it takes. Only of segments whose end was checked.
    pub(crate) fn range(&self) -> Range<u64> {
        self.address..self.address + self.memory_bytes
    }
}

/// A validated image: every segment lies in RAM, above what the loader needs, and overlaps no other.
#[derive(Debug)]
pub(crate) struct Image<'a> {
    pub(crate) kind: ImageKind,
    pub(crate) entry: u64,
    segments: Vec<Segment<'a>>,
}

impl<'a> Image<'a> {
    /// Reads an image for a guest with this RAM. Pure: bytes in, a plan or a sentence out.
    pub(crate) fn parse(bytes: &'a [u8], ram: &[(u64, u64)]) -> Result<Self> {
        if bytes.is_empty() {
            return Err(Error::EmptyImage);
        }
        let kind = ImageKind::of(bytes);
        let (entry, segments) = match kind {
            ImageKind::Elf64 => elf::parse(bytes)?,
            ImageKind::Flat => (IMAGE, vec![Segment { address: IMAGE, bytes, memory_bytes: bytes.len() as u64 }]),
            ImageKind::LinuxBzImage => return Err(Error::LinuxBzImage),
        };
        for segment in &segments {
            check_place(segment, ram)?;
        }
        check_overlap(&segments)?;
        if !segments.iter().any(|segment| segment.range().contains(&entry)) {
            return Err(Error::EntryOutside { entry });
        }
        Ok(Self { kind, entry, segments })
    }

    /// Copies the segments into guest memory and zeroes what lies behind each.
    pub(crate) fn write(&self, memory: &GuestMemoryMmap) -> Result<()> {
        for segment in &self.segments {
            write(memory, segment.address, segment.bytes)?;
            let written = segment.bytes.len() as u64;
            zero(memory, segment.address + written, segment.memory_bytes - written)?;
        }
        Ok(())
    }
}

fn check_place(segment: &Segment<'_>, ram: &[(u64, u64)]) -> Result<()> {
    let Segment { address, memory_bytes: bytes, .. } = *segment;
    if address < IMAGE {
        return Err(Error::ReservedAddress { address });
    }
    let fits = |&(start, length): &(u64, u64)| {
        address >= start && address.checked_add(bytes).is_some_and(|end| end <= start + length)
    };
    if ram.iter().any(fits) { Ok(()) } else { Err(Error::OutsideRam { address, bytes }) }
}

fn check_overlap(segments: &[Segment<'_>]) -> Result<()> {
    let mut ranges: Vec<_> = segments.iter().map(Segment::range).collect();
    ranges.sort_by_key(|range| range.start);
    match ranges.windows(2).find(|pair| pair[0].end > pair[1].start) {
        Some(pair) => Err(Error::Overlap { first: pair[0].start, second: pair[1].start }),
        None => Ok(()),
    }
}

/// Writes to guest memory.
pub(crate) fn write(memory: &GuestMemoryMmap, address: u64, bytes: &[u8]) -> Result<()> {
    memory.write_slice(bytes, GuestAddress(address)).map_err(|source| Error::Memory { address, source })
}

/// Zeroes guest memory.
pub(crate) fn zero(memory: &GuestMemoryMmap, address: u64, bytes: u64) -> Result<()> {
    let mut done = 0;
    while done < bytes {
        let now = usize::try_from(bytes - done).map_or(ZEROS.len(), |left| left.min(ZEROS.len()));
        write(memory, address + done, &ZEROS[..now])?;
        done += now as u64;
    }
    Ok(())
}

//! The test guests that are built into the program (see `build.rs` and `guests/`).

/// Names and images, in the order of [`names`].
const IMAGES: [(&str, &[u8]); 6] = [
    ("demo", include_bytes!(concat!(env!("OUT_DIR"), "/demo"))),
    ("pages", include_bytes!(concat!(env!("OUT_DIR"), "/pages"))),
    ("registers", include_bytes!(concat!(env!("OUT_DIR"), "/registers"))),
    ("rest", include_bytes!(concat!(env!("OUT_DIR"), "/rest"))),
    ("tsc-gaps", include_bytes!(concat!(env!("OUT_DIR"), "/tsc-gaps"))),
    ("xadd", include_bytes!(concat!(env!("OUT_DIR"), "/xadd"))),
];

/// The image of a built-in guest.
#[must_use]
pub(crate) fn builtin(name: &str) -> Option<&'static [u8]> {
    IMAGES.iter().find(|(known, _)| *known == name).map(|(_, image)| *image)
}

/// The names of all built-in guests.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    IMAGES.iter().map(|(name, _)| *name)
}

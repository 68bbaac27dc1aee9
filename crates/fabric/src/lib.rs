//! The fabric: which hosts share which memory, over what; and the plans that follow from it.

#![forbid(unsafe_code)]

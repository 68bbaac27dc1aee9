//! Draws tickets from a counter that all vCPUs share, and from one that is its own.

#![no_std]
#![no_main]

nil_guests::program!(nil_guest_abi::Program::Xadd);

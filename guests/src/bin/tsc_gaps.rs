//! Does nothing but read the TSC, and records every pause.

#![no_std]
#![no_main]

nil_guests::program!(nil_guest_abi::Program::TscGaps);

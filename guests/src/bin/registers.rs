//! Fills every register that user code has and verifies them, with a new pattern each round.

#![no_std]
#![no_main]

nil_guests::program!(nil_guest_abi::Program::Registers);

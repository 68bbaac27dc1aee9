//! Dirties memory and verifies every word of it.

#![no_std]
#![no_main]

nil_guests::program!(nil_guest_abi::Program::Pages);

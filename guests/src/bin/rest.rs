//! Does what the demo does, a little at a time, and rests in between, so that many of it fit on one machine.

#![no_std]
#![no_main]

nil_guests::program!(nil_guest_abi::Program::Rest);

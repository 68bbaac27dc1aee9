//! Does all that the other guests do, in turn: pages, registers and tickets, with the gaps recorded in between.

#![no_std]
#![no_main]

nil_guests::program!(nil_guest_abi::Program::Demo);

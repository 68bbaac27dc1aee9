//! Drives a QEMU virtual machine over QMP: the peer that the benchmark measures nil against.

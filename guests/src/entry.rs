//! How a guest comes to life.
//!
//! ```text
//! nil     64-bit, CPL 3, IOPL 3, own stack ─────────────────────┐
//! QEMU    PVH: 32-bit, no paging ─ page tables ─ long mode ─ iretq ┴→ _start → guest_main(start info, vCPU, vCPUs)
//! ```
//!
//! The PVH entry builds what nil's loader builds (user-accessible identity map of 2 MiB pages, a GDT) and turns on SSE,
//! and AVX and FSGSBASE where the CPU has them. Its page tables have the accessed and dirty bits set and are never
//! written again, so they stay the same on every host. They map all that they have room for.

use core::arch::global_asm;
use nil_guest_abi::layout::{MAPPED_GIB, PAGE_TABLES, PVH_NOTE_TYPE, STACK_BYTES, STACKS, USER_CODE, USER_DATA};

global_asm!(
    // Xen's note, by which QEMU knows the 32-bit entry.
    ".pushsection .note.pvh, \"a\", @note",
    ".balign 4",
    ".long 4, 8, {note_type}",
    ".asciz \"Xen\"",
    ".quad pvh_start",
    ".popsection",
    //
    ".pushsection .text.boot, \"ax\"",
    ".code32",
    "pvh_start:",
    "cld",
    "mov esp, {stack_top}",
    "mov esi, ebx",
    // Page tables: one PML4 entry, MAPPED_GIB entries in the PDPT, 512 entries of 2 MiB in each directory.
    "mov edi, {page_tables}",
    "xor eax, eax",
    "mov ecx, 2 * 1024",
    "rep stosd",
    "mov dword ptr [{page_tables}], {page_tables} + 0x1067",
    "mov edi, {page_tables} + 0x1000",
    "mov eax, {page_tables} + 0x2067",
    "mov ecx, {mapped_gib}",
    "2:",
    "mov dword ptr [edi], eax",
    "add edi, 8",
    "add eax, 0x1000",
    "loop 2b",
    "mov edi, {page_tables} + 0x2000",
    "mov eax, 0xE7",
    "xor edx, edx",
    "mov ecx, {mapped_gib} * 512",
    "3:",
    "mov dword ptr [edi], eax",
    "mov dword ptr [edi + 4], edx",
    "add edi, 8",
    "add eax, 0x200000",
    "adc edx, 0",
    "loop 3b",
    // CR4: PAE, OSFXSR, OSXMMEXCPT; OSXSAVE and FSGSBASE where CPUID has them.
    "mov edi, 0x620",
    "xor eax, eax",
    "cpuid",
    "mov ebp, eax",
    "mov eax, 1",
    "cpuid",
    "bt ecx, 26",
    "jnc 4f",
    "or edi, 1 << 18",
    "4:",
    "cmp ebp, 7",
    "jb 5f",
    "mov eax, 7",
    "xor ecx, ecx",
    "cpuid",
    "bt ebx, 0",
    "jnc 5f",
    "or edi, 1 << 16",
    "5:",
    "mov cr4, edi",
    "mov eax, {page_tables}",
    "mov cr3, eax",
    // EFER.LME, then CR0: PG, WP, NE, ET, MP, PE, caches on, no emulation, no task switched.
    "mov ecx, 0xC0000080",
    "rdmsr",
    "or eax, 0x100",
    "wrmsr",
    "mov eax, 0x80010033",
    "mov cr0, eax",
    "lgdt [boot_gdt_pointer]",
    ".byte 0xEA", // ljmp, which the assembler's Intel syntax lacks
    ".long long_start",
    ".word 0x20",
    //
    ".code64",
    "long_start:",
    "mov eax, {user_data}",
    "mov ds, eax",
    "mov es, eax",
    "mov fs, eax",
    "mov gs, eax",
    // XCR0: x87, SSE, AVX as far as the CPU has them.
    "bt edi, 18",
    "jnc 6f",
    "mov eax, 0xD",
    "xor ecx, ecx",
    "cpuid",
    "and eax, 7",
    "xor ecx, ecx",
    "xor edx, edx",
    "xsetbv",
    "6:",
    "mov edi, esi",
    "xor esi, esi",
    "mov edx, 1",
    "mov rax, {stack_top}",
    "push {user_data}",
    "push rax",
    "push 0x3002", // IOPL 3
    "push {user_code}",
    "lea rax, [rip + _start]",
    "push rax",
    "iretq",
    //
    ".balign 8",
    "boot_gdt:",
    ".quad 0",
    ".quad 0",
    ".quad 0x00AFFB000000FFFF", // 0x10 user code, 64-bit
    ".quad 0x00CFF3000000FFFF", // 0x18 user data
    ".quad 0x00AF9B000000FFFF", // 0x20 kernel code, 64-bit
    "boot_gdt_pointer:",
    ".word boot_gdt_pointer - boot_gdt - 1",
    ".long boot_gdt",
    //
    ".balign 16",
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "and rsp, -16",
    "cld",
    "fninit",
    "call guest_main",
    "ud2",
    ".popsection",
    note_type = const PVH_NOTE_TYPE,
    page_tables = const PAGE_TABLES,
    mapped_gib = const MAPPED_GIB,
    stack_top = const STACKS + STACK_BYTES,
    user_code = const USER_CODE,
    user_data = const USER_DATA,
);

/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What BCC takes for the kernel's headers (BCC_KERNEL_SOURCE): hosts rarely have those, and these programs use only what
 * BCC's own linux/bpf.h defines. This file is included before everything.
 */
#define CONFIG_BPF_SYSCALL 1

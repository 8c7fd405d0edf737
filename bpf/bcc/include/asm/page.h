/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The unit in which BPF_RINGBUF_OUTPUT counts; CLB_RING multiplies it away again. */
#define PAGE_SIZE 4096

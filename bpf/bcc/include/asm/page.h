/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Only BCC's macro for ring buffers uses it, which these programs do not. */
#define PAGE_SIZE 4096

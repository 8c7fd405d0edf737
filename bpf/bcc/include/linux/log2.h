/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* BCC asks for it; these programs do without. */

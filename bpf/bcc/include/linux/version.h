/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* BCC passes BCC_LINUX_VERSION_CODE on under this name. */
#define KERNEL_VERSION(major, minor, patch) (((major) << 16) + ((minor) << 8) + (patch))
#define LINUX_VERSION_CODE LINUX_VERSION_CODE_OVERRIDE

"""Features of this kernel, found by loading tiny programs of the real types."""

from __future__ import annotations

import errno
import os
import resource
import struct
from typing import Final

from clb_discovery.datapath import bpf
from clb_discovery.datapath.pins import PROGRAMS
from clb_discovery.errors import HostError
from clb_discovery.layout.structs import FEATURE_ERRNO, FEATURE_LOOP, FEATURE_OPTIONS

_SET_RETVAL: Final = 187  # BPF_FUNC_set_retval, linux/bpf.h


def _instruction(code: int, destination: int = 0, immediate: int = 0) -> bytes:
    return struct.pack("=BBhi", code, destination, 0, immediate)


_MOVE, _CALL, _EXIT = 0xB7, 0x85, 0x95
ALLOW: Final = _instruction(_MOVE, 0, 1) + _instruction(_EXIT)
_REFUSE_WITH_ERRNO: Final = (
    _instruction(_MOVE, 1, -errno.ECONNREFUSED)
    + _instruction(_CALL, 0, _SET_RETVAL)
    + _instruction(_MOVE, 0, 0)
    + _instruction(_EXIT)
)


def raise_memlock_limit() -> None:
    """Remove the limit RLIMIT_MEMLOCK if allowed: kernels before 5.11 count BPF memory against it."""
    unlimited = resource.RLIM_INFINITY
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (unlimited, unlimited))
    except (ValueError, OSError):
        return


def require_hooks() -> None:
    """Check that every hook exists and that we are allowed to use it.

    :raises HostError: naming the missing hook or privilege.
    """
    for attach_type in PROGRAMS.values():
        try:
            os.close(bpf.load_program(ALLOW, attach_type))
        except PermissionError as error:
            raise HostError(
                "not allowed to load BPF programs; run as root, or with CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN"
            ) from error
        except OSError as error:
            raise HostError(
                f"this kernel ({os.uname().release}) has no {attach_type.name} hook: {error.strerror}; "
                "it needs CONFIG_CGROUP_BPF and version 5.10 or later"
            ) from error


def features() -> int:
    """Return the CLB_FEATURE_* bits that this kernel has."""
    try:
        os.close(bpf.load_program(_REFUSE_WITH_ERRNO, bpf.AttachType.CGROUP_INET4_CONNECT))
    except OSError:  # before 6.1, connect hooks lack the helper
        return 0
    # bpf_loop exists since 5.17, and bpf_getsockopt reads all options since the same version as that helper there.
    return FEATURE_ERRNO | FEATURE_LOOP | FEATURE_OPTIONS

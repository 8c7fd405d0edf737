"""Which tests need a whole machine: root, a kernel that loads BPF programs, Consul or a DNS server.

All others compute, or talk to fakes on the loopback. `pytest --check` runs these alone, in processes without any rights
that find no server on PATH. A test that needs more fails there until it is in the list.
"""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

MACHINE: Final = (
    "discovery",
    "kernel",
    "page",
    "benchmarks/test_client.py",
    "checks/test_exchange.py::test_a_busy_host_is_no_fault_of_the_server",
    "checks/test_tls.py::test_a_handshake_that_hangs_fails_in_time",
    "checks/test_tls.py::test_a_handshake_without_end_fails",
    "checks/test_tls.py::test_a_long_chain_of_certificates_passes",
    "checks/test_tls.py::test_a_reload_reads_the_authorities_again",
    "checks/test_tls.py::test_a_server_without_tls_fails",
    "checks/test_tls.py::test_an_unknown_authority_fails",
    "checks/test_tls.py::test_authorities_may_be_in_a_folder",
    "checks/test_tls.py::test_authorities_that_cannot_be_read_are_no_verdict",
    "checks/test_tls.py::test_authorities_that_verify_are_not_read_again",
    "checks/test_tls.py::test_https_verifies_the_name_of_the_url",
    "checks/test_tls.py::test_replaced_authorities_are_read_again",
    "checks/test_tls.py::test_the_name_of_the_url_is_that_of_sni",
    "cli/test_help.py::test_help_on_a_terminal",
    "config/test_settings.py::test_option_that_needs_a_restart_is_named",
    "datapath/test_seccomp.py::test_a_confined_process_is_refused_by_the_kernel",
    "sidecar/test_hosts.py::test_a_file_that_must_not_be_changed_is_named",
    "sources/consul/test_agent.py",
    "sources/consul/test_faults.py",
    "sources/consul/test_host_names.py",
    "sources/consul/test_long_polls.py",
    "sources/dns/test_caching.py",
    "sources/dns/test_consul.py",
    "sources/dns/test_dnsmasq.py",
    "sources/dns/test_faults.py",
    "sources/dns/test_host_names.py::test_names_are_those_of_getaddrinfo",
    "sources/dns/test_knot.py",
    "sources/dns/test_resolv_conf.py::test_absolute_names_are_those_of_glibc",
    "sources/dns/test_resolv_conf.py::test_bad_search_domain_is_reported_if_nothing_is_found",
    "sources/dns/test_resolv_conf.py::test_rotation_begins_with_each_server_in_turn",
    "sources/dns/test_resolv_conf.py::test_search_list_is_that_of_glibc",
    "sources/dns/test_resolv_conf.py::test_second_server_is_asked_after_one_that_fails",
    "sources/dns/test_resolv_conf.py::test_server_of_this_host_is_queried_in_any_notation",
    "sources/dns/test_resolv_conf.py::test_silence_in_the_search_list_is_as_for_glibc",
    "sources/dns/test_resolv_conf.py::test_silent_server_is_asked_last_from_then_on",
    "sources/dns/test_resolv_conf.py::test_suggested_command_repeats_the_question_that_failed",
    "sources/dns/test_tls.py",
    "test_manual.py::test_page_is_short",
    "test_files.py::test_a_race_for_the_directory_gives_nothing_away",
    "test_files.py::test_directory_that_others_can_change_is_refused",
    "test_files.py::test_links_are_followed_where_only_root_makes_them",
    "test_files.py::test_locks_of_others_hold_nothing_up",
    "test_files.py::test_shared_directory_lets_nobody_lead_root_astray",
    "test_files.py::test_sticky_directory_on_the_way_is_enough",
    "test_files.py::test_leftovers_of_another_users_crash_are_removed",
    "test_log.py::test_on_a_terminal_a_line_is_a_sentence",
    "test_systemd.py::test_cgroup_is_made_before_the_unit_is_started",
    "test_systemd.py::test_installing_the_package_does_not_wait_for_a_unit",
    "test_systemd.py::test_only_removing_the_package_stops_units",
    "test_systemd.py::test_restrictions_of_the_unit_are_in_force",
    "test_systemd.py::test_sidecar_is_little_exposed",
    "test_systemd.py::test_systemd_accepts_the_unit",
    "test_systemd.py::test_token_is_given_as_a_credential",
    "test_systemd.py::test_example_of_options_in_the_unit_is_valid",
    "test_systemd.py::test_unit_without_a_cgroup_is_named",
    "test_wheel.py::test_pipx_installs_it_as_the_documents_say",
    "test_wheel.py::test_wheel_needs_no_compiler",
)
"""Rooms, files and single tests below tests/ that need it."""
TOOLS: Final = ("bash", "cat", "clang", "dirname", "llvm-strip", "make", "mktemp", "rm", "setsid")
"""Programs that the other tests find on PATH; `scripts/setup check` installs those that not every system has."""

_PR_GET_SECUREBITS, _PR_SET_SECUREBITS = 27, 28
_SECBIT_NOROOT, _SECBIT_NOROOT_LOCKED = 1, 2
_CAPABILITY_VERSION_3: Final = 0x20080522


def needs_machine(path: str, name: str = "") -> bool:
    """Tell whether a test needs it.

    :param path: of the file, or of a room, relative to tests/.
    :param name: of the function, without parameters; empty for whether all tests there need it.
    """
    return f"{path}::{name}" in MACHINE or any(f"{path}/".startswith(f"{entry}/") for entry in MACHINE)


@contextmanager
def without_machine() -> Iterator[None]:
    """Leave this process and its children without any capability, root or not, and with no program but `TOOLS` on PATH.

    The capabilities do not come back.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    none = (ctypes.c_uint32 * 6)()
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    is_special = os.geteuid() == 0 and not libc.prctl(_PR_GET_SECUREBITS, 0, 0, 0, 0) & _SECBIT_NOROOT
    if is_special and libc.prctl(_PR_SET_SECUREBITS, _SECBIT_NOROOT | _SECBIT_NOROOT_LOCKED, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "cannot make root an ordinary user")
    if libc.capset(header, none):
        raise OSError(ctypes.get_errno(), "cannot give up capabilities")
    before = os.environ["PATH"]
    with TemporaryDirectory(prefix="clb-check-") as folder:
        for tool in TOOLS:
            found = shutil.which(tool)
            if found:
                Path(folder, tool).symlink_to(found)
        os.environ["PATH"] = folder
        try:
            yield
        finally:
            os.environ["PATH"] = before

"""Features of a kernel that matter here: probed inside a machine, and explained in docs/kernels.md.

As a program it prints, for each feature, whether the kernel has it and a detail, as JSON. To add a feature, add it to
`FEATURES`.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import socket
import sys
from collections.abc import Callable
from contextlib import closing
from typing import Final, NamedTuple

from clb_discovery.datapath import bpf, cgroup, probe, selftest
from clb_discovery.datapath.loading import loader
from clb_discovery.datapath.loading.loader import Loader
from clb_discovery.datapath.pins import Pins
from clb_discovery.datapath.sockets.closing import close_sockets
from clb_discovery.datapath.sockets.records import StoredRecords
from clb_discovery.layout import elements, structs
from clb_discovery.layout.structs import Map
from clb_discovery.model import own_servers as virtual
from clb_discovery.model.address import format_address, is_ipv4, parse_address
from clb_discovery.model.servers import Protocol, RealServer, Vip
from tests.support.recorder import record_maps

INSTANCE: Final = "features"
IPPROTO_MPTCP: Final = 262  # linux/in.h


class Finding(NamedTuple):
    """The result for one feature."""

    has: bool
    detail: str = ""


class Feature(NamedTuple):
    """One row of the table."""

    name: str
    meaning: str
    """What the sidecar does with it, and without it."""
    probe: Callable[[Pins], Finding]


def programs(pins: Pins) -> Finding:
    """Load everything onto the root cgroup, and make the self-test connect."""
    target = cgroup.find_root()
    loader.load(pins, target, Loader.OBJECT)
    reason = selftest.run(INSTANCE, target)
    return Finding(reason is None, reason or "")


def programs_of_bcc(pins: Pins) -> Finding:
    """Load the programs as BCC compiles them instead of the shipped ones, and make the self-test connect."""
    target = cgroup.find_root()
    loader.load(pins, target, Loader.BCC)
    reason = selftest.run(INSTANCE, target)
    return Finding(reason is None, reason or "")


def error_of_an_empty_pool(pins: Pins) -> Finding:
    """Connect to virtual servers without real servers."""
    errors = set()
    for vip in virtual.virtual_servers(pins.instance):
        with socket.socket(socket.AF_INET if is_ipv4(vip.address) else socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            number = sock.connect_ex((format_address(vip.address), vip.port))
            errors.add(errno.errorcode.get(number, str(number)))
    return Finding(errors == {"ECONNREFUSED"}, " and ".join(sorted(errors)))


def options_of_sockets(_: Pins) -> Finding:
    """Find out whether the loader has the programs read options."""
    return Finding(bool(probe.features() & structs.FEATURE_OPTIONS))


def replacing_in_place(pins: Pins) -> Finding:
    """Replace a program by another in its link."""
    link, program = bpf.open_pin(pins.link("clb_connect4")), bpf.open_pin(pins.program("clb_connect4"))
    try:
        bpf.link_update(link, program)
    finally:
        os.close(link)
        os.close(program)
    return Finding(has=True)


def batches(pins: Pins) -> Finding:
    """Write, read and delete several elements with one call each."""
    labels = bpf.open_pin(pins.map(Map.LABELS))
    key_size, value_size = structs.SIZES[Map.LABELS]
    keys = [bytes([0xFE, number] * (key_size // 2)) for number in range(3)]
    try:
        bpf.update_all(labels, [(key, bytes(value_size)) for key in keys])
        found = {key for key, _ in bpf.items(labels, key_size, value_size)}
        bpf.delete_all(labels, keys)
    finally:
        os.close(labels)
    return Finding(found >= set(keys))


def memory_by_cgroup(_: Pins) -> Finding:
    """Make a map with a locked memory limit of 0."""
    process = os.fork()
    if process == 0:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
        try:
            bpf.GracePeriod().close()
        except PermissionError:
            os._exit(1)
        os._exit(0)
    counted = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 1
    return Finding(not counted, "RLIMIT_MEMLOCK" if counted else "memory cgroup")


def writing_by_pins(pins: Pins) -> Finding:
    """Write an open map as a process without any capability."""
    fd = bpf.open_pin(pins.map(Map.LISTENER))
    process = os.fork()
    if process == 0:
        os.setresuid(65534, 65534, 65534)
        try:
            bpf.update(fd, elements.FIRST, bytes(8))
        except PermissionError:
            os._exit(1)
        os._exit(0)
    os.close(fd)
    return Finding(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0)


def multipath_tcp(_: Pins) -> Finding:
    """Make a socket of multipath TCP."""
    socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP).close()
    return Finding(has=True)


def records_of_tcp(_: Pins) -> Finding:
    """List TCP sockets with their records."""
    vip = elements.pack_vip(Vip(parse_address("10.64.0.1"), 80, Protocol.TCP))
    member = elements.pack_member(vip, RealServer(0, parse_address("127.0.0.1"), 80, 1))
    with record_maps() as maps:
        closed = close_sockets([member], maps, protocols=[Protocol.TCP])
    return Finding(not closed.failures, "; ".join(closed.failures))


def records_of_udp(_: Pins) -> Finding:
    """List the records that are stored with UDP sockets."""
    with record_maps() as maps, closing(StoredRecords(maps.stored, Protocol.UDP)) as records:
        return Finding(records.read() == {})


FEATURES: Final = (
    Feature("programs load and are in effect", "Required: without it nothing works.", programs),
    Feature("programs of BCC load", "`--loader bcc` does the same without the shipped object.", programs_of_bcc),
    Feature(
        "errno of an empty pool",
        "A connect to a virtual server without real servers fails with ECONNREFUSED. Before 6.1 connect hooks cannot "
        "set the errno: there it fails with EPERM, just as fast, and `status` has `errno` false.",
        error_of_an_empty_pool,
    ),
    Feature(
        "options of sockets",
        "Programs can read the options that an application has set. `--dead-after` needs it, so that it changes no "
        "choice of an application. Without it a socket that has timed out by `--connect-timeout` repeats its SYN less "
        "often in later connects to other addresses, too.",
        options_of_sockets,
    ),
    Feature(
        "programs are replaced in their links",
        "An upgrade replaces the programs, and every connect meanwhile runs the old or the new ones.",
        replacing_in_place,
    ),
    Feature(
        "records of TCP sockets",
        "Connections to a removed server can be recognised, and closed.",
        records_of_tcp,
    ),
    Feature(
        "records of UDP sockets",
        "UDP sockets that are connected to a removed server can be closed, too. Before 5.12 the few whose record is "
        "stored with the socket, because its place was taken, stay open until the application connects again.",
        records_of_udp,
    ),
    Feature(
        "sockets of multipath TCP",
        "They are balanced as TCP sockets are. Debian's 5.10 is built without them.",
        multipath_tcp,
    ),
    Feature(
        "maps are written without CAP_BPF",
        "The sidecar of the systemd units needs only the pins. Before 5.19 it also needs CAP_BPF.",
        writing_by_pins,
    ),
    Feature("batches of map elements", "Large pools are written, read and deleted with a few calls.", batches),
    Feature(
        "memory is counted by cgroup",
        "Kernels before 5.11 count maps and programs against RLIMIT_MEMLOCK. The systemd unit removes this limit, "
        "as does the sidecar itself if it has CAP_SYS_RESOURCE.",
        memory_by_cgroup,
    ),
)


def main() -> None:
    """Probe every feature; one that raises an error is missing, with the error as the reason."""
    pins = Pins(INSTANCE)
    found = {}
    for feature in FEATURES:
        try:
            found[feature.name] = feature.probe(pins)
        except Exception as error:  # noqa: BLE001 - any error is a result
            found[feature.name] = Finding(has=False, detail=str(error))
    loader.unload(pins)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()

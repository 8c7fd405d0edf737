"""The unit and the container of a cgroup, in the forms of systemd, Docker, Podman and Kubernetes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clb_discovery.documents.origin import Origin, origin

ID = "3f2a1b9c0d1e" + "0" * 52
POD = "0123abcd_4567_89ab_cdef_0123456789ab"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", Origin()),
        ("/system.slice", Origin()),
        ("/system.slice/shop.service", Origin("shop.service")),
        ("/system.slice/system-getty.slice/getty@tty1.service", Origin("getty@tty1.service")),
        ("/system.slice/shop.service/workers", Origin("shop.service")),
        ("/init.scope", Origin("init.scope")),
        ("/user.slice/user-1000.slice/session-3.scope", Origin("session-3.scope")),
        ("/user.slice/user-1000.slice/user@1000.service/init.scope", Origin("init.scope")),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/shop.service", Origin("shop.service")),
        ("/user.slice/user-1000.slice/user@1000.service", Origin("user@1000.service")),
        (f"/system.slice/docker-{ID}.scope", Origin(f"docker-{ID}.scope", f"docker:{ID}")),
        (f"/docker/{ID}", Origin(None, f"docker:{ID}")),
        (f"/machine.slice/libpod-{ID}.scope/container", Origin(f"libpod-{ID}.scope", f"podman:{ID}")),
        (f"/system.slice/shop.service/libpod-payload-{ID}", Origin("shop.service", f"podman:{ID}")),
        (f"/libpod_parent/libpod-{ID}", Origin(None, f"podman:{ID}")),
        (f"/machine.slice/libpod-conmon-{ID}.scope", Origin(f"libpod-conmon-{ID}.scope")),
        (f"/system.slice/nerdctl-{ID}.scope", Origin(f"nerdctl-{ID}.scope", f"containerd:{ID}")),
        (
            f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{POD}.slice/cri-containerd-{ID}.scope",
            Origin(f"cri-containerd-{ID}.scope", f"kubernetes:{ID}"),
        ),
        (f"/kubepods.slice/kubepods-pod{POD}.slice/crio-{ID}.scope", Origin(f"crio-{ID}.scope", f"kubernetes:{ID}")),
        (f"/kubepods/burstable/pod0123/{ID}", Origin(None, f"kubernetes:{ID}")),
        (f"/system.slice/docker-{ID}.scope/system.slice/web.service", Origin(f"docker-{ID}.scope", f"docker:{ID}")),
        (f"/mine/{ID}", Origin()),
        ("/mine/docker-1234.scope", Origin()),
    ],
)
def test_known_forms(path: str, expected: Origin) -> None:
    """Each form gives the unit of systemd, and the container with its engine. Users' own cgroups give no other unit."""
    assert origin(path) == expected


@given(st.text(alphabet=f"/.-@abc{ID[:3]}\n") | st.text())
def test_any_path_is_taken(path: str) -> None:
    """A path is untrusted: any text gives parts of it, or nothing."""
    unit, container = origin(path)
    assert unit is None or unit in path.split("/")
    assert container is None or container.partition(":")[2] in path

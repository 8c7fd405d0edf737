"""Files that the user of the systemd units cannot read: `check` runs as root, the sidecar of the units does not."""

from __future__ import annotations

import os
import pwd
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from clb_discovery.config.options import Options
from clb_discovery.files import acting_as

USER: Final = "clb-discovery"
"""In contrib/systemd, and in the Debian package."""


def unreadable_files(options: Options) -> Iterator[str]:
    """Yield a warning for each file in the options that this user cannot read, if we are root and the user exists."""
    try:
        user = pwd.getpwnam(USER)
    except KeyError:
        return
    if os.geteuid() != 0:
        return
    named = (
        options.config,
        options.consul_token_file,
        options.consul_ca_file,
        options.consul_client_cert,
        options.consul_client_key,
    )
    for file in (Path(one).resolve() for one in named if one):
        with acting_as(user.pw_uid, user.pw_gid, os.getgrouplist(USER, user.pw_gid)):
            closed = _closed(file)
        if closed == file:
            path = shlex.quote(str(file))
            yield f"{_cannot(file)} read it; run: chgrp {USER} {path} && chmod g+r {path}"
        elif closed:
            yield f"{_cannot(file)} enter {closed}; move it to another directory, such as /etc/{USER}"


def _cannot(file: Path) -> str:
    return f"{file}: the user {USER} of the systemd units cannot"


def _closed(file: Path) -> Path | None:
    """Return the first directory on the way that this process may not enter, or the file if it may not be read."""
    for directory in reversed(file.parents):
        if not os.access(directory, os.X_OK, effective_ids=True):
            return directory
    return None if os.access(file, os.R_OK, effective_ids=True) else file

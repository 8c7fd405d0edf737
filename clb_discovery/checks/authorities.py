"""The settings of TLS for checks: whether a certificate is verified, and by which authorities of this host."""

from __future__ import annotations

import asyncio
import os
import re
import ssl
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Final

_AGAIN: Final = 60.0
"""Seconds until authorities that verify nothing are read again: they may have been replaced meanwhile."""
_HASHED: Final = re.compile(r"[0-9a-f]{8}\.[0-9]+")
"""Names of certificates in a folder of authorities, in which OpenSSL looks only when it needs one."""


@dataclass
class _Made:
    """Settings that were made once."""

    context: ssl.SSLContext | None
    """None if there is no authority."""
    at: float
    has_failed: bool


class Contexts:
    """Makes the settings of TLS when they are needed. For one event loop."""

    def __init__(self) -> None:
        """Prepare; nothing is read yet."""
        self._made: dict[bool, _Made] = {}
        self._making = asyncio.Lock()

    async def get(self, *, verify: bool) -> ssl.SSLContext:
        """Return the settings; they are made in a thread, because that reads files and takes some milliseconds.

        :param verify: whether the certificate of the server has to be valid.
        :raises OSError: if this host has no authority that can be read.
        """
        async with self._making:
            made = self._made.get(verify)
            if made is None or (made.has_failed and monotonic() - made.at >= _AGAIN):
                context = await asyncio.to_thread(_make, verify=verify)
                made = self._made[verify] = _Made(context, monotonic(), has_failed=context is None)
        if made.context is None:
            raise OSError("no certificate authority can be read")
        return made.context

    def failed(self, context: ssl.SSLContext) -> None:
        """Take note that a verification with these settings has failed, perhaps because newer authorities are there."""
        for made in self._made.values():
            made.has_failed |= made.context is context

    def forget(self) -> None:
        """Read the authorities again with the next check."""
        self._made.clear()


def _make(*, verify: bool) -> ssl.SSLContext | None:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif not context.cert_store_stats()["x509"] and not _has_folder():
        return None
    return context


def _has_folder() -> bool:
    """Tell whether a folder of authorities has one that can be read."""
    paths = ssl.get_default_verify_paths()
    for folder in os.environ.get(paths.openssl_capath_env, paths.openssl_capath).split(":"):
        with suppress(OSError):
            if any(_HASHED.fullmatch(path.name) and os.access(path, os.R_OK) for path in Path(folder).iterdir()):
                return True
    return False

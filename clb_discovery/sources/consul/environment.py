"""What the environment says about Consul, read as the consul command line reads it (its "Commands" page).

Every function takes the environment as a mapping, and raises `UsageError` without repeating a secret.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from clb_discovery.errors import UsageError
from clb_discovery.sources.consul.address import DEFAULT
from clb_discovery.sources.consul.transport import Tls

_TRUE: Final = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE: Final = frozenset({"0", "f", "F", "FALSE", "false", "False", ""})
_LARGEST_TOKEN: Final = 4096
_SHOWN: Final = 80


def flag(environ: Mapping[str, str], name: str, *, default: bool) -> bool:
    """Return a boolean, in the spellings of Go's strconv.ParseBool; the default where it is unset or empty."""
    value = environ.get(name) or ""
    if value not in _TRUE | _FALSE:
        raise UsageError(f"{name} is {value[:_SHOWN]!r}; set it to true or false")
    return value in _TRUE if value else default


def address(environ: Mapping[str, str], explicit: str | None = None) -> str:
    """Return the agent's address: the explicit one, else CONSUL_HTTP_ADDR, else Consul's default.

    CONSUL_HTTP_SSL says what an address without a scheme means.
    """
    value = explicit or environ.get("CONSUL_HTTP_ADDR") or DEFAULT
    https = flag(environ, "CONSUL_HTTP_SSL", default=False)
    return f"https://{value}" if https and "://" not in value else value


def token(environ: Mapping[str, str]) -> str | None:
    """Return the token; the file wins over CONSUL_HTTP_TOKEN, as in Consul's own client."""
    file = environ.get("CONSUL_HTTP_TOKEN_FILE")
    if not file:
        return environ.get("CONSUL_HTTP_TOKEN") or None
    try:
        with Path(file).open(encoding="utf-8") as opened:
            text = opened.read(_LARGEST_TOKEN).strip()
    except (OSError, ValueError) as error:
        cause = (error.strerror if isinstance(error, OSError) else None) or "it is no text"
        raise UsageError(f"cannot read CONSUL_HTTP_TOKEN_FILE {file!r}: {cause}") from None
    if not text:
        raise UsageError(f"CONSUL_HTTP_TOKEN_FILE {file!r} is empty; put the token into it")
    return text


def tls(environ: Mapping[str, str]) -> Tls:
    """Return the TLS settings: authorities, client certificate, and whether the agent's certificate is checked."""
    files = {name: environ.get(f"CONSUL_{name}") or None for name in ("CACERT", "CAPATH", "CLIENT_CERT", "CLIENT_KEY")}
    if (files["CLIENT_CERT"] is None) != (files["CLIENT_KEY"] is None):
        raise UsageError("only one of CONSUL_CLIENT_CERT and CONSUL_CLIENT_KEY is set; set both or none")
    try:
        context = ssl.create_default_context(cafile=files["CACERT"], capath=files["CAPATH"])
        if files["CLIENT_CERT"] is not None:
            # An encrypted key is refused instead of asked for on a terminal.
            context.load_cert_chain(files["CLIENT_CERT"], files["CLIENT_KEY"], password=lambda: "")
    except OSError as error:  # ssl.SSLError is one
        named = ", ".join(f"CONSUL_{name} {file!r}" for name, file in files.items() if file is not None)
        raise UsageError(f"cannot use {named}: {error.strerror or error}; they must be readable PEM files") from None
    if not flag(environ, "CONSUL_HTTP_SSL_VERIFY", default=True):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return Tls(context, environ.get("CONSUL_TLS_SERVER_NAME") or None)

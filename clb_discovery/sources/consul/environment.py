"""Read the settings of Consul from options and environment, like the consul command line (its "Commands" page).

Every function raises a `UsageError` that names the option or variable, and repeats no secret; for a file that cannot be
used it is a `HostError`, because another program may still write it.
"""

from __future__ import annotations

import base64
import ssl
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, TypeVar

from clb_discovery.errors import HostError, UsageError
from clb_discovery.sources.consul.address import DEFAULT
from clb_discovery.sources.consul.client import Scope
from clb_discovery.sources.consul.secret_files import SecretFile
from clb_discovery.sources.consul.transport import Tls

OPTIONS: Final = {
    "CONSUL_HTTP_TOKEN_FILE": "--consul-token-file",
    "CONSUL_CACERT": "--consul-ca-file",
    "CONSUL_CAPATH": "--consul-ca-path",
    "CONSUL_CLIENT_CERT": "--consul-client-cert",
    "CONSUL_CLIENT_KEY": "--consul-client-key",
    "CONSUL_TLS_SERVER_NAME": "--consul-tls-server-name",
    "CONSUL_NAMESPACE": "--namespace",
    "CONSUL_PARTITION": "--partition",
}
"""Options by the variable that each overrides."""

_T = TypeVar("_T")

_TRUE: Final = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE: Final = frozenset({"0", "f", "F", "FALSE", "false", "False"})
_LARGEST_TOKEN: Final = 4096
_SHOWN: Final = 80


class Settings:
    """Settings: the value of an option, else of its variable. An empty value counts as unset, as in Consul's client."""

    def __init__(self, environ: Mapping[str, str], options: Mapping[str, str | None]) -> None:
        """Take the values.

        :param options: by variable.
        """
        self._environ = environ
        self._options = options

    def get(self, variable: str) -> str | None:
        """Return the value, if it is set."""
        return self._options.get(variable) or self._environ.get(variable) or None

    def label(self, variable: str) -> str:
        """Return the name of the option or variable that is used: `--consul-ca-file` or `CONSUL_CACERT`."""
        return OPTIONS[variable] if self._options.get(variable) else variable

    def shown(self, variable: str) -> str:
        """Return the option or variable and its value: `--consul-ca-file '/etc/ca.pem'`."""
        return f"{self.label(variable)} {self.get(variable)!r}"


def flag(settings: Settings, variable: str, *, default: bool) -> bool:
    """Return a boolean, in the spellings of Go's strconv.ParseBool; the default if it is unset or empty."""
    value = settings.get(variable)
    if value is None:
        return default
    if value not in _TRUE | _FALSE:
        raise UsageError(f"{variable} is {value[:_SHOWN]!r}; set it to true or false")
    return value in _TRUE


def address(settings: Settings, explicit: str | None = None) -> str:
    """Return the agent's address: the explicit one, else CONSUL_HTTP_ADDR, else Consul's default.

    CONSUL_HTTP_SSL sets the scheme of an address that has none.
    """
    value = explicit or settings.get("CONSUL_HTTP_ADDR") or DEFAULT
    https = flag(settings, "CONSUL_HTTP_SSL", default=False)
    return f"https://{value}" if https and "://" not in value else value


def token(settings: Settings) -> str | SecretFile[str] | None:
    """Return the token; a file overrides CONSUL_HTTP_TOKEN, as in Consul's own client, and may be replaced later."""
    file = settings.get("CONSUL_HTTP_TOKEN_FILE")
    if file is None:
        return settings.get("CONSUL_HTTP_TOKEN")
    return SecretFile(
        "Consul token", [Path(file)], lambda: _token(Path(file), settings.shown("CONSUL_HTTP_TOKEN_FILE"))
    )


def auth(settings: Settings) -> str | None:
    """Return the Authorization header for CONSUL_HTTP_AUTH (`user:password`)."""
    value = settings.get("CONSUL_HTTP_AUTH")
    if value is None:
        return None
    if not value.isprintable():
        raise UsageError("CONSUL_HTTP_AUTH contains characters that a password cannot have; set it to user:password")
    pair = value if ":" in value else f"{value}:"
    return f"Basic {base64.b64encode(pair.encode()).decode()}"


def scope(settings: Settings, datacenter: str | None) -> Scope:
    """Return which part of Consul to query."""
    return Scope(datacenter, settings.get("CONSUL_NAMESPACE"), settings.get("CONSUL_PARTITION"))


def tls(settings: Settings) -> Tls:
    """Return the TLS settings: authorities, client certificate, and whether the agent's certificate is checked."""
    context = _authorities(settings)
    certificate = _client_certificate(settings, context)
    if not flag(settings, "CONSUL_HTTP_SSL_VERIFY", default=True):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return Tls(context, settings.get("CONSUL_TLS_SERVER_NAME"), certificate)


def _token(file: Path, shown: str) -> str:
    try:
        with file.open(encoding="utf-8") as opened:
            text = opened.read(_LARGEST_TOKEN + 1).strip()
    except (OSError, ValueError) as error:
        cause = (error.strerror if isinstance(error, OSError) else None) or "it is not text"
        raise HostError(f"cannot read {shown}: {cause}; it must be a readable file with the token") from None
    if not text:
        raise HostError(f"{shown} is empty; put the token into it")
    if len(text) > _LARGEST_TOKEN or not (text.isascii() and text.isprintable()) or " " in text:
        raise HostError(f"{shown} contains more than a token; put only the token's SecretID into it")
    return text


def _client_certificate(settings: Settings, context: ssl.SSLContext) -> SecretFile[None] | None:
    """Load the configured client certificate, if any, into the context; `get` loads it again if it has changed."""
    cert, key = settings.get("CONSUL_CLIENT_CERT"), settings.get("CONSUL_CLIENT_KEY")
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        raise UsageError(
            "only one of --consul-client-cert (CONSUL_CLIENT_CERT) and --consul-client-key (CONSUL_CLIENT_KEY) is set; "
            "set both or none"
        )
    both = f"{settings.shown('CONSUL_CLIENT_CERT')} with {settings.shown('CONSUL_CLIENT_KEY')}"

    def read() -> None:
        for variable, file in (("CONSUL_CLIENT_CERT", cert), ("CONSUL_CLIENT_KEY", key)):
            _use(settings.shown(variable), Path(file).read_bytes)
        # Loaded into another context first: a half replaced pair would leave one half in this context.
        for one in (ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), context):
            # An encrypted key is an error; without this, OpenSSL would ask for its password on the terminal.
            _use(both, lambda one=one: one.load_cert_chain(cert, key, password=lambda: ""))  # type: ignore[misc]

    return SecretFile("Consul client certificate", [Path(cert), Path(key)], read)


def _authorities(settings: Settings) -> ssl.SSLContext:
    """Return a context that trusts the file and every file of the directory; the system's only if neither is set."""
    files: list[tuple[str, Path]] = []
    file, directory = settings.get("CONSUL_CACERT"), settings.get("CONSUL_CAPATH")
    if file is not None:
        files.append((settings.shown("CONSUL_CACERT"), Path(file)))
    if directory is not None:
        shown = settings.shown("CONSUL_CAPATH")
        found = _use(shown, lambda: sorted(path for path in Path(directory).iterdir() if path.is_file()))
        if not found:
            raise HostError(f"{shown} contains no file; put the CA certificates there, as PEM files")
        files += ((f"{path.name!r} in {shown}", path) for path in found)
    if not files:
        return ssl.create_default_context()
    context = _use(files[0][0], lambda: ssl.create_default_context(cafile=files[0][1]))
    for shown, path in files[1:]:
        _use(shown, lambda path=path: context.load_verify_locations(path))  # type: ignore[misc]
    return context


def _use(shown: str, use: Callable[[], _T]) -> _T:
    try:
        return use()
    except OSError as error:  # ssl.SSLError is one
        if isinstance(error, ssl.SSLError):
            cause = f"{error.reason or error}".replace("_", " ").lower()
        else:
            cause = error.strerror or str(error)
        raise HostError(f"cannot use {shown}: {cause}; it must be a readable PEM file") from None

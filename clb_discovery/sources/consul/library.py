"""`base`, the part of python-consul2 that we use, without its own client.

The package imports that client, and with it requests and urllib3: a second HTTP stack that this process would load and
never use. So an empty module replaces the client while the package is imported.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Final

_CLIENT: Final = "consul.std"

_empty = ModuleType(_CLIENT)
vars(_empty)["Consul"] = None
_found = sys.modules.setdefault(_CLIENT, _empty)
from consul import base  # noqa: E402

if _found is _empty:
    del sys.modules[_CLIENT]  # other importers get the real one

__all__ = ["base"]

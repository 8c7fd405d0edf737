"""Compile and load the sources in bpf/ with BCC, and pass the programs to the parent; imports only BCC beside stdlib.

Usage: compile.py SOCKET [REQUEST]. SOCKET is the number of an inherited socket. REQUEST is JSON:

    {"source": "/…/clb.bpf.c", "headers": "/…/bcc", "defines": {"CLB_CAN_SET_ERRNO": 1},
     "maps": {"clb_rows": 7, "clb_labels": null, …},
     "programs": [{"name": "clb_connect4", "type": 18, "attach_type": 10}, …]}

Each map has the inherited descriptor of the map to use, or null if it does not exist yet.

The first message is {"version": "0.26.0"}; or {"unusable": reason} if this interpreter cannot use BCC. The reason is
null if there is no module of that name at all. With a request, the second message is {"loaded": true} and carries a
descriptor of each program and of each map that was null, in their order; or {"failed": "compile" | "maps" | "load",
"reason": reason}, with the "program" that was not loaded. Compiler and verifier write details to stderr.

It runs under any Python 3 of the system. The memory of LLVM is freed when it ends.
"""

from __future__ import annotations

import array
import importlib
import importlib.util
import json
import os
import re
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_INCLUDE = re.compile(r'\s*#\s*include\s+"([^"]+)"')
_MACRO = re.compile(r"^#define (\w+)\(([\w, ]+)\) (map\..+)$", re.MULTILINE)
_LINUX_5_10 = 5 << 16 | 10 << 8
"""For the headers of BCC: the oldest supported kernel."""


class CannotError(Exception):
    """The programs could not be loaded; has the answer with the reason."""

    def __init__(self, **answer: object) -> None:
        """Take the answer."""
        super().__init__(answer)
        self.answer = answer


def main(number: str, request: str | None = None) -> None:
    """Answer the request on the socket with this number."""
    with socket.socket(fileno=int(number)) as parent:
        try:
            bcc = _import_bcc()
            _send(parent, {"version": bcc.__version__})
            if request is not None:
                _send(parent, {"loaded": True}, _load(bcc, json.loads(request)))
        except CannotError as error:
            _send(parent, error.answer)


def _send(parent: socket.socket, answer: dict[str, object], descriptors: Sequence[int] = ()) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
    parent.sendmsg([json.dumps(answer).encode()], rights)


def _import_bcc() -> Any:  # noqa: ANN401 - BCC has no types
    found = importlib.util.find_spec("bcc")
    if found is None or found.origin is None:  # an empty directory of an uninstalled package has no origin
        raise CannotError(unusable=None)
    try:
        bcc = importlib.import_module("bcc")
    except Exception as error:  # it may be any other package of this name
        raise CannotError(unusable=f"{found.origin} cannot be imported ({error})") from error
    if not hasattr(bcc, "BPF"):
        raise CannotError(unusable=f"{found.origin} is another package of that name")
    return bcc


def _load(bcc: Any, request: dict[str, Any]) -> list[int]:  # noqa: ANN401
    os.environ["BCC_KERNEL_SOURCE"] = request["headers"]
    os.environ["BCC_LINUX_VERSION_CODE"] = str(_LINUX_5_10)
    flags = [f"-D{name}={value}" for name, value in {"CLB_BCC": 1, **request["defines"]}.items()]
    flags.append("-Wno-incompatible-pointer-types")  # map functions of BCC take the declared type, libbpf's any pointer
    try:
        module = bcc.BPF(text=expand(flatten(Path(request["source"]), set())), cflags=flags)
    except Exception as error:  # BCC raises no other
        raise CannotError(failed="compile", reason=str(error)) from error
    maps = {name: bcc.lib.bpf_table_fd(module.module, name.encode()) for name in request["maps"]}
    for name, given in request["maps"].items():
        if given is not None:
            _use(given, maps[name], name)
    programs = [_load_program(module, program) for program in request["programs"]]
    return programs + [maps[name] for name, given in request["maps"].items() if given is None]


def _use(given: int, made: int, name: str) -> None:
    """Replace the map that BCC has made by the one to use: programs refer to maps by descriptor."""
    wanted, found = _description(made), _description(given)
    wrong = [f"{key} {found[key]} and not {wanted[key]}" for key in wanted if found[key] != wanted[key]]
    if wrong:
        raise CannotError(failed="maps", reason=f"{name} has {', '.join(wrong)}")
    os.dup2(given, made)


def _description(map_: int) -> dict[str, str]:
    lines = Path(f"/proc/self/fdinfo/{map_}").read_text(encoding="ascii").splitlines()
    fields = {name: value for name, _, value in (line.partition(":\t") for line in lines)}
    return {key: fields[key] for key in ("map_type", "key_size", "value_size", "max_entries", "map_flags")}


def _load_program(module: Any, program: dict[str, Any]) -> int:  # noqa: ANN401
    try:
        loaded = module.load_func(program["name"].encode(), program["type"], attach_type=program["attach_type"])
    except Exception as error:  # BCC raises no other
        why = str(error).rpartition(": ")[2]  # after the subject of the message
        raise CannotError(failed="load", program=program["name"], reason=why) from error
    descriptor: int = loaded.fd
    return descriptor


def flatten(path: Path, seen: set[Path]) -> str:
    """Return a source with its own includes replaced by their contents: BCC rewrites only the main file."""
    if path in seen:
        return ""
    seen.add(path)
    lines = [f'#line 1 "{path.name}"']
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        include = _INCLUDE.match(line)
        if include:
            lines += [flatten(path.parent / include[1], seen), f'#line {number + 1} "{path.name}"']
        else:
            lines.append(line)
    return "\n".join(lines) + "\n"


def expand(text: str) -> str:
    """Expand macros whose body calls a function of a map: BCC does not find such calls in macros."""
    macros = {name: (parameters.split(", "), body) for name, parameters, body in _MACRO.findall(text)}
    if not macros:
        return text
    text = _MACRO.sub("", text)
    call = re.compile(rf"\b({'|'.join(macros)})\(")
    match = call.search(text)
    while match:
        position = match.end()
        parameters, body = macros[match[1]]
        arguments, end = _arguments(text, position)
        if len(arguments) == len(parameters):
            position = match.start()  # an argument can be such a call, too
            given = {name: arguments[index] for index, name in enumerate(parameters)}
            text = text[:position] + _substitute(body, given) + text[end:]
        match = call.search(text, position)
    return text


def _substitute(body: str, given: dict[str, str]) -> str:
    return re.sub(r"\w+", lambda word: given.get(word[0], word[0]), body)


def _arguments(text: str, start: int) -> tuple[list[str], int]:
    """Return the arguments of a call and the position of its end.

    :param start: the position after the opening parenthesis.
    """
    depth, begin, found = 0, start, []
    for at in range(start, len(text)):
        sign = text[at]
        if sign in ",)" and not depth:
            found.append(text[begin:at].strip())
            begin = at + 1
            if sign == ")":
                return found, begin
        depth += (sign == "(") - (sign == ")")
    return [], start


if __name__ == "__main__":
    main(*sys.argv[1:])

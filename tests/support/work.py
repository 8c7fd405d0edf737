"""How much work a computation is: the instructions of Python that it takes, which are the same in every run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


def work(call: Callable[[], object]) -> int:
    """Call a function, and return how many instructions of Python ran; what C does in one of them counts once."""
    count = 0

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:  # noqa: ANN401 - as `sys.settrace` has it
        nonlocal count
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count

"""A real headless Chromium, controlled by its DevTools protocol over a pair of pipes.

https://chromedevtools.github.io/devtools-protocol/ documents methods and events.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from tests.support.pace import patient

TIMEOUT: Final = patient(120)
_OPTIONS: Final = (
    "--headless=new",
    "--no-sandbox",  # root cannot have a sandbox
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--hide-scrollbars",
    "--no-first-run",
    "--force-color-profile=srgb",
    "--remote-debugging-pipe",  # commands arrive on descriptor 3, answers leave on 4, each with a NUL at its end
)

Message = dict[str, Any]


class Chromium:
    """A running browser."""

    def __init__(self, commands: int, answers: int) -> None:
        self._commands = commands
        self._answers = answers
        self._partial = b""
        self._last = 0
        self.events: list[Message] = []
        """All events of tabs, in order."""

    def open(self) -> Tab:
        """Open an empty tab."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        return Tab(self, self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])

    def call(self, method: str, session: str | None = None, **parameters: object) -> Message:
        """Carry out a method and return its result."""
        self._last += 1
        message = {"id": self._last, "method": method, "params": parameters}
        data = json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0"
        while data:
            data = data[os.write(self._commands, data) :]
        while True:
            answer = self._receive(TIMEOUT)
            assert answer is not None, f"{method}: no answer"
            if answer.get("id") == self._last:
                assert "error" not in answer, (method, answer)
                result: Message = answer["result"]
                return result
            self.events.append(answer)

    def listen(self, seconds: float) -> None:
        """Record the events of the next seconds."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            event = self._receive(left)
            if event is not None:
                self.events.append(event)

    def _receive(self, seconds: float) -> Message | None:
        deadline = time.monotonic() + seconds
        while b"\0" not in self._partial:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                return None
            data = os.read(self._answers, 1 << 20)
            assert data, "Chromium has ended"
            self._partial += data
        message, _, self._partial = self._partial.partition(b"\0")
        found: Message = json.loads(message)
        return found


class Tab:
    """One tab, with a record of all its requests and problems."""

    def __init__(self, browser: Chromium, session: str) -> None:
        self._browser = browser
        self._session = session
        for domain in ("Page", "Runtime", "Log", "Network", "Audits", "Accessibility"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: object) -> Message:
        """Carry out a method in the tab."""
        return self._browser.call(method, self._session, **parameters)

    def goto(self, url: str) -> None:
        """Open a page."""
        result = self.call("Page.navigate", url=url)
        assert "errorText" not in result, result

    def evaluate(self, expression: str) -> Any:  # noqa: ANN401 - any JSON
        """Return the value of a JavaScript expression, awaited; one that throws fails the test."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait_for(self, expression: str, timeout: float = TIMEOUT) -> None:
        """Wait until a JavaScript expression is true."""
        deadline = time.monotonic() + timeout
        while not self.evaluate(expression):
            assert time.monotonic() < deadline, (expression, self.evaluate("document.body.innerText"))
            self._browser.listen(0.1)

    def listen(self, seconds: float) -> None:
        """Let time pass."""
        self._browser.listen(seconds)

    def size(self, width: int, height: int, scale: float = 1) -> None:
        """Give the tab the size of a screen, in CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=False
        )

    def prefer(self, scheme: str) -> None:
        """Set the colour scheme that the user prefers, `light` or `dark`."""
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def screenshot(self) -> bytes:
        """Return the visible part of the page, as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def press(self, key: str, *, control: bool = False) -> None:
        """Press a key; the name is that of KeyboardEvent.key."""
        code, text = _KEYS[key]
        typed = {"type": "keyDown", "text": text} if text and not control else {"type": "rawKeyDown"}
        modifiers = 2 if control else 0
        for kind in (typed, {"type": "keyUp"}):
            self.call(
                "Input.dispatchKeyEvent", **kind, key=key, code=key, windowsVirtualKeyCode=code, modifiers=modifiers
            )

    def tree(self) -> list[tuple[str, str]]:
        """Return role and name of everything that assistive technology sees."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        return [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]]

    def requests(self) -> list[str]:
        """Return the URLs that the tab has requested."""
        return [event["params"]["request"]["url"] for event in self._happened("Network.requestWillBeSent")]

    def troubles(self) -> list[Message]:
        """Return errors and warnings of the console, exceptions, and violations of policies."""
        said = [event["params"] for event in self._happened("Runtime.consoleAPICalled", "Runtime.exceptionThrown")]
        logged = [event["params"]["entry"] for event in self._happened("Log.entryAdded")]
        issues = [event["params"]["issue"] for event in self._happened("Audits.issueAdded")]
        return said + logged + issues

    def _happened(self, *methods: str) -> Iterator[Message]:
        return (event for event in self._browser.events if event["method"] in methods and self._is_own(event))

    def _is_own(self, event: Message) -> bool:
        return bool(event.get("sessionId") == self._session)


_KEYS: Final = {"Tab": (9, ""), "Enter": (13, "\r"), "/": (191, "/")}
"""Windows' code of each key, and the text that it types."""


@contextmanager
def chromium() -> Iterator[Chromium]:
    """Run a browser for the test while the block runs."""
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        commands_in, commands = os.pipe()
        answers, answers_out = os.pipe()
        theirs = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (commands_in, answers_out)]
        # The shell puts the pipes where Chromium looks for them; numbers from 10 on need more than a POSIX shell.
        shell = f'exec "$@" 3<&{theirs[0]} 4>&{theirs[1]}'
        command = ["bash", "-c", shell, "bash", "chromium", *_OPTIONS, f"--user-data-dir={profile}"]
        process = subprocess.Popen(command, pass_fds=theirs, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for fd in (commands_in, answers_out, *theirs):
            os.close(fd)
        try:
            yield Chromium(commands, answers)
        finally:
            os.close(commands)  # this ends it
            try:
                process.wait(timeout=patient(10))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            os.close(answers)

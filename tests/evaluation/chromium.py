"""A headless Chromium, driven over the DevTools protocol through a pipe, so that no library for it is needed."""

from __future__ import annotations

import base64
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe"),
]
_WAIT_S = 60


class Browser:
    """One page in a browser of its own, with a profile that goes with it.

    Args:
        downloads: folder of what is downloaded
    """

    def __init__(self, downloads: Path):
        self.downloads = downloads
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        (low_read, self._to), (self._from, low_write) = os.pipe(), os.pipe()
        # not 8 or 9, of which one would be written over by the shell below before it is read
        read, write = (fcntl.fcntl(number, fcntl.F_DUPFD, 20) for number in (low_read, low_write))
        os.close(low_read)
        os.close(low_write)
        self._process = subprocess.Popen(
            # the protocol is spoken on descriptors 3 and 4; copied by way of others, as those may be 3 or 4 themselves
            [
                *("bash", "-c", f'exec 8<&{read} 9>&{write} 3<&8 4>&9 8<&- 9>&-; exec "$@"', "chromium", PROGRAM),
                *(*_FLAGS, f"--user-data-dir={self._profile.name}", "about:blank"),
            ],
            pass_fds=(read, write),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read)
        os.close(write)
        self._ids, self._rest, self._session = itertools.count(1), b"", None
        self.events: list[dict[str, Any]] = []
        page = next(t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the protocol, and its answer. Events on the way are kept in `events`."""
        number = next(self._ids)
        message = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._to, data) :]
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                assert "error" not in answer, answer["error"]
                return answer["result"]
            self.events.append(answer)

    def _receive(self) -> dict[str, Any]:
        until = time.monotonic() + _WAIT_S
        while b"\0" not in self._rest:
            waiting = select.poll()  # `select.select` knows no file beyond the 1,024th
            waiting.register(self._from, select.POLLIN)
            assert waiting.poll(1000 * max(0, until - time.monotonic())), "Chromium says nothing"
            read = os.read(self._from, 1 << 16)
            assert read, "Chromium has ended"
            self._rest += read
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def open(self, address: str) -> None:
        """Go to an address, and wait until it is there."""
        self.run("window.isLeft = true")  # of the page that is there, which may be asked once more before it is gone
        self.call("Page.navigate", url=address)
        self.wait("!window.isLeft && document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, script: str) -> Any:
        """What a script's last expression gives."""
        told = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def wait(self, condition: str) -> None:
        """Until a script's expression is true, of the page that is there by then."""
        until = time.monotonic() + _WAIT_S
        while not self._holds(condition):
            assert time.monotonic() < until, f"still not: {condition}"
            time.sleep(0.02)

    def _holds(self, condition: str) -> bool:
        try:
            return self.run(condition)
        except AssertionError as error:  # asked of a page that was just leaving
            if "navigated" not in str(error):
                raise
            return False

    def tab(self) -> str:
        """A new tab beside those that are there, in the same profile: what `at` goes to it by."""
        before, self._session = self._session, None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._session = session
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self._session = before
        return session

    def at(self, tab: str) -> str:
        """Go to a tab; returns the one that it was at."""
        before, self._session = self._session, tab
        return before

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """The mouse, pressed at one place of the screen and let go at another."""
        for kind, (x, y) in (("mousePressed", start), ("mouseMoved", end), ("mouseReleased", end)):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def choose_file(self, selector: str, path: Path) -> None:
        """Give a file to an input of files."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", files=[str(path)], nodeId=node)

    def press(self, key: str) -> None:
        """A key, down and up."""
        arrows = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
        code = ({"Enter": 13, "Escape": 27, "Tab": 9} | arrows).get(key) or ord(key)
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        for kind in ("keyDown", "keyUp"):
            typed = {"text": text} if text and kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **typed)

    def show(self, width: int, height: int, dark: bool = False, phone: bool = False) -> None:
        """The screen's size in its own pixels, its colours, and whether it is a phone's, which is touched."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone},
        )
        self.call("Emulation.setTouchEmulationEnabled", enabled=phone)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)

    def picture(self, path: Path) -> None:
        """What is on the screen, as a PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        """End the browser."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._to)
        os.close(self._from)
        self._profile.cleanup()

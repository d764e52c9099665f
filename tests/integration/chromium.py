"""A headless Chromium, driven through the DevTools protocol: real clicks and keys, and what the page complained of.

Needs `chromium` (or KIWI_CHROMIUM) and the package websocket-client; `missing()` says what is absent.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

CHROMIUM = os.environ.get("KIWI_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
KEYS = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, " ": 32, "Enter": 13, "Tab": 9, "Escape": 27}


def missing() -> str:
    """Why no page can be opened here; "" where one can."""
    if CHROMIUM is None:
        return "Chromium is not installed (or set KIWI_CHROMIUM)"
    return "" if importlib.util.find_spec("websocket") else "websocket-client is not installed"


class Page:
    """One tab with cookies of its own, driven through the DevTools protocol."""

    def __init__(self, browser: Browser) -> None:
        self.browser = browser
        self.context = browser.call("Target.createBrowserContext")["browserContextId"]
        target = browser.call("Target.createTarget", url="about:blank", browserContextId=self.context)["targetId"]
        self.session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.troubles: list[str] = []
        browser.pages[self.session] = self
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.size(1280, 800)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self.browser.call(method, self.session, **parameters)

    def size(self, width: int, height: int, scheme: str = "light") -> None:
        phone = width < 600
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)
        self.call("Emulation.setTouchEmulationEnabled", enabled=phone)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def go(self, address: str) -> None:
        self.call("Page.navigate", url=address)

    def value(self, expression: str) -> Any:
        """The value of a script's expression (a promise is waited for)."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, expression: str, seconds: float = 20) -> Any:
        """The first true value of an expression."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                if found := self.value(expression):
                    return found
            except AssertionError:  # the page is changing
                pass
            time.sleep(0.02)
        raise AssertionError(f"never true: {expression}; the page says {self.value('document.body.innerText')!r}")

    def click(self, selector: str) -> None:
        """A real press of the mouse in the middle of an element that can be seen."""
        box = self.wait(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); if (!e) return null;"
            "const b = e.getBoundingClientRect(); if (!b.width) return null;"
            "return [b.x + b.width / 2, b.y + b.height / 2, innerHeight] })()"
        )
        assert 0 <= box[1] <= box[2], f"{selector} lies outside the window"
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def key(self, key: str) -> None:
        text = {"text": "\r"} if key == "Enter" else {} if len(key) > 1 else {"text": key}  # as a keyboard sends it
        for kind in ("keyDown", "keyUp"):
            code = KEYS.get(key, ord(key[0].upper()))
            self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **text)

    def write(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


class Browser:
    """A headless Chromium of our own, with a profile that is thrown away."""

    def __init__(self) -> None:
        import websocket

        self.profile = tempfile.mkdtemp(prefix="kiwi-chromium-")
        options = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync"
        quiet = "--disable-component-update --disable-default-apps --mute-audio --disable-dev-shm-usage"
        quiet += " --disable-features=IsolateSandboxedIframes"  # else a frame is a target of its own, out of reach here
        debugging = "--remote-debugging-port=0 --remote-allow-origins=* about:blank"
        self.process = subprocess.Popen(
            [str(CHROMIUM), *options.split(), *quiet.split(), *debugging.split(), f"--user-data-dir={self.profile}"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.pages: dict[str, Page] = {}
        self.number = 0
        said = Path(self.profile) / "DevToolsActivePort"
        deadline = time.monotonic() + 60
        while not (said.exists() and len(said.read_text().split()) == 2):
            assert time.monotonic() < deadline, "Chromium does not start"
            time.sleep(0.05)
        port, path = said.read_text().split()
        self.socket = websocket.create_connection(f"ws://127.0.0.1:{port}{path}", timeout=60)

    def call(self, method: str, session: str = "", **parameters: Any) -> dict[str, Any]:
        self.number += 1
        asked = {"id": self.number, "method": method, "params": parameters}
        self.socket.send(json.dumps(asked | ({"sessionId": session} if session else {})))
        while True:
            said = json.loads(self.socket.recv())
            if said.get("id") == self.number:
                assert "error" not in said, (method, said["error"])
                return dict(said["result"])
            self._note(said)

    def _note(self, said: dict[str, Any]) -> None:
        page = self.pages.get(said.get("sessionId", ""))
        if page is None:
            return
        if said["method"] in ("Runtime.exceptionThrown", "Page.javascriptDialogOpening"):
            page.troubles.append(json.dumps(said["params"])[:400])
        if said["method"] == "Log.entryAdded" and said["params"]["entry"]["source"] in ("security", "javascript"):
            page.troubles.append(said["params"]["entry"]["text"])
        if said["method"] == "Network.requestWillBeSent":
            address = said["params"]["request"]["url"]
            if not address.startswith(("http://127.0.0.1:", "about:", "data:", "file:")):
                page.troubles.append(f"fetched {address}")

    def close(self) -> None:
        self.socket.close()
        self.process.terminate()
        self.process.wait(timeout=20)
        shutil.rmtree(self.profile, ignore_errors=True)

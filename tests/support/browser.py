"""Headless Chromium, driven by its ChromeDriver over HTTP (the W3C's WebDriver protocol)."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

_OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --mute-audio "
    "--disable-background-networking --disable-component-update --disable-sync "
    "--disable-dev-shm-usage"
)
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the protocol's name of a reference
KEYS = {"Down": "\ue015", "Up": "\ue013", "Left": "\ue012", "Right": "\ue014", "Enter": "\ue007"}


class Browser:
    """One window; scripts see the page's own names."""

    def __init__(self, address: str, profile: Path) -> None:
        self.http = requests.Session()
        self.http.trust_env = False  # no proxy
        options = {"args": [*_OPTIONS.split(), f"--user-data-dir={profile}"]}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        self.address = address
        answer = self._call("POST", "session", capabilities={"alwaysMatch": wanted})
        self.address = f"{address}/session/{answer['sessionId']}"

    def _call(self, method: str, place: str = "", **body: Any) -> Any:
        url, data = f"{self.address}/{place}".rstrip("/"), body if method == "POST" else None
        answer = self.http.request(method, url, json=data, timeout=60).json()["value"]
        assert not (isinstance(answer, dict) and "error" in answer), answer
        return answer

    def open(self, path: Path, width: int = 1280, height: int = 900) -> None:
        """Open a file in a window of this size, in light colours."""
        self.develop("Emulation.setDeviceMetricsOverride", width=width, height=height,
                     deviceScaleFactor=1, mobile=False)  # fmt: skip
        self.colours("light")
        self._call("POST", "url", url=path.as_uri())

    def develop(self, cmd: str, **params: Any) -> None:
        """A command of Chromium's DevTools."""
        self._call("POST", "goog/cdp/execute", cmd=cmd, params=params)

    def colours(self, scheme: str) -> None:
        scheme_feature = {"name": "prefers-color-scheme", "value": scheme}
        self.develop("Emulation.setEmulatedMedia", features=[scheme_feature])

    def run(self, script: str) -> Any:
        """The value of an expression, or of the promise that it makes."""
        return self._call("POST", "execute/sync", script=f"return {script}", args=[])

    def texts(self, selector: str) -> list[str]:
        """The text of all elements that show."""
        return self.run(
            f"[...document.querySelectorAll({selector!r})].filter(e => e.checkVisibility())"
            ".map(e => e.textContent)"
        )

    def click(self, selector: str, across: float = 0.5) -> None:
        """Click an element by mouse, at a fraction of its width."""
        element = self._call("POST", "element", using="css selector", value=selector)[_ELEMENT]
        width = self.run(f"document.querySelector({selector!r}).getBoundingClientRect().width")
        place = {"origin": {_ELEMENT: element}, "x": round((across - 0.5) * width), "y": 0}
        steps = [
            {"type": "pointerMove", "duration": 0, **place},
            {"type": "pointerDown", "button": 0},
            {"type": "pointerUp", "button": 0},
        ]
        self._call("POST", "actions", actions=[{"type": "pointer", "id": "m", "actions": steps}])

    def press(self, *keys: str) -> None:
        """Press keys, by their letter or their name in KEYS."""
        letters = [KEYS.get(key, key) for key in keys]
        steps = [{"type": t, "value": k} for k in letters for t in ("keyDown", "keyUp")]
        self._call("POST", "actions", actions=[{"type": "key", "id": "k", "actions": steps}])

    def errors(self) -> list[str]:
        """What the console has reported since the last call."""
        return [line["message"] for line in self._call("POST", "se/log", type="browser")]

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._call("GET", "screenshot")))

    def close(self) -> None:
        self._call("DELETE")


@pytest.fixture(scope="session")
def browser(tmp_path_factory) -> Iterator[Browser]:
    """Skips the test where Debian's chromium and chromium-driver are not installed."""
    driver = shutil.which("chromedriver")
    if driver is None or shutil.which("chromium") is None:
        pytest.skip("chromium and chromedriver are not installed")
    with subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            port = next(
                port[1]
                for line in process.stdout
                if (port := re.search(r"successfully on port (\d+)", line))
            )
            browser = Browser(f"http://127.0.0.1:{port}", tmp_path_factory.mktemp("chromium"))
            yield browser
            browser.close()
        finally:
            process.terminate()

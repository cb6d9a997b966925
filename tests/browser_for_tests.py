"""A headless Chromium with the screen of a phone, driven by ChromeDriver over HTTP."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


class Browser:
    """An open page.

    :param address: of the session.
    """

    def __init__(self, address):
        self.address = address

    def open(self, url):
        """Load a page, and wait until it is there."""
        _ask(f"{self.address}/url", {"url": url})

    def run(self, script):
        """What a script returns."""
        return _ask(f"{self.address}/execute/sync", {"script": script, "args": []})

    def screenshot(self, path):
        """Write what is seen as PNG."""
        shown = urlopen(f"{self.address}/screenshot", timeout=60).read()
        Path(path).write_bytes(base64.b64decode(json.loads(shown)["value"]))


@contextmanager
def phone(width=390, height=844, dark=False):
    """A browser on a screen so many points wide; the test is skipped where there is none."""
    driver = shutil.which("chromedriver")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if driver is None or chromium is None:
        pytest.skip("no Chromium with its driver")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        port = _free_port()
        process = subprocess.Popen([driver, f"--port={port}"], stdout=subprocess.DEVNULL)
        try:
            scheme = ["--force-dark-mode"] if dark else []
            options = {
                "binary": chromium,
                "args": [*FLAGS, *scheme, f"--user-data-dir={folder}"],
                "mobileEmulation": {
                    "deviceMetrics": {"width": width, "height": height, "pixelRatio": 1}
                },
            }
            wanted = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}}
            sessions = f"http://127.0.0.1:{port}/session"
            session = _ask_when_up(sessions, wanted)["sessionId"]
            yield Browser(f"{sessions}/{session}")
            with suppress(URLError):
                urlopen(Request(f"{sessions}/{session}", method="DELETE"), timeout=30)
        finally:
            process.terminate()
            process.wait(30)


def _free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def _ask(url, content):
    request = Request(url, json.dumps(content).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=120) as answer:
        return json.loads(answer.read())["value"]


def _ask_when_up(url, content):
    for _ in range(100):
        try:
            return _ask(url, content)
        except URLError as error:
            if not isinstance(error.reason, ConnectionRefusedError):
                raise
            time.sleep(0.1)
    raise TimeoutError(url)

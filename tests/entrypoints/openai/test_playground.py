"""The page at `/` in a real browser: it streams an answer, offline, under its own policy."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time

import pytest

from fd_core.serving.http.pages import content_policy, static

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


# The browser reads messages at descriptor 3 and writes them at 4.
WIRE = """import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])"""


class Browser:
    """A headless browser, spoken to over its debugging pipe (messages of JSON ended by NUL)."""

    def __init__(self, profile):
        to_browser, from_us = os.pipe()
        from_browser, to_us = os.pipe()

        flags = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--remote-debugging-pipe",
            f"--user-data-dir={profile}",
        ]
        self.process = subprocess.Popen(
            [sys.executable, "-c", WIRE, str(to_browser), str(to_us), BROWSER, *flags, "about:blank"],
            pass_fds=(to_browser, to_us),
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(to_us)
        self._out, self._in = from_us, from_browser
        self._buffer = b""
        self._number = 0
        self.events: list[dict] = []
        self._session = None
        page = next(t for t in self.send("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self._session = self.send("Target.attachToTarget", targetId=page["targetId"], flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def send(self, method, **params):
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            found = self._read()
            if found.get("id") == self._number:
                assert "error" not in found, found
                return found["result"]
            self.events.append(found)

    def _read(self):
        while b"\0" not in self._buffer:
            part = os.read(self._in, 65536)
            assert part, "the browser is gone"
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def js(self, source):
        found = self.send("Runtime.evaluate", expression=source, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, source, seconds=20.0):
        end = time.monotonic() + seconds
        while not (value := self.js(source)):
            assert time.monotonic() < end, f"never true: {source}"
            time.sleep(0.05)
        return value

    def close(self):
        self.process.terminate()
        self.process.wait(10)
        os.close(self._out)
        os.close(self._in)


@pytest.fixture
def browser(tmp_path):
    if BROWSER is None:
        pytest.skip("needs a browser: chromium is not installed")
    made = Browser(tmp_path / "profile")
    yield made
    made.close()


def test_page_streams_an_answer(browser, start):
    server = start(engine_options={"step_time": 0.01})
    browser.send("Page.navigate", url=server.url + "/")
    browser.until("document.body && document.body.dataset.platform === 'echo'")
    assert "on echo" in browser.js("document.getElementById('where').textContent")
    browser.js("document.getElementById('prompt').value = 'hello <b>you</b>'")
    browser.js("document.getElementById('most').value = 80")
    browser.js("document.getElementById('send').click()")
    seen = set()
    while browser.js("document.body.dataset.answers") != "1":
        seen.add(browser.js("document.querySelector('article.assistant')?.textContent.length || 0"))
    assert len(seen) > 5, "the answer must grow while it is made"
    answer = browser.js("document.querySelector('article.assistant').textContent")
    assert len(answer) == 80
    assert re.fullmatch(
        r"80 tokens · [\d.]+ tokens/s", browser.js("document.getElementById('speed').textContent")
    )
    assert browser.js("document.querySelector('article.user').textContent") == "hello <b>you</b>"
    assert server.settled()
    urls = [
        e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"
    ]
    assert urls
    assert all(u.startswith((server.url, "data:")) for u in urls), "nothing may come from elsewhere"
    errors = [
        e
        for e in browser.events
        if e["method"] == "Log.entryAdded" and e["params"]["entry"]["level"] == "error"
    ]
    assert errors == []


def test_stop_button_aborts(browser, start):
    server = start(engine_options={"step_time": 0.02})
    browser.send("Page.navigate", url=server.url + "/")
    browser.until("document.body && document.body.dataset.platform === 'echo'")
    browser.js(
        "document.getElementById('prompt').value = 'long'; document.getElementById('most').value = 2000;"
    )
    browser.js("document.getElementById('send').click()")
    browser.until("document.querySelector('article.assistant')?.textContent.length > 3")
    browser.js("document.getElementById('stop').click()")
    browser.until("document.body.dataset.answers === '1'")
    assert server.settled()


def test_key_and_errors_are_shown(browser, start):
    server = start(api_keys=("sesame",))
    browser.send("Page.navigate", url=server.url + "/")
    browser.until("document.getElementById('where')?.textContent.includes('API key')")
    browser.js("document.getElementById('prompt').value = 'x'; document.getElementById('send').click()")
    browser.until("document.querySelector('article.error')?.textContent.includes('API key')")
    browser.js(
        "const k = document.getElementById('key');"
        "k.value = 'sesame'; k.dispatchEvent(new Event('change')); 0"
    )
    browser.until("document.body.dataset.platform === 'echo'")


def test_policy_and_page(server):
    with server.http() as http:
        answer = http.get("/")
    policy = answer.headers["content-security-policy"]
    assert policy.encode() == content_policy()
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    page = static("playground.html").decode()
    assert answer.text == page
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page), "no outside files"
    assert not re.findall(r"\son\w+=", page), "no inline handlers: the policy forbids them"
    assert ".innerHTML" not in page

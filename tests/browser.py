"""A page as a browser shows it: headless Chromium, led over the WebDriver protocol, which is JSON by HTTP."""

import contextlib
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator

_OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-proxy-server",
    "--window-size=1600,2400",
)
# The text and the tags of a page, in the roots of its components and its frames too, which the plain document has not.
_EVERYTHING = """
const texts = [], tags = {};
const walk = (root) => {
  for (const node of root.querySelectorAll("*")) {
    const tag = node.tagName.toLowerCase();
    const drawn = tag !== "img" || (node.complete && node.naturalWidth > 100);
    if (drawn) tags[tag] = (tags[tag] || 0) + 1;
    if (node.shadowRoot) walk(node.shadowRoot);
    if (tag === "iframe" && node.contentDocument) walk(node.contentDocument);
    for (const child of node.childNodes)
      if (child.nodeType === 3 && !["style", "script"].includes(tag)) texts.push(child.data.trim());
  }
};
walk(document);
return {text: texts.filter(Boolean).join("\\n"), tags: tags};
"""


def missing() -> str | None:
    """What there is not to open a page with, if anything."""
    absent = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"no {' and no '.join(absent)} on this machine" if absent else None


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def ask(url: str, content: object = None, method: str | None = None) -> object:
    """The JSON that a server answers with; not through any proxy."""
    data = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=60) as answer:
        return json.load(answer)


def until(look: Callable[[], object], what: str, seconds: float = 60.0) -> object:
    """What `look` finds, as soon as it is true."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            if found := look():
                return found
        assert time.monotonic() < end, f"{what} did not come in {seconds:g} s"
        time.sleep(0.2)


@contextlib.contextmanager
def serving(*command: str) -> Iterator[None]:
    """A server that runs meanwhile."""
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        server.terminate()
        server.wait()


class Page:
    """A window of a browser."""

    def __init__(self, session: str):
        self._session = session

    def open(self, url: str) -> None:
        """Goes there; an address that differs in what follows `#` alone is loaded anew too."""
        ask(f"{self._session}/url", {"url": "about:blank"})
        ask(f"{self._session}/url", {"url": url})

    def look(self) -> tuple[str, dict[str, int]]:
        """The text, and how many elements of each tag there are; pictures count when they are loaded."""
        found = self.run(_EVERYTHING)
        return found["text"], found["tags"]

    def run(self, script: str) -> object:
        """What JavaScript returns."""
        return ask(f"{self._session}/execute/sync", {"script": script, "args": []})["value"]

    def screenshot(self) -> str:
        """PNG, in base 64."""
        return ask(f"{self._session}/screenshot")["value"]


@contextlib.contextmanager
def browsing(profile: str) -> Iterator[Page]:
    """A browser with an empty profile folder."""
    port = free_port()
    driver = f"http://127.0.0.1:{port}"
    with serving("chromedriver", f"--port={port}"):
        until(lambda: ask(f"{driver}/status")["value"]["ready"], "chromedriver")
        options = {"binary": shutil.which("chromium"), "args": [*_OPTIONS, f"--user-data-dir={profile}"]}
        wanted = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}}
        session = f"{driver}/session/{ask(f'{driver}/session', wanted)['value']['sessionId']}"
        try:
            yield Page(session)
        finally:
            ask(session, method="DELETE")

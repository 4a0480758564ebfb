"""A console process in front of a daemon that runs in the test process, and a client that speaks to it as a page does."""

import http.client
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class ConsoleProcess:
    """One ``px-sidecar console``; ``code`` is the code of the first address that it printed."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.url = self.next_url()
        self.port = int(re.search(r":(\d+)/", self.url)[1])
        self.code = self.url.partition("#code=")[2]
        self.token = ""

    def next_url(self) -> str:
        """Read the next address that the console prints."""
        for line in self.process.stdout:
            if line.startswith("Console: "):
                return line.removeprefix("Console: ").strip()
        raise AssertionError("the console ended without an address")

    def press_enter(self) -> str:
        """Ask for a new address."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.next_url()

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def sign_in(self) -> "ConsoleProcess":
        """Redeem the code."""
        status, answer = self.request("POST", "/session", {"code": self.code}, token=False)
        assert status == 200, answer
        self.token = answer["token"]
        return self

    def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, *, token: bool = True
    ) -> tuple[int, Any]:
        """Send one request as the page does, and return status and decoded answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        sent = {"Content-Type": "application/json"} if method == "POST" else {}
        sent |= {"Authorization": f"Bearer {self.token}"} if token else {}
        try:
            connection.request(
                method,
                path,
                None if body is None else json.dumps(body),
                {k: v for k, v in (sent | (headers or {})).items() if v},
            )
            answer = connection.getresponse()
            raw = answer.read()
            self.headers = dict(answer.getheaders())
        finally:
            connection.close()
        try:
            return answer.status, json.loads(raw)
        except ValueError:
            return answer.status, raw

    def get(self, path: str, **headers: str) -> tuple[int, Any]:
        return self.request("GET", f"/api{path}", headers=headers)

    def post(self, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        return self.request("POST", f"/api{path}", body or {}, headers)


@contextmanager
def running_console(config: Path, *options: str, environ: dict[str, str] | None = None) -> Iterator[ConsoleProcess]:
    """Run a console for the length of the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "sidecar", "console", "--no-browser", "--config", str(config), *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environ or {})},
    )
    try:
        yield ConsoleProcess(process)
    finally:
        process.terminate()
        try:
            process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def wait_for(condition: Any, what: str, timeout_s: float = 10.0) -> Any:
    """Poll until ``condition()`` is true, and return it."""
    deadline_s = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline_s, f"{what} did not happen within {timeout_s} s"
        time.sleep(0.05)
    return value

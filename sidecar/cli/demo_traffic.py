"""The traffic of the demo: three apps that send events and record the message ids that were accepted.

Each app runs in its own thread: one over the Unix socket with ``sidecar.client``, one over HTTP with the standard
library, one with the real Segment SDK for Python if it is installed. While the daemon is down they retry the same event
with the same message id, as the SDKs do.
"""

import http.client
import json
import subprocess
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable
from typing import Any

from sidecar.client import Client, NotAccepted

__all__ = ["Traffic", "answers", "end_process", "get_bytes"]

NAMES = ("Feature Used", "Plan Viewed", "Products Searched", "Trial Started", "Logged In")
BATCH = 20
RETRY_S = 0.05


def answers(address: str, path: str) -> bool:
    """Return whether ``http://address/path`` answers 200."""
    connection = http.client.HTTPConnection(address, timeout=1)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def get_bytes(address: str) -> bytes:
    """Return the body of ``http://address``. Raises OSError."""
    with urllib.request.urlopen(f"http://{address}", timeout=30) as answer:
        data: bytes = answer.read()
    return data


def end_process(process: subprocess.Popen[Any]) -> None:
    """Terminate a process; kill it if it has not ended after 5 seconds."""
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class Traffic:
    """Send ``events`` events of ``users`` users; ``accepted`` holds the message ids that were answered with success."""

    def __init__(self, *, events: int, users: int, pause_s: float, socket: str, address: str) -> None:
        self.accepted: set[str] = set()
        self.sdk = _segment_sdk() is not None
        self._users = users
        self._pause_s = pause_s
        self._socket = socket
        self._address = address
        senders: list[Callable[[range], None]] = [self._over_unix, self._over_http]
        senders += [self._with_sdk] if self.sdk else []
        share = events // len(senders)
        self._threads = [
            threading.Thread(
                target=sender,
                args=(range(index * share, events if index == len(senders) - 1 else (index + 1) * share),),
                daemon=True,
            )
            for index, sender in enumerate(senders)
        ]

    def start(self) -> None:
        """Start the apps."""
        for thread in self._threads:
            thread.start()

    def running(self) -> bool:
        """Return whether an app still has events to send."""
        return any(thread.is_alive() for thread in self._threads)

    def _event(self, number: int) -> dict[str, Any]:
        return {
            "type": "track",
            "event": NAMES[number % len(NAMES)],
            "userId": f"user-{number % self._users}",
            "messageId": str(uuid.uuid4()),
            "properties": {"feature_name": "Bulk Export", "number": number},
            "context": {"groupId": f"acct-{number % 50}", "page": {"url": "https://app.example.com/reports"}},
        }

    def _over_unix(self, numbers: range) -> None:
        with Client(self._socket) as client:
            for number in numbers:
                event = self._event(number)
                while True:
                    try:
                        client.track(
                            event["userId"],
                            event["event"],
                            event["properties"],
                            context=event["context"],
                            message_id=event["messageId"],
                        )
                        break
                    except NotAccepted:
                        time.sleep(RETRY_S)
                self.accepted.add(event["messageId"])
                time.sleep(self._pause_s)

    def _over_http(self, numbers: range) -> None:
        for start in range(numbers.start, numbers.stop, BATCH):
            batch = [self._event(number) for number in range(start, min(start + BATCH, numbers.stop))]
            while not self._post({"batch": batch, "writeKey": "demo"}):
                time.sleep(RETRY_S)
            self.accepted.update(event["messageId"] for event in batch)
            time.sleep(self._pause_s * BATCH)

    def _post(self, body: dict[str, Any]) -> bool:
        connection = http.client.HTTPConnection(self._address, timeout=10)
        try:
            connection.request("POST", "/v1/batch", json.dumps(body), {"Content-Type": "application/json"})
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _with_sdk(self, numbers: range) -> None:
        """Send with the SDK, which reports only failures: after ``join`` every other message was accepted."""
        failed: list[dict[str, Any]] = []
        client = _segment_sdk()(
            "demo",
            host=f"http://{self._address}",
            upload_interval=0.1,
            on_error=lambda _error, items: failed.extend(items),
            max_retries=60,
        )
        sent: list[str] = []
        for number in numbers:
            event = self._event(number)
            _, queued = client.track(
                event["userId"], event["event"], event["properties"], event["context"], message_id=event["messageId"]
            )
            sent.append(queued["messageId"])
            time.sleep(self._pause_s)
        client.flush()
        client.join()
        self.accepted.update(set(sent) - {item["messageId"] for item in failed})


def _segment_sdk() -> Any:
    """Return the client class of the Segment SDK for Python, or None if it is not installed."""
    try:
        from segment.analytics.client import Client as SegmentClient
    except ImportError:
        return None
    return SegmentClient

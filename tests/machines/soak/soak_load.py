"""The traffic of the soak: one process, three interfaces, and a ledger of one byte per event.

Theory
------
Events are numbered, and the number is in the messageId. The ledger holds one byte per number: the expected outcome, and
whether the acceptance was answered. Hours of traffic are thus checked exactly in a few megabytes. An unanswered event is
sent again with the same messageId until it is answered.

``pace`` is in events per second for all interfaces together; each has a share. An interface that was blocked catches up
for at most a second, so that a stall does not cause a burst.
"""

import http.client
import json
import socket
import threading
import time
from collections import deque
from enum import IntEnum
from random import Random
from typing import Any

USERS = 2_000
REPEATS = 0.01
CATCH_UP_S = 1.0
TIMEOUT_S = 30.0
RETRY_S = 0.1

# The shares of events that are not simply delivered.
BAD, NO_USER, ALIAS, GROUP, IDENTIFY, LONG = 0.002, 0.005, 0.01, 0.01, 0.02, 0.005


class Expected(IntEnum):
    """The expected outcome of an event. ``UNKNOWN``: its acceptance was never answered."""

    UNKNOWN = 0
    SENT = 1
    DROPPED = 2
    BAD = 3


class Ledger:
    """The expected outcomes of answered events by number, and the latencies since the last reading."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self.expectations = bytearray()
        self.repeats = 0
        self.failures = 0
        self.last_failure = ""
        self._took_s: list[float] = []

    def number(self) -> int:
        with self._lock:
            self._count += 1
            self.expectations.append(Expected.UNKNOWN)
            return self._count - 1

    def answered(self, events: list[tuple[int, Expected]], repeats: int, took_s: float) -> None:
        with self._lock:
            for number, expected in events:
                self.expectations[number] = expected
            self.repeats += repeats
            self._took_s.append(took_s)

    def failed(self, why: object) -> None:
        with self._lock:
            self.failures += 1
            self.last_failure = repr(why)

    def latencies_s(self) -> list[float]:
        with self._lock:
            took_s, self._took_s = self._took_s, []
            return took_s

    def accepted(self) -> int:
        with self._lock:
            return len(self.expectations) - self.expectations.count(Expected.UNKNOWN)


def make(number: int, rng: Random) -> tuple[dict[str, Any], Expected]:
    """Return the event with this number, and its expected outcome."""
    event: dict[str, Any] = {
        "type": "track",
        "event": rng.choice(("Feature Used", "Report Run", "Products Searched", "Plan Viewed")),
        "userId": f"u{rng.randrange(USERS):04}",
        "messageId": f"soak-{number}",
        "properties": {"feature_name": "Bulk Export", "number": number, "nested": {"a": [1, 2, 3]}},
        "context": {"groupId": f"acct-{number % 50}", "page": {"url": "https://app.example.com/reports"}},
    }
    draw = rng.random()
    for share, change, expected in (
        (BAD, {"event": None}, Expected.BAD),
        (NO_USER, {"userId": None}, Expected.DROPPED),
        (ALIAS, {"type": "alias", "previousId": f"old{number}"}, Expected.DROPPED),
        (GROUP, {"type": "group", "groupId": f"acct-{number % 50}", "traits": {"plan": "pro"}}, Expected.DROPPED),
        (IDENTIFY, {"type": "identify", "userId": f"new{number}", "traits": {"plan": "pro"}}, Expected.DROPPED),
        (LONG, {"properties": {"text": "x" * rng.randrange(2_000, 20_000)}}, Expected.SENT),
    ):
        if draw < share:
            return event | change, expected
        draw -= share
    return event, Expected.SENT


class Interface:
    """One interface of the daemon. ``exchange`` returns when all events are answered as accepted, or raises OSError."""

    group = 1
    sent_singly = 0
    """How many events of a group are sent singly: a bad event among them would be refused instead of stored."""

    def __init__(self, ledger: Ledger, seed: int, repeat_within_s: float) -> None:
        self._ledger = ledger
        self._rng = Random(seed)
        self._repeat_within_s = repeat_within_s
        self._recent: deque[tuple[float, dict[str, Any]]] = deque()

    def connect(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def exchange(self, events: list[dict[str, Any]]) -> None:
        raise NotImplementedError

    def send_group(self) -> int:
        """Make a group of events and send it until it is answered; return its size."""
        group = []
        while len(group) < self.group:
            number = self._ledger.number()
            event, expected = make(number, self._rng)
            while expected is Expected.BAD and len(group) < self.sent_singly:
                event, expected = make(number, self._rng)
            group.append((number, event, expected))
        started_s = time.monotonic()
        events = [event for _, event, _ in group]
        repeated = self._repeated(started_s)
        events += repeated
        tries = 0
        while not self._try(events):
            tries += 1
            time.sleep(RETRY_S)
        took_s = time.monotonic() - started_s
        self._ledger.answered([(number, expected) for number, _, expected in group], len(repeated), took_s)
        self._recent.extend((started_s, event) for _, event, expected in group if expected is Expected.SENT)
        return self.group

    def _repeated(self, now_s: float) -> list[dict[str, Any]]:
        """Return, sometimes, an event that was answered before and whose messageId is still remembered."""
        while self._recent and self._recent[0][0] < now_s - self._repeat_within_s:
            self._recent.popleft()
        if not self._recent or self._rng.random() >= REPEATS * self.group:
            return []
        return [self._rng.choice(self._recent)[1]]

    def _try(self, events: list[dict[str, Any]]) -> bool:
        try:
            self.connect()
            self.exchange(events)
        except (OSError, http.client.HTTPException) as error:
            self._ledger.failed(error)
            self.close()
            return False
        return True


class Refused(OSError):
    """The daemon answered without success."""


class Http(Interface):
    """HTTP on a keep-alive connection: batches, or one event per request."""

    def __init__(self, ledger: Ledger, seed: int, repeat_within_s: float, address: str, group: int) -> None:
        super().__init__(ledger, seed, repeat_within_s)
        self.group = group
        self.sent_singly = int(group == 1)
        self._connection = http.client.HTTPConnection(address, timeout=TIMEOUT_S)

    def connect(self) -> None:
        pass  # http.client connects when needed

    def close(self) -> None:
        self._connection.close()

    def exchange(self, events: list[dict[str, Any]]) -> None:
        if self.group > 1:
            self._post("/v1/batch", {"batch": events})
        else:
            for event in events:
                self._post(f"/v1/{event['type']}", event)

    def _post(self, path: str, body: dict[str, Any]) -> None:
        self._connection.request("POST", path, json.dumps(body))
        answer = self._connection.getresponse()
        data = answer.read()
        if answer.status != 200:
            raise Refused(f"{answer.status} {data[:200]!r}")


class Lines(Interface):
    """NDJSON on the Unix socket: two single lines and an array, then all answers."""

    group = 5
    sent_singly = 2

    def __init__(self, ledger: Ledger, seed: int, repeat_within_s: float, path: str) -> None:
        super().__init__(ledger, seed, repeat_within_s)
        self._path = path
        self._socket: socket.socket | None = None
        self._answers: Any = None

    def connect(self) -> None:
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._socket.settimeout(TIMEOUT_S)
            self._socket.connect(self._path)
            self._answers = self._socket.makefile("rb")

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._answers.close()
            self._socket = None

    def exchange(self, events: list[dict[str, Any]]) -> None:
        lines = [events[0], events[1], events[2:]]
        self._socket.sendall(b"".join(json.dumps(line).encode() + b"\n" for line in lines))
        for line in lines:
            answer = self._answers.readline()
            if not answer.endswith(b"\n"):
                raise ConnectionResetError("the connection ended before the answer")
            data = json.loads(answer)
            if not data["success"]:
                raise Refused(f"{answer[:200]!r} to {str(line)[:200]}")


class Traffic:
    """All interfaces, each in its own thread, at ``pace`` events per second together."""

    def __init__(self, *, address: str, unix: str, seed: int, pace: float, repeat_within_s: float) -> None:
        self.pace = pace
        self.ledger = Ledger()
        self._ending = threading.Event()
        interfaces = [
            (0.6, Http(self.ledger, seed, repeat_within_s, address, group=20)),
            (0.2, Http(self.ledger, seed + 1, repeat_within_s, address, group=1)),
            (0.2, Lines(self.ledger, seed + 2, repeat_within_s, unix)),
        ]
        self.errors: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._run, args=(share, interface), daemon=True) for share, interface in interfaces
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop; when this returns, every event is answered. Raises an error of an interface."""
        self._ending.set()
        for thread in self._threads:
            thread.join()
        for error in self.errors:
            raise error

    def _run(self, share: float, interface: Interface) -> None:
        due_s = time.monotonic()
        try:
            while not self._ending.is_set():
                now_s = time.monotonic()
                if now_s < due_s:
                    self._ending.wait(due_s - now_s)
                    continue
                due_s = max(due_s, now_s - CATCH_UP_S) + interface.send_group() / (share * self.pace)
        except BaseException as error:
            self.errors.append(error)
        finally:
            interface.close()

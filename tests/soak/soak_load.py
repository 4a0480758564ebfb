"""The traffic of the soak: one process, three ways in, and a ledger that costs one byte an event.

Theory
------
Events are numbered, and the number is in the messageId. The ledger is an array of one byte for each number: what the
event was made to become, and whether its acceptance was answered. So hours of traffic are accounted exactly in a few
megabytes. An event that was not answered is sent again under its messageId until it is.

``pace`` is in events a second for all ways together; each way takes its share. A way that was held up makes up for a
second at most, so that a stall does not become a burst of its own.
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
MAKE_UP_S = 1.0
PATIENCE_S = 30.0
AGAIN_S = 0.1

# What else there is beside events to be delivered, and its share.
BAD, NO_USER, ALIAS, GROUP, IDENTIFY, LONG = 0.002, 0.005, 0.01, 0.01, 0.02, 0.005


class Fate(IntEnum):
    """What an event is made to become. ``UNKNOWN``: its acceptance was never answered."""

    UNKNOWN = 0
    SENT = 1
    DROPPED = 2
    BAD = 3


class Ledger:
    """What was answered, by the number in the messageId; and the latencies since somebody last asked."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made = 0
        self.fates = bytearray()
        self.repeats = 0
        self.failures = 0
        self.last_failure = ""
        self._took_s: list[float] = []

    def number(self) -> int:
        with self._lock:
            self._made += 1
            self.fates.append(Fate.UNKNOWN)
            return self._made - 1

    def answered(self, events: list[tuple[int, Fate]], repeats: int, took_s: float) -> None:
        with self._lock:
            for number, fate in events:
                self.fates[number] = fate
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
            return len(self.fates) - self.fates.count(Fate.UNKNOWN)


def make(number: int, dice: Random) -> tuple[dict[str, Any], Fate]:
    """The event of that number, and what must become of it."""
    event: dict[str, Any] = {
        "type": "track",
        "event": dice.choice(("Feature Used", "Report Run", "Products Searched", "Plan Viewed")),
        "userId": f"u{dice.randrange(USERS):04}",
        "messageId": f"soak-{number}",
        "properties": {"feature_name": "Bulk Export", "number": number, "nested": {"a": [1, 2, 3]}},
        "context": {"groupId": f"acct-{number % 50}", "page": {"url": "https://app.example.com/reports"}},
    }
    throw = dice.random()
    for share, change, fate in (
        (BAD, {"event": None}, Fate.BAD),
        (NO_USER, {"userId": None}, Fate.DROPPED),
        (ALIAS, {"type": "alias", "previousId": f"old{number}"}, Fate.DROPPED),
        (GROUP, {"type": "group", "groupId": f"acct-{number % 50}", "traits": {"plan": "pro"}}, Fate.DROPPED),
        (IDENTIFY, {"type": "identify", "userId": f"new{number}", "traits": {"plan": "pro"}}, Fate.DROPPED),
        (LONG, {"properties": {"text": "x" * dice.randrange(2_000, 20_000)}}, Fate.SENT),
    ):
        if throw < share:
            return event | change, fate
        throw -= share
    return event, Fate.SENT


class Way:
    """One way in. ``exchange`` sends events and returns when all are answered as accepted, or raises OSError."""

    group = 1
    alone = 0
    """How many of the first events go alone: a bad one among them would be refused, not stored."""

    def __init__(self, ledger: Ledger, seed: int, repeat_within_s: float) -> None:
        self._ledger = ledger
        self._dice = Random(seed)
        self._repeat_within_s = repeat_within_s
        self._recent: deque[tuple[float, dict[str, Any]]] = deque()

    def connect(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError

    def exchange(self, events: list[dict[str, Any]]) -> None:
        raise NotImplementedError

    def send_some(self) -> int:
        """Make some events and send them until they are answered; how many."""
        made = []
        while len(made) < self.group:
            number = self._ledger.number()
            event, fate = make(number, self._dice)
            while fate is Fate.BAD and len(made) < self.alone:
                event, fate = make(number, self._dice)
            made.append((number, event, fate))
        began_s = time.monotonic()
        events = [event for _, event, _ in made]
        repeated = self._repeated(began_s)
        events += repeated
        tries = 0
        while not self._try(events):
            tries += 1
            time.sleep(AGAIN_S)
        took_s = time.monotonic() - began_s
        self._ledger.answered([(number, fate) for number, _, fate in made], len(repeated), took_s)
        self._recent.extend((began_s, event) for _, event, fate in made if fate is Fate.SENT)
        return self.group

    def _repeated(self, now_s: float) -> list[dict[str, Any]]:
        """Now and then an event that was answered before, while its messageId is certainly remembered."""
        while self._recent and self._recent[0][0] < now_s - self._repeat_within_s:
            self._recent.popleft()
        if not self._recent or self._dice.random() >= REPEATS * self.group:
            return []
        return [self._dice.choice(self._recent)[1]]

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
    """The daemon answered, but not with success."""


class Http(Way):
    """HTTP on a connection that is kept: batches, or one event a request."""

    def __init__(self, ledger: Ledger, seed: int, repeat_within_s: float, address: str, group: int) -> None:
        super().__init__(ledger, seed, repeat_within_s)
        self.group = group
        self.alone = int(group == 1)
        self._connection = http.client.HTTPConnection(address, timeout=PATIENCE_S)

    def connect(self) -> None:
        pass  # http.client does, when it must

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
        said = answer.read()
        if answer.status != 200:
            raise Refused(f"{answer.status} {said[:200]!r}")


class Lines(Way):
    """NDJSON on the Unix socket: single lines and an array, then all answers."""

    group = 5
    alone = 2

    def __init__(self, ledger: Ledger, seed: int, repeat_within_s: float, path: str) -> None:
        super().__init__(ledger, seed, repeat_within_s)
        self._path = path
        self._socket: socket.socket | None = None
        self._answers: Any = None

    def connect(self) -> None:
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._socket.settimeout(PATIENCE_S)
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
            said = json.loads(answer)
            if not said["success"]:
                raise Refused(f"{answer[:200]!r} to {str(line)[:200]}")


class Traffic:
    """All ways together, each in a thread of its own, at ``pace`` events a second."""

    def __init__(self, *, address: str, unix: str, seed: int, pace: float, repeat_within_s: float) -> None:
        self.pace = pace
        self.ledger = Ledger()
        self._ending = threading.Event()
        ways = [
            (0.6, Http(self.ledger, seed, repeat_within_s, address, group=20)),
            (0.2, Http(self.ledger, seed + 1, repeat_within_s, address, group=1)),
            (0.2, Lines(self.ledger, seed + 2, repeat_within_s, unix)),
        ]
        self.errors: list[BaseException] = []
        self._threads = [threading.Thread(target=self._run, args=(share, way), daemon=True) for share, way in ways]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Every event that was made is answered when this returns. Raises what a way has raised."""
        self._ending.set()
        for thread in self._threads:
            thread.join()
        for error in self.errors:
            raise error

    def _run(self, share: float, way: Way) -> None:
        due_s = time.monotonic()
        try:
            while not self._ending.is_set():
                now_s = time.monotonic()
                if now_s < due_s:
                    self._ending.wait(due_s - now_s)
                    continue
                due_s = max(due_s, now_s - MAKE_UP_S) + way.send_some() / (share * self.pace)
        except BaseException as error:
            self.errors.append(error)
        finally:
            way.close()

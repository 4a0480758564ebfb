"""What a service tells systemd, and the sockets that systemd hands to it. Standard library only.

Theory
------
systemd listens on a datagram socket named in ``$NOTIFY_SOCKET``; each datagram is lines of ``KEY=value`` (sd_notify(3)).
Listening sockets arrive as file descriptors from 3 on, counted in ``$LISTEN_FDS`` and named in ``$LISTEN_FDNAMES``, and
are meant for us only if ``$LISTEN_PID`` is our pid (sd_listen_fds(3)).

Rules
-----
* Without systemd nothing here does anything, and nothing fails.
* An inherited socket is closed by us at the end, but never shut down, and its path is never unlinked: it belongs to
  the ``.socket`` unit, and connections wait in it for the next process (facts/field_lessons.md 7).
* STATUS= is sent at most once a second: a flood of notifications can hang PID 1 (systemd issue 37288).
"""

import os
import socket
import time
from collections.abc import Callable, Mapping, MutableMapping

from sidecar.errors import ConfigError

__all__ = ["Notifier", "inherited_sockets", "watchdog_s"]

FIRST_FD = 3  # SD_LISTEN_FDS_START
STATUS_EVERY_S = 1.0
SEND_TIMEOUT_S = 2.0


class Notifier:
    """Our end of the notification socket. Each method tells whether systemd has been told.

    False means that there is no systemd, or that it does not read at the moment; no method raises. A change of state
    waits up to 2 seconds for room in systemd's queue; STATUS and WATCHDOG do not wait, as the next one comes soon.
    """

    def __init__(
        self, environ: Mapping[str, str] = os.environ, monotonic_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self._monotonic_s = monotonic_s
        self._status_sent_s = float("-inf")
        self.told = ""  # the last STATUS= that was sent

    @property
    def listened_to(self) -> bool:
        """Whether there is a systemd to tell anything."""
        return self._address is not None

    def ready(self, status: str = "") -> bool:
        """Starting, or reloading, is complete: events can be accepted and stored."""
        self.told = status or self.told
        return self._send(f"READY=1\nSTATUS={_one_line(status)}" if status else "READY=1")

    def reloading(self) -> bool:
        """A reload has begun; ``ready`` must follow, also when the new configuration is refused."""
        return self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, status: str = "") -> bool:
        """The orderly end has begun."""
        return self._send(f"STOPPING=1\nSTATUS={_one_line(status)}" if status else "STOPPING=1")

    def status(self, text: str) -> bool:
        """One line for ``systemctl status``. Within a second of the last one it is not sent: say it again later."""
        now_s = self._monotonic_s()
        if now_s - self._status_sent_s < STATUS_EVERY_S:
            return False
        self._status_sent_s = now_s
        sent = self._send(f"STATUS={_one_line(text)}", wait=False)
        self.told = text if sent else self.told
        return sent

    def watchdog(self) -> bool:
        """We make progress. To be sent at a third of ``watchdog_s``, and only upon proof."""
        return self._send("WATCHDOG=1", wait=False)

    def extend_timeout(self, seconds: float) -> bool:
        """Starting or stopping takes longer: systemd waits at least ``seconds`` from now; to be repeated before they end."""
        return self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1_000_000)}")

    def _send(self, message: str, *, wait: bool = True) -> bool:
        if self._address is None:
            return False
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.settimeout(SEND_TIMEOUT_S if wait else 0)
            try:
                sender.sendto(message.encode("utf-8", "replace"), self._address)
            except OSError:  # nobody reads there, or the queue is full: told by the result, not worth stopping for
                return False
        return True


def watchdog_s(environ: Mapping[str, str] = os.environ) -> float | None:
    """Seconds after which systemd kills a silent service; None if it does not watch this process (sd_watchdog_enabled(3))."""
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    text = environ.get("WATCHDOG_USEC", "")
    return int(text) / 1_000_000 if text.isascii() and text.isdigit() and int(text) else None


def inherited_sockets(environ: MutableMapping[str, str] = os.environ) -> dict[str, list[socket.socket]]:
    """The listening sockets handed to this process, by their ``FileDescriptorName=``; empty if there are none.

    They are non-blocking and not inherited by children, and the variables are removed, so that a child does not take
    them for its own: a second call gives nothing. The caller closes them. Raises ConfigError if one of them is no
    listening stream socket, as after ``ListenDatagram=`` or ``Accept=yes`` in a unit.
    """
    pid, count, names_text = (environ.pop(f"LISTEN_{key}", "") for key in ("PID", "FDS", "FDNAMES"))
    environ.pop("LISTEN_PIDFDID", None)
    if pid != str(os.getpid()) or not (count.isascii() and count.isdigit()):
        return {}
    names = names_text.split(":") if names_text else []
    found: dict[str, list[socket.socket]] = {}
    for index in range(int(count)):
        name = names[index] if index < len(names) else "unknown"
        found.setdefault(name, []).append(_adopt(FIRST_FD + index, name))
    return found


def _adopt(descriptor: int, name: str) -> socket.socket:
    complaint = (
        f"systemd handed over {name!r} (descriptor {descriptor}), which is not a listening stream socket; "
        "use ListenStream= without Accept=yes in its .socket unit."
    )
    try:
        os.set_inheritable(descriptor, False)
        listener = socket.socket(fileno=descriptor)
    except OSError:
        raise ConfigError(complaint) from None
    if listener.type != socket.SOCK_STREAM or not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        listener.detach()
        raise ConfigError(complaint)
    listener.setblocking(False)
    return listener


def _address(text: str) -> str | None:
    """The address for ``sendto``: a path, or an abstract name, which systemd writes with ``@`` and the kernel with NUL."""
    if text.startswith("@"):
        return "\0" + text[1:]
    return text if text.startswith("/") else None


def _one_line(text: str) -> str:
    return " ".join(text.split())

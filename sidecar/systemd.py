"""Notify systemd of the service's state, and take over the sockets that systemd passes. Standard library only.

Theory
------
systemd listens on a datagram socket named in ``$NOTIFY_SOCKET``; each datagram consists of ``KEY=value`` lines
(sd_notify(3)). Listening sockets arrive as file descriptors from 3 on, counted in ``$LISTEN_FDS`` and named in
``$LISTEN_FDNAMES``. They are meant for this process only if ``$LISTEN_PID`` is its pid (sd_listen_fds(3)).

Rules
-----
* Without systemd all functions do nothing, and nothing fails.
* An inherited socket is closed at the end, but never shut down, and its path is never unlinked. It belongs to the
  ``.socket`` unit, and connections wait in it for the next process (systemd/README.md#sockets).
* STATUS= is sent at most once a second: a flood of notifications can hang PID 1
  (https://github.com/systemd/systemd/issues/37288).
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
    """The sending end of systemd's notification socket. Each method returns whether the message was sent.

    False means that systemd does not supervise this process, that its queue is full at the moment, or that no descriptor is
    left; no method raises.
    A change of state waits up to 2 seconds for space in the queue. STATUS and WATCHDOG do not wait, since the next one
    follows soon.
    """

    def __init__(
        self, environ: Mapping[str, str] = os.environ, monotonic_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._address = _address(environ.get("NOTIFY_SOCKET", ""))
        self._monotonic_s = monotonic_s
        self._status_sent_s = float("-inf")
        self.last_status = ""  # the last STATUS= that was sent

    @property
    def enabled(self) -> bool:
        """True if systemd supervises this process and can be notified."""
        return self._address is not None

    def ready(self, status: str = "") -> bool:
        """Report that the start, or a reload, is complete: events can be accepted and stored."""
        self.last_status = status or self.last_status
        return self._send(f"READY=1\nSTATUS={_one_line(status)}" if status else "READY=1")

    def reloading(self) -> bool:
        """Report that a reload has begun; ``ready`` must follow, even when the new configuration is refused."""
        return self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, status: str = "") -> bool:
        """Report that the orderly stop has begun."""
        return self._send(f"STOPPING=1\nSTATUS={_one_line(status)}" if status else "STOPPING=1")

    def status(self, text: str) -> bool:
        """Send one line for ``systemctl status``. Within a second of the last one it is not sent: call again later."""
        now_s = self._monotonic_s()
        if now_s - self._status_sent_s < STATUS_EVERY_S:
            return False
        self._status_sent_s = now_s
        sent = self._send(f"STATUS={_one_line(text)}", wait=False)
        self.last_status = text if sent else self.last_status
        return sent

    def watchdog(self) -> bool:
        """Report progress. Call it every third of ``watchdog_s``, and only with evidence of progress."""
        return self._send("WATCHDOG=1", wait=False)

    def extend_timeout(self, seconds: float) -> bool:
        """Make systemd wait at least ``seconds`` from now for a slow start or stop. Repeat it before then."""
        return self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1_000_000)}")

    def _send(self, message: str, *, wait: bool = True) -> bool:
        if self._address is None:
            return False
        # A new socket each time: it costs little at this rate, and nothing stays open across a fork.
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(SEND_TIMEOUT_S if wait else 0)
                sender.sendto(message.encode("utf-8", "replace"), self._address)
        # No reader, a full queue, no descriptor left: the result says so, and a daemon must not stop for it.
        except OSError:
            return False
        return True


def watchdog_s(environ: Mapping[str, str] = os.environ) -> float | None:
    """Return the seconds of silence after which systemd kills the service; None if it does not watch this process.

    See sd_watchdog_enabled(3).
    """
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    text = environ.get("WATCHDOG_USEC", "")
    return int(text) / 1_000_000 if text.isascii() and text.isdigit() and int(text) else None


def inherited_sockets(environ: MutableMapping[str, str] = os.environ) -> dict[str, list[socket.socket]]:
    """Return the listening sockets passed to this process, by their ``FileDescriptorName=``; empty if there are none.

    The sockets are non-blocking and closed on exec. The variables are removed, so that a child process does not mistake
    them for its own; a second call therefore returns nothing. The caller closes the sockets. Raises ConfigError if a
    descriptor is not a listening stream socket, as with ``ListenDatagram=`` or ``Accept=yes`` in a unit.
    """
    pid, count, names_text = (environ.pop(f"LISTEN_{key}", "") for key in ("PID", "FDS", "FDNAMES"))
    environ.pop("LISTEN_PIDFDID", None)
    if pid != str(os.getpid()) or not (count.isascii() and count.isdigit()):
        return {}
    names = names_text.split(":") if names_text else []
    sockets: dict[str, list[socket.socket]] = {}
    for index in range(int(count)):
        name = names[index] if index < len(names) else "unknown"
        sockets.setdefault(name, []).append(_adopt(FIRST_FD + index, name))
    return sockets


def _adopt(descriptor: int, name: str) -> socket.socket:
    """Turn a passed descriptor into a socket. Raises ConfigError if it is not a listening stream socket."""
    problem = (
        f"systemd handed over {name!r} (descriptor {descriptor}), which is not a listening stream socket; "
        "use ListenStream= without Accept=yes in its .socket unit."
    )
    try:
        os.set_inheritable(descriptor, False)
        listener = socket.socket(fileno=descriptor)
    except OSError:
        raise ConfigError(problem) from None
    if listener.type != socket.SOCK_STREAM or not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        listener.detach()  # leave the descriptor open: it belongs to its .socket unit
        raise ConfigError(problem)
    listener.setblocking(False)
    return listener


def _address(text: str) -> str | None:
    """Return the address for ``sendto``: a path, or an abstract name (``@`` in the variable, NUL for the kernel)."""
    if text.startswith("@"):
        return "\0" + text[1:]
    return text if text.startswith("/") else None


def _one_line(text: str) -> str:
    return " ".join(text.split())

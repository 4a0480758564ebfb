"""systemd's notification and socket protocols, against local sockets; tests/systemd boots the real systemd."""

import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import textwrap
import time

import pytest

from sidecar.systemd import Notifier, watchdog_s


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    """systemd's end of the notification socket, and the environment that names it."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@px-sidecar-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(name.replace("@", "\0"))
        receiver.settimeout(5)
        yield receiver, {"NOTIFY_SOCKET": name}


def next_message(receiver):
    return receiver.recv(4096).decode()


def test_each_state_is_sent_as_sd_notify_defines_it(manager):
    receiver, environ = manager
    notifier = Notifier(environ)
    for send, message in (
        (lambda: notifier.ready(), "READY=1"),
        (lambda: notifier.ready("accepting\nand delivering"), "READY=1\nSTATUS=accepting and delivering"),
        (lambda: notifier.stopping(), "STOPPING=1"),
        (lambda: notifier.stopping("3 in flight"), "STOPPING=1\nSTATUS=3 in flight"),
        (lambda: notifier.watchdog(), "WATCHDOG=1"),
        (lambda: notifier.status("ünïcode"), "STATUS=ünïcode"),
        (lambda: notifier.extend_timeout(1.5), "EXTEND_TIMEOUT_USEC=1500000"),
    ):
        assert send() is True
        assert next_message(receiver) == message


def test_reloading_carries_the_monotonic_time(manager):
    receiver, environ = manager
    before_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert Notifier(environ).reloading()
    first, second = next_message(receiver).split("\n")
    assert first == "RELOADING=1"
    assert (
        before_us <= int(second.removeprefix("MONOTONIC_USEC=")) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    )


def test_status_is_sent_at_most_once_a_second(manager):
    receiver, environ = manager
    now_s = 100.0
    notifier = Notifier(environ, lambda: now_s)
    results = []
    for step in range(31):
        now_s = 100 + step * 0.1
        results.append(notifier.status(f"{step}"))
    sent = [step for step, result in enumerate(results) if result]
    assert 3 <= len(sent) <= 4
    assert [next_message(receiver) for _ in sent] == [f"STATUS={step}" for step in sent]


def test_the_status_limit_delays_no_other_message(manager):
    receiver, environ = manager
    notifier = Notifier(environ, lambda: 7.0)
    assert [notifier.status("a"), notifier.status("b"), notifier.watchdog(), notifier.ready()] == [
        True,
        False,
        True,
        True,
    ]
    assert [next_message(receiver) for _ in range(3)] == ["STATUS=a", "WATCHDOG=1", "READY=1"]


@pytest.mark.parametrize("address", [None, "", "/nonexistent/notify", "@px-sidecar-unbound", "vsock:2:9999"])
def test_without_systemd_nothing_is_sent_and_nothing_fails(address):
    notifier = Notifier({} if address is None else {"NOTIFY_SOCKET": address})
    assert [notifier.ready(), notifier.status("x"), notifier.watchdog(), notifier.reloading()] == [False] * 4


def test_without_a_free_descriptor_nothing_is_sent_and_nothing_fails(manager, monkeypatch):
    _, environ = manager

    def no_descriptor(*_args):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("sidecar.systemd.socket.socket", no_descriptor)
    assert Notifier(environ).watchdog() is False


def test_a_full_queue_does_not_delay_the_watchdog(manager):
    receiver, environ = manager
    notifier = Notifier(environ)
    started_s = time.monotonic()
    results = [notifier.watchdog() for _ in range(100_000) if time.monotonic() - started_s < 1]
    assert False in results, "the queue did not fill"
    assert notifier.watchdog() is False
    next_message(receiver)
    assert notifier.watchdog() is True


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "3000000"}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_applies_only_to_this_pid(environ, seconds):
    assert watchdog_s(environ) == seconds


# Descriptors from 3 on belong to pytest here, so a child process inherits the sockets.
CHILD = textwrap.dedent("""
    import json, os, socket, sys
    from sidecar.errors import ConfigError
    from sidecar.systemd import inherited_sockets
    os.environ.update({key: value.replace("PID", str(os.getpid())) for key, value in json.loads(sys.argv[1]).items()})
    try:
        inherited = inherited_sockets()
    except ConfigError as error:
        sys.exit(str(error))
    print(json.dumps({
        "sockets": {name: [[sock.fileno(), sock.family.name, sock.getblocking(), sock.get_inheritable()] for sock in sockets]
                    for name, sockets in inherited.items()},
        "variables": [key for key in os.environ if key.startswith("LISTEN_")],
        "second_call": len(inherited_sockets()),
    }))
""")


def inherit(environ, *sockets):
    """Run the child with ``sockets`` as descriptors from 3 on; return its report, or its error message."""
    copies = [os.dup(sock.fileno()) for sock in sockets]
    high = [os.dup2(fd, 200 + index) for index, fd in enumerate(copies)]  # out of the way of the descriptors from 3 on

    def move_to_3():
        for index, fd in enumerate(high):
            os.dup2(fd, 3 + index)

    try:
        done = subprocess.run(
            [sys.executable, "-c", CHILD, json.dumps(environ)], capture_output=True, text=True, preexec_fn=move_to_3,
            pass_fds=range(3, 3 + len(sockets)), check=False,
        )  # fmt: skip
    finally:
        for fd in (*copies, *high):
            os.close(fd)
    return json.loads(done.stdout) if done.returncode == 0 else done.stderr.strip()


@pytest.fixture
def listeners(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "s"))
        unix.listen()
        yield unix, tcp


def test_sockets_are_named_non_blocking_and_not_inheritable(listeners):
    report = inherit({"LISTEN_PID": "PID", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "unix:http"}, *listeners)
    assert report == {
        "sockets": {"unix": [[3, "AF_UNIX", False, False]], "http": [[4, "AF_INET", False, False]]},
        "variables": [],
        "second_call": 0,
    }


def test_sockets_share_a_name_or_are_unknown_without_one(listeners):
    report = inherit({"LISTEN_PID": "PID", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "http:http"}, *listeners)
    assert [sock[0] for sock in report["sockets"]["http"]] == [3, 4]
    report = inherit({"LISTEN_PID": "PID", "LISTEN_FDS": "2"}, *listeners)
    assert [sock[0] for sock in report["sockets"]["unknown"]] == [3, 4]


@pytest.mark.parametrize(
    "environ", [{}, {"LISTEN_PID": "1", "LISTEN_FDS": "2"}, {"LISTEN_PID": "PID", "LISTEN_FDS": "x"}]
)
def test_sockets_of_another_process_are_ignored(listeners, environ):
    assert inherit(environ, *listeners) == {"sockets": {}, "variables": [], "second_call": 0}


def test_a_descriptor_that_does_not_listen_is_refused_by_name(listeners):
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram,
        socket.socket() as not_listening,
        open(os.devnull) as file,
    ):
        for invalid in (datagram, not_listening, file):
            message = inherit(
                {"LISTEN_PID": "PID", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "unix:http"}, listeners[0], invalid
            )
            assert message.startswith(
                "systemd handed over 'http' (descriptor 4), which is not a listening stream socket; use"
            )


@pytest.mark.skipif(shutil.which("systemd-socket-activate") is None, reason="systemd-socket-activate is not installed")
def test_sockets_of_systemd_socket_activate_are_understood(tmp_path):
    script = "from sidecar.systemd import inherited_sockets as s; f = s(); print(*f, flush=True); f['unix'][0].accept()[0].sendall(b'hi')"
    command = ["systemd-socket-activate", "-l", str(tmp_path / "a"), "-l", str(tmp_path / "b"), "--fdname=unix:http", sys.executable, "-c", script]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(500):
                if (tmp_path / "b").exists():
                    break
                time.sleep(0.01)
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(10)
                client.connect(str(tmp_path / "a"))
                assert client.recv(2) == b"hi"
            assert process.stdout.readline() == b"unix http\n"
        finally:
            process.kill()

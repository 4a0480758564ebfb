"""The protocol towards systemd, against sockets of our own; tests/systemd boots the real one."""

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
    """systemd's end of the notification socket, and what ``$NOTIFY_SOCKET`` says about it."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@px-sidecar-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(name.replace("@", "\0"))
        end.settimeout(5)
        yield end, {"NOTIFY_SOCKET": name}


def told(end):
    return end.recv(4096).decode()


def test_each_state_is_told_in_the_words_of_sd_notify(manager):
    end, environ = manager
    notifier = Notifier(environ)
    for tell, words in (
        (lambda: notifier.ready(), "READY=1"),
        (lambda: notifier.ready("accepting\nand delivering"), "READY=1\nSTATUS=accepting and delivering"),
        (lambda: notifier.stopping(), "STOPPING=1"),
        (lambda: notifier.stopping("3 in flight"), "STOPPING=1\nSTATUS=3 in flight"),
        (lambda: notifier.watchdog(), "WATCHDOG=1"),
        (lambda: notifier.status("ünïcode"), "STATUS=ünïcode"),
        (lambda: notifier.extend_timeout(1.5), "EXTEND_TIMEOUT_USEC=1500000"),
    ):
        assert tell() is True
        assert told(end) == words


def test_a_reload_carries_the_monotonic_time_at_which_it_began(manager):
    end, environ = manager
    before_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert Notifier(environ).reloading()
    first, second = told(end).split("\n")
    assert first == "RELOADING=1"
    assert (
        before_us <= int(second.removeprefix("MONOTONIC_USEC=")) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    )


def test_status_is_told_at_most_once_a_second(manager):
    end, environ = manager
    now_s = 100.0
    notifier = Notifier(environ, lambda: now_s)
    results = []
    for step in range(31):
        now_s = 100 + step * 0.1
        results.append(notifier.status(f"{step}"))
    sent = [step for step, result in enumerate(results) if result]
    assert 3 <= len(sent) <= 4
    assert [told(end) for _ in sent] == [f"STATUS={step}" for step in sent]


def test_the_limit_on_status_holds_back_nothing_else(manager):
    end, environ = manager
    notifier = Notifier(environ, lambda: 7.0)
    assert [notifier.status("a"), notifier.status("b"), notifier.watchdog(), notifier.ready()] == [
        True,
        False,
        True,
        True,
    ]
    assert [told(end) for _ in range(3)] == ["STATUS=a", "WATCHDOG=1", "READY=1"]


@pytest.mark.parametrize("address", [None, "", "/nonexistent/notify", "@px-sidecar-nobody", "vsock:2:9999"])
def test_without_a_manager_nothing_is_told_and_nothing_fails(address):
    notifier = Notifier({} if address is None else {"NOTIFY_SOCKET": address})
    assert [notifier.ready(), notifier.status("x"), notifier.watchdog(), notifier.reloading()] == [False] * 4


def test_a_full_queue_does_not_hold_up_the_watchdog(manager):
    end, environ = manager
    notifier = Notifier(environ)
    began = time.monotonic()
    results = [notifier.watchdog() for _ in range(100_000) if time.monotonic() - began < 1]
    assert False in results, "the queue did not fill"
    assert notifier.watchdog() is False
    told(end)
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
def test_the_watchdog_is_ours_only_with_our_pid(environ, seconds):
    assert watchdog_s(environ) == seconds


# Descriptors from 3 on are pytest's own here, so inheriting is tried in a process of its own.
CHILD = textwrap.dedent("""
    import json, os, socket, sys
    from sidecar.errors import ConfigError
    from sidecar.systemd import inherited_sockets
    os.environ.update({key: value.replace("PID", str(os.getpid())) for key, value in json.loads(sys.argv[1]).items()})
    try:
        found = inherited_sockets()
    except ConfigError as error:
        sys.exit(str(error))
    print(json.dumps({
        "found": {name: [[one.fileno(), one.family.name, one.getblocking(), one.get_inheritable()] for one in sockets]
                  for name, sockets in found.items()},
        "left": [key for key in os.environ if key.startswith("LISTEN_")],
        "again": len(inherited_sockets()),
    }))
""")


def inherit(environ, *sockets):
    """The child's account of what it found, with ``sockets`` as its descriptors from 3 on."""
    wanted = [os.dup(one.fileno()) for one in sockets]
    high = [os.dup2(fd, 200 + index) for index, fd in enumerate(wanted)]

    def place():
        for index, fd in enumerate(high):
            os.dup2(fd, 3 + index)

    try:
        done = subprocess.run(
            [sys.executable, "-c", CHILD, json.dumps(environ)], capture_output=True, text=True, preexec_fn=place,
            pass_fds=range(3, 3 + len(sockets)), check=False,
        )  # fmt: skip
    finally:
        for fd in (*wanted, *high):
            os.close(fd)
    return json.loads(done.stdout) if done.returncode == 0 else done.stderr.strip()


@pytest.fixture
def listeners(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
        unix.bind(str(tmp_path / "s"))
        unix.listen()
        yield unix, tcp


def test_sockets_are_found_by_name_non_blocking_and_for_us_alone(listeners):
    report = inherit({"LISTEN_PID": "PID", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "unix:http"}, *listeners)
    assert report == {
        "found": {"unix": [[3, "AF_UNIX", False, False]], "http": [[4, "AF_INET", False, False]]},
        "left": [],
        "again": 0,
    }


def test_sockets_of_one_name_come_together_and_without_names_they_are_unknown(listeners):
    report = inherit({"LISTEN_PID": "PID", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "http:http"}, *listeners)
    assert [one[0] for one in report["found"]["http"]] == [3, 4]
    report = inherit({"LISTEN_PID": "PID", "LISTEN_FDS": "2"}, *listeners)
    assert [one[0] for one in report["found"]["unknown"]] == [3, 4]


@pytest.mark.parametrize(
    "environ", [{}, {"LISTEN_PID": "1", "LISTEN_FDS": "2"}, {"LISTEN_PID": "PID", "LISTEN_FDS": "x"}]
)
def test_sockets_for_another_process_are_left_alone_but_not_passed_on(listeners, environ):
    assert inherit(environ, *listeners) == {"found": {}, "left": [], "again": 0}


def test_what_is_not_a_listening_stream_socket_is_refused_by_name(listeners):
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram,
        socket.socket() as silent,
        open(os.devnull) as file,
    ):
        for odd in (datagram, silent, file):
            message = inherit(
                {"LISTEN_PID": "PID", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "unix:http"}, listeners[0], odd
            )
            assert message.startswith(
                "systemd handed over 'http' (descriptor 4), which is not a listening stream socket; use"
            )


@pytest.mark.skipif(shutil.which("systemd-socket-activate") is None, reason="systemd-socket-activate is not installed")
def test_systemd_socket_activate_hands_over_what_we_understand(tmp_path):
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

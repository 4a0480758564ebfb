"""Codes and tokens, the guard of every request, and what may be shown on a screen that others can see."""

import os
import signal
import sys
from functools import partial

import pytest
import trio
import trio.testing

from sidecar.cli.console import _host_port, new_code_upon_enter, serve_console
from sidecar.config import ConfigFile
from sidecar.console import Console, Options
from sidecar.console.guard import Guard, headers
from sidecar.console.session import CODE_S, IDLE_S, MAX_WRONG, Sessions, TooManyGuesses
from sidecar.console.upstream import SHOWN, Upstream, hide
from sidecar.control.openapi import CALLS
from sidecar.http import Request, Response, serve_connection


def test_a_code_works_once():
    sessions = Sessions(0)
    code = sessions.new_code(0)
    token = sessions.redeem(code, 1)
    assert token
    assert sessions.use(token, 2)
    assert sessions.redeem(code, 3) is None


def test_a_code_expires():
    sessions = Sessions(0)
    assert sessions.redeem(sessions.new_code(0), CODE_S + 1) is None


def test_each_page_has_a_token_of_its_own():
    sessions = Sessions(0)
    first, second = (sessions.redeem(sessions.new_code(0), 0) for _ in range(2))
    assert first != second
    assert sessions.use(first, 0)
    assert sessions.use(second, 0)


def test_an_unknown_token_is_refused_and_does_not_count_as_use():
    sessions = Sessions(0)
    assert not sessions.use("x", 100)
    assert not sessions.use("\ud800", 100)
    assert sessions.idle_s(100) == 100


def test_a_console_ends_after_half_an_hour_without_use():
    async def main() -> float:
        page = Console(Options("control.sock", ConfigFile("config.toml", {})))
        began_s = trio.current_time()
        await page.run()
        return trio.current_time() - began_s

    assert trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.01)) == IDLE_S


def test_the_verb_ends_with_an_idle_console(monkeypatch, capsys):
    """While its terminal is open and nothing is typed."""
    reader, writer = os.pipe()
    before = signal.getsignal(signal.SIGTTIN)
    options = Options("control.sock", ConfigFile("config.toml", {}))
    with open(reader) as typed:
        monkeypatch.setattr(sys, "stdin", typed)
        try:
            clock = trio.testing.MockClock(autojump_threshold=0.05)
            trio.run(serve_console, options, False, clock=clock)
        finally:
            os.close(writer)
            signal.signal(signal.SIGTTIN, before)
    printed = capsys.readouterr()
    assert printed.out.startswith("Console: http://127.0.0.1:")
    assert "ended after half an hour without use" in printed.err


def test_a_line_that_is_not_text_prints_a_new_address(tmp_path, monkeypatch, capsys):
    """Bytes that are not UTF-8 ended the console with a traceback where the locale is a UTF-8 one of a language."""

    class Page:
        def url(self):
            return "http://127.0.0.1:1/#code=x"

    lines = tmp_path / "lines"
    lines.write_bytes(b"\xff\n\n")
    before = signal.getsignal(signal.SIGTTIN)
    with lines.open(encoding="utf-8") as typed:
        monkeypatch.setattr(sys, "stdin", typed)
        try:
            trio.run(new_code_upon_enter, Page())
        finally:
            signal.signal(signal.SIGTTIN, before)
    assert capsys.readouterr().out.count("Console: http://127.0.0.1:1/#code=x\n") == 2


def test_guessing_is_stopped_for_a_minute():
    sessions = Sessions(0)
    for _ in range(MAX_WRONG):
        assert sessions.redeem("wrong", 0) is None
    code = sessions.new_code(0)
    with pytest.raises(TooManyGuesses):
        sessions.redeem(code, 59)
    assert sessions.redeem(code, 61)


def request(method: str = "GET", **given: str) -> Request:
    sent = {"host": "127.0.0.1:8330"} | {name.replace("_", "-"): value for name, value in given.items()}
    pairs = [(name.encode(), value.encode()) for name, value in sent.items() if value]
    return Request(method, "/", "", pairs, b"", "1.1", True)


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({}, None),
        ({"host": "localhost:8330", "origin": "http://localhost:8330", "sec_fetch_site": "same-origin"}, None),
        ({"sec_fetch_site": "none"}, None),
        ({"method": "POST", "content_type": "application/json; charset=utf-8"}, None),
        ({"host": "evil.example:8330"}, 403),
        ({"host": "127.0.0.1:8331"}, 403),
        ({"host": "127.0.0.1"}, 403),
        ({"host": ""}, 403),
        ({"origin": "http://127.0.0.1:8331"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "https://127.0.0.1:8330"}, 403),
        ({"sec_fetch_site": "cross-site"}, 403),
        ({"sec_fetch_site": "same-site"}, 403),
        ({"method": "TRACE"}, 405),
        ({"method": "CONNECT"}, 405),
        ({"method": "OPTIONS"}, 405),
        ({"method": "PUT"}, 405),
        ({"method": "POST"}, 415),
        ({"method": "POST", "content_type": "text/plain"}, 415),
        ({"method": "POST", "content_type": "application/x-www-form-urlencoded"}, 415),
    ],
)
def test_only_requests_of_the_own_page_are_looked_at(given, status):
    refusal = Guard("127.0.0.1", 8330).refusal(request(**given))
    assert (refusal and refusal[0]) == status


def test_two_host_headers_are_refused():
    twice = request()
    twice.headers.append((b"host", b"127.0.0.1:8330"))
    assert Guard("127.0.0.1", 8330).refusal(twice) is not None


def test_another_address_admits_itself_only():
    guard = Guard("192.0.2.7", 8330)
    assert guard.refusal(request(host="192.0.2.7:8330")) is None
    assert guard.refusal(request(host="127.0.0.1:8330")) is not None


@pytest.mark.parametrize(
    ("given", "host", "sent"),
    [
        ("MyHost.Example:8330", "myhost.example", "myhost.example:8330"),
        ("[FD00::0:A]:8330", "fd00::a", "[fd00::a]:8330"),
        ("[0:0:0:0:0:0:0:1]:8330", "::1", "[::1]:8330"),
        ("127.1:8330", "127.0.0.1", "127.0.0.1:8330"),
        ("0:8330", "0.0.0.0", "192.0.2.7:8330"),
    ],
)
def test_an_address_is_that_which_browsers_send(given, host, sent):
    """The page of the printed address was refused, because "the Host header names another server"."""
    assert _host_port(given) == (host, 8330)
    assert Guard(host, 8330).refusal(request(host=sent)) is None


def test_every_loopback_address_admits_what_a_tunnel_leads_to():
    guard = Guard("127.0.0.2", 8330)
    assert guard.refusal(request(host="127.0.0.2:8330", origin="http://127.0.0.2:8330")) is None
    assert guard.refusal(request(host="127.0.0.1:8330")) is None


@pytest.mark.parametrize(
    ("host", "origin", "is_admitted"),
    [
        ("192.0.2.7:8330", "http://192.0.2.7:8330", True),
        ("[2001:db8::7]:8330", "", True),
        ("localhost:8330", "http://localhost:8330", True),
        ("192.0.2.7:8330", "http://192.0.2.8:8330", False),
        ("192.0.2.7:8331", "", False),
        ("rebound.example:8330", "", False),
        ("rebound.example:8330", "http://rebound.example:8330", False),
        ("192.0.2.7.rebound.example:8330", "", False),
        ("", "", False),
    ],
)
def test_a_console_at_every_address_admits_addresses_but_no_names(host, origin, is_admitted):
    """It admitted ``0.0.0.0`` alone, so that the page could be opened from no other host."""
    refusal = Guard("0.0.0.0", 8330).refusal(request(host=host, origin=origin))
    assert (refusal is None) == is_admitted


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_the_port_that_browsers_leave_out_may_be_missing(address):
    """A console at port 80 answered 403 to every browser."""
    guard = Guard(address, 80)
    for host in ("127.0.0.1", "127.0.0.1:80", "[::1]", "localhost"):
        assert guard.refusal(request(host=host, origin=f"http://{host}")) is None
    for host in ("127.0.0.1:8330", "rebound.example"):
        assert guard.refusal(request(host=host)) is not None


def test_nothing_inline_is_allowed():
    policy = dict(headers())["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "require-trusted-types-for 'script'" in policy


def test_hidden_answers_hold_names_states_and_counts_only():
    event = {
        "id": 1,
        "what": "delivered",
        "name": "Opened",
        "user": "ann",
        "event": {"a": 1},
        "payload": {},
        "detail": "x",
    }
    assert hide("/v1/live", event) == {"id": 1, "what": "delivered", "name": "Opened"}
    assert hide("/v1/events", {"events": [event], "next": None})["events"] == [
        {"id": 1, "what": "delivered", "name": "Opened"}
    ]
    group = {"reason": "refused", "name": "Opened", "status": 400, "count": 3, "detail": "ann@example.com"}
    assert hide("/v1/dead/groups", {"groups": [group], "dead": 3})["groups"] == [group | {"detail": ""}]
    spoken = "User ann@example.com had 900 events today; PX drops what is beyond 1,000."
    status = {
        "pending": 1,
        "last_problem": {"message": "ann"},
        "slowest_user": {"user": "ann"},
        "refused": {"last_message": "ann"},
    }
    status |= {"reasons": ["The disk of /srv/my app/outbox.db is full."], "outbox": {"path": "/srv/my app/outbox.db"}}
    status |= {"warnings": [spoken], "problems": [{"severity": "limit", "message": spoken}]}
    shown = hide("/v1/status", status)
    assert "ann" not in str(shown)
    assert shown["reasons"] == ["The disk of … is full."]
    assert shown["problems"] == [{"severity": "limit", "message": spoken.replace("ann@example.com", "…")}]
    assert (shown["pending"], shown["last_problem"]) == (1, None)
    assert hide("/v1/series", {"seconds": 1}) == {"seconds": 1}


def test_every_shown_call_exists():
    assert CALLS.keys() >= SHOWN


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_stream_that_the_daemon_cuts_off_is_passed_on_as_cut_off(tmp_path, is_whole):
    """A download of dead letters must not look complete because the daemon ended in the middle of it."""
    path = tmp_path / "control.sock"
    answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{}\n\r\n" + (b"0\r\n\r\n" if is_whole else b"")

    async def daemon(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(answer)
        await stream.aclose()

    async def handler(_request: Request) -> Response:
        return await Upstream(str(path), read_only=True).pass_on(
            Request("GET", "/v1/dead/export", "", [], b"", "1.1", True), "/v1/dead/export", lambda: None
        )

    async def main() -> bytes:
        listening = trio.socket.socket(trio.socket.AF_UNIX)
        await listening.bind(str(path))
        listening.listen()
        browser, server = trio.testing.memory_stream_pair()
        errors: list[BaseException] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, daemon, [trio.SocketListener(listening)])
            nursery.start_soon(partial(serve_connection, server, handler, on_error=lambda e, _: errors.append(e)))
            await browser.send_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            received = b""
            while data := await browser.receive_some():
                received += data
                if is_whole and received.endswith(b"0\r\n\r\n"):
                    break
            nursery.cancel_scope.cancel()
        assert not errors
        return received

    received = trio.run(main)
    assert b"3\r\n{}\n\r\n" in received
    assert received.endswith(b"0\r\n\r\n") == is_whole

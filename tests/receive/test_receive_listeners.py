"""Listening sockets: bound or inherited, never taken from a live process; each error is one sentence."""

import contextlib
import grp
import os
import re
import resource
import socket
import ssl
import stat
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trio
import trustme

from sidecar.config import ListenConfig, load_text
from sidecar.config.schema import MAX_SOCKET_PATH_BYTES, ValueRefused
from sidecar.errors import ConfigError, Failed, SidecarError
from sidecar.receive import (
    BoundSockets,
    bind_control,
    bind_control_read,
    bind_events,
    bind_listeners,
    keep_open,
    raise_descriptor_limit,
    watch_inherited,
)
from sidecar.receive.listeners import renew_certificate


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.sock"


def only_unix(path: Path, **more) -> ListenConfig:
    return ListenConfig(http="", unix=str(path), **more)


@contextlib.contextmanager
def bound(listen: ListenConfig, inherited=None) -> Iterator[BoundSockets]:
    sockets = bind_listeners(listen, inherited or {})
    try:
        yield sockets
    finally:
        sockets.close()


def refusal(listen: ListenConfig, inherited=None, *, kind: type[SidecarError] = Failed) -> str:
    """The message of the error that binding raises; asserts that it is one sentence."""
    with pytest.raises(kind) as caught:
        bind_listeners(listen, inherited or {})
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message
    return message


@pytest.fixture
def listening() -> Iterator:
    """A function that makes listening sockets of another owner; they are closed at the end."""
    with contextlib.ExitStack() as stack:

        def make(address, family=socket.AF_INET, backlog=5) -> socket.socket:
            listener = stack.enter_context(socket.socket(family))
            listener.bind(address)
            listener.listen(backlog)
            return listener

        yield make


def connect(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


# The Unix socket ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["0660", "0600", "0666", "777"])
def test_unix_socket_has_its_configured_mode_under_any_umask(path, mode):
    before = os.umask(0o077)
    try:
        with bound(only_unix(path, unix_mode=mode)):
            assert stat.S_IMODE(path.stat().st_mode) == int(mode, 8)
            connect(path)
    finally:
        os.umask(before)


def test_unix_socket_belongs_to_its_configured_group(path):
    group = next(group for group in grp.getgrall() if group.gr_gid != os.getgid())
    if os.getuid() != 0 and group.gr_gid not in os.getgroups():
        assert "make it a member of the group" in refusal(only_unix(path, unix_group=group.gr_name))
        return
    with bound(only_unix(path, unix_group=group.gr_name)):
        assert path.stat().st_gid == group.gr_gid


def test_unknown_group_is_reported(path):
    assert "listen.unix_group = no-such-group: the group does not exist" in refusal(
        only_unix(path, unix_group="no-such-group")
    )
    assert list(path.parent.iterdir()) == []


def test_control_socket_admits_only_its_owner(tmp_path):
    path = tmp_path / "deep" / "control.sock"
    with bind_control(ListenConfig(control=str(path))) as listener:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert listener.getblocking() is False
    assert not path.exists()


def test_no_file_is_left_behind(path):
    with bound(only_unix(path)):
        assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert list(path.parent.iterdir()) == []


def test_no_file_is_left_behind_after_an_error(path):
    with pytest.raises(ZeroDivisionError), bind_control(ListenConfig(control=str(path))):
        raise ZeroDivisionError
    assert list(path.parent.iterdir()) == []


def test_stale_socket_is_replaced(path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with bound(only_unix(path)):
        connect(path)


def test_a_unix_socket_is_listed_by_the_kernel_under_its_own_path(path):
    """It was bound under another name and renamed: systemd-tmpfiles took it for dead and removed it."""
    with bound(only_unix(path)):
        assert str(path) in Path("/proc/net/unix").read_text().split()


async def test_a_path_that_vanished_is_opened_again(path, autojump_clock):
    with contextlib.ExitStack() as stack:
        stack.enter_context(bind_events(only_unix(path)))
        reopened: list[socket.socket] = []
        async with trio.open_nursery() as nursery:
            bind = partial(bind_events, only_unix(path))
            nursery.start_soon(keep_open, str(path), bind, reopened.append, stack)
            await trio.sleep(5)
            assert reopened == []
            for times in (1, 2):
                path.unlink()
                await trio.sleep(2)
                assert len(reopened) == times
                connect(path)
                reopened[-1].accept()[0].close()
            path.unlink()
            path.write_text("of another owner")
            await trio.sleep(5)
            assert len(reopened) == 2
            nursery.cancel_scope.cancel()
    assert path.read_text() == "of another owner"


async def test_an_inherited_path_that_vanished_is_reported_with_what_to_do(tmp_path, listening, autojump_clock):
    plain, instance = tmp_path / "events.sock", tmp_path / "events-shop.sock"
    listeners = [
        listening(str(plain), socket.AF_UNIX),
        listening(str(instance), socket.AF_UNIX),
        listening(("127.0.0.1", 0)),
    ]
    reports: list[list[str]] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch_inherited, listeners, reports.append)
        await trio.sleep(3)
        plain.chmod(0o600)
        await trio.sleep(3)
        assert reports == []
        plain.unlink()
        await trio.sleep(2)
        assert "systemctl restart px-sidecar.socket`" in reports[-1][0]
        instance.unlink()
        listening(str(instance), socket.AF_UNIX)  # another owner's
        await trio.sleep(2)
        assert "systemctl restart px-sidecar@shop.socket`" in reports[-1][1]
        nursery.cancel_scope.cancel()


def names(monkeypatch, *addresses: str) -> None:
    """Have every host name resolve to these addresses."""

    def getaddrinfo(host, port, *_args, **_more):
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, port, 0, 0))
            if ":" in address
            else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in addresses
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def test_a_host_name_opens_every_address_that_it_has(monkeypatch):
    names(monkeypatch, "127.0.0.1", "127.0.0.2", "127.0.0.1", "2001:db8::1")
    with bound(ListenConfig(http="localhost:0", unix="", allow_remote=True)) as sockets:
        addresses = [listener.getsockname() for listener in sockets.http]
        assert [host for host, _ in addresses] == ["127.0.0.1", "127.0.0.2"]
        assert len({port for _, port in addresses}) == 1
        assert sockets.names() == [f"{host}:{port}" for host, port in addresses]


def test_a_name_with_an_address_that_others_reach_is_refused(monkeypatch):
    names(monkeypatch, "127.0.0.1", "192.0.2.1")
    message = refusal(ListenConfig(http="localhost:0", unix=""), kind=ConfigError)
    assert "has the address 192.0.2.1, which other hosts can reach" in message


def test_a_name_of_the_hosts_file_may_lead_to_loopback(monkeypatch):
    """The schema refused every name but its own list, so that no name in listen.http could be a Host of its own."""
    names(monkeypatch, "127.0.0.1")
    listen = load_text("[listen]\nhttp = 'PX.internal.:0'\nunix = ''").listen
    assert listen.hosts() == {"px.internal"}
    with bound(listen) as sockets:
        assert [listener.getsockname()[0] for listener in sockets.http] == ["127.0.0.1"]


def test_a_name_without_a_usable_address_is_refused(monkeypatch):
    names(monkeypatch, "192.0.2.1")
    assert "choose an address of this host" in refusal(ListenConfig(http="localhost:0", unix="", allow_remote=True))


def test_the_control_socket_for_reading_is_open_to_its_folders_group(tmp_path):
    path = tmp_path / "control-read.sock"
    with bind_control_read(ListenConfig(control_read=str(path))) as listener:
        assert listener is not None
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
    with bind_control_read(ListenConfig()) as listener:
        assert listener is None


def test_live_socket_is_not_taken(path, listening):
    alive = listening(str(path), socket.AF_UNIX)
    assert refusal(only_unix(path)).startswith(f"Another process listens on {path}")
    connect(path)
    alive.accept()[0].close()


def test_live_socket_with_a_full_queue_is_not_taken(path, listening):
    listening(str(path), socket.AF_UNIX, backlog=0)
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(str(path))
        assert refusal(only_unix(path)).startswith(f"Another process listens on {path}")


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, lambda path: path.symlink_to("/nowhere")])
def test_other_kinds_of_files_are_not_replaced(path, make):
    make(path)
    assert "exists and is not a socket" in refusal(only_unix(path))
    assert path.is_dir() or path.is_symlink() or path.is_file()


def test_longest_path_works_and_a_longer_one_is_refused(tmp_path):
    name_bytes = MAX_SOCKET_PATH_BYTES - len(os.fsencode(tmp_path)) - 1
    longest = tmp_path / ("s" * name_bytes)
    with bound(only_unix(longest)):
        connect(longest)
    with pytest.raises(ValueRefused, match="at most 107 bytes"):
        only_unix(tmp_path / ("s" * (name_bytes + 1)))


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_folder_that_is_not_writable_is_reported(tmp_path):
    tmp_path.chmod(0o500)
    assert "create its folder, and let this user write there" in refusal(only_unix(tmp_path / "s.sock"))


def test_folder_that_is_a_file_is_reported(tmp_path):
    (tmp_path / "file").touch()
    assert "cannot be created" in refusal(only_unix(tmp_path / "file" / "s.sock"))


def test_closing_leaves_the_path_of_a_newer_process(path):
    older = bind_listeners(only_unix(path), {})
    path.unlink()
    with bound(only_unix(path)):
        older.close()
        assert path.is_socket()
        connect(path)


# TCP ----------------------------------------------------------------------------------------------------------


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def test_configured_address_accepts_connections(path):
    with bound(ListenConfig(http="127.0.0.1:0", unix="")) as sockets:
        (listener,) = sockets.http
        assert listener.getsockname()[0] == "127.0.0.1"
        assert listener.getblocking() is False
        socket.create_connection(listener.getsockname()).close()


def test_address_can_be_bound_again_at_once(listening):
    address = free_address()
    host, port = address.split(":")
    for _ in range(3):
        with bound(ListenConfig(http=address, unix="")) as sockets, socket.create_connection((host, int(port))):
            accepted = accept_soon(sockets.http[0])
            assert accepted.getsockname() == (host, int(port))
            accepted.close()  # leaves TIME_WAIT on our side


def accept_soon(listener: socket.socket) -> socket.socket:
    listener.settimeout(5)
    return listener.accept()[0]


def test_occupied_address_is_reported(listening):
    host, port = listening(("127.0.0.1", 0)).getsockname()
    assert (
        refusal(ListenConfig(http=f"{host}:{port}", unix=""))
        == f"listen.http = {host}:{port} cannot be opened: another process listens there; stop it or choose another port."
    )


def test_address_of_another_host_is_reported():
    message = refusal(ListenConfig(http="203.0.113.7:8321", unix="", allow_remote=True))
    assert "listen.http = 203.0.113.7:8321 cannot be opened" in message
    assert "choose an address of this host" in message


def test_unknown_host_is_reported():
    assert "choose an address of this host" in refusal(
        ListenConfig(http="no.such.host.invalid:1", unix="", allow_remote=True)
    )


def test_bound_sockets_are_closed_when_another_fails(path):
    path.mkdir()
    address = free_address()
    refusal(ListenConfig(http=address, unix=str(path)))
    with bound(ListenConfig(http=address, unix="")) as sockets:
        assert len(sockets.http) == 1


def test_no_listener_is_an_error():
    assert "nothing to listen on" in refusal(ListenConfig(http="", unix=""), kind=ConfigError)


# Inherited sockets --------------------------------------------------------------------------------------------


def test_inherited_sockets_replace_configured_and_stay_linked(path, listening):
    unix, http = listening(str(path), socket.AF_UNIX), listening(("127.0.0.1", 0))
    host, port = http.getsockname()
    with bound(ListenConfig(http=f"{host}:{port}", unix=str(path)), {"unix": [unix], "http": [http]}) as sockets:
        assert (sockets.unix, sockets.http) == ([unix], [http])
    assert path.is_socket()


def test_all_inherited_sockets_of_one_name_are_used(listening):
    two = [listening(("127.0.0.1", 0)), listening(("::1", 0, 0, 0), socket.AF_INET6)]
    with bound(ListenConfig(http="", unix=""), {"http": two}) as sockets:
        assert sockets.http == two


def test_unnamed_sockets_are_assigned_by_their_family(path, listening):
    unix, http = listening(str(path), socket.AF_UNIX), listening(("127.0.0.1", 0))
    with bound(ListenConfig(http="", unix=""), {"unknown": [unix, http]}) as sockets:
        assert (sockets.unix, sockets.http) == ([unix], [http])


def test_listeners_that_are_not_inherited_are_bound(path, listening):
    http = listening(("127.0.0.1", 0))
    with bound(only_unix(path), {"http": [http]}) as sockets:
        assert sockets.http == [http]
        connect(path)


def test_inherited_socket_with_an_unknown_name_is_an_error(listening):
    message = refusal(ListenConfig(http="", unix=""), {"px.socket": [listening(("127.0.0.1", 0))]}, kind=ConfigError)
    assert "'px.socket'" in message
    assert "FileDescriptorName=" in message


@pytest.mark.parametrize("name", ["http", "https"])
def test_inherited_path_under_an_address_name_is_refused(path, listening, name):
    message = refusal(ListenConfig(http="", unix=""), {name: [listening(str(path), socket.AF_UNIX)]}, kind=ConfigError)
    assert message.startswith(f"systemd handed over {path} with the name '{name}'")


def test_inherited_address_under_the_name_unix_is_refused(listening):
    """Its clients would be exempt from the checks of write keys, Host and Origin."""
    message = refusal(ListenConfig(http="", unix=""), {"unix": [listening(("127.0.0.1", 0))]}, kind=ConfigError)
    assert re.match(r"systemd handed over 127.0.0.1:\d+ with the name 'unix'", message)


@pytest.mark.parametrize(
    ("family", "where"),
    [(socket.AF_INET, ("0.0.0.0", 0)), (socket.AF_INET6, ("::", 0, 0, 0))],
)
def test_inherited_remote_address_needs_allow_remote(listening, family, where):
    message = refusal(ListenConfig(http="", unix=""), {"http": [listening(where, family)]}, kind=ConfigError)
    assert "which other hosts can reach" in message
    listener = listening(where, family)
    with bound(ListenConfig(http="", unix="", allow_remote=True), {"http": [listener]}) as sockets:
        assert sockets.http == [listener]


def test_inherited_https_needs_a_certificate(listening):
    message = refusal(ListenConfig(http="", unix=""), {"https": [listening(("127.0.0.1", 0))]}, kind=ConfigError)
    assert "listen.tls_cert and listen.tls_key" in message


# TLS ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pem(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    issued = trustme.CA().issue_cert("localhost")
    issued.private_key_and_cert_chain_pem.write_to_path(folder / "both.pem")
    (folder / "odd.pem").write_text("not a certificate")
    other = trustme.CA().issue_cert("localhost")
    other.private_key_pem.write_to_path(folder / "other.key")
    command = ["openssl", "pkey", "-in", str(folder / "both.pem"), "-aes256", "-passout", "pass:x"]
    subprocess.run([*command, "-out", str(folder / "locked.key")], check=True, capture_output=True)
    return folder


def test_renewal_serves_a_new_certificate_but_not_half_a_pair(tmp_path):
    pair, old, new = tmp_path / "both.pem", *(trustme.CA() for _ in range(2))
    old.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(pair)
    listen = https(pair, pair)
    with bound(listen) as sockets:
        assert handshake_succeeds(sockets, old)
        new.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(pair)
        assert handshake_succeeds(sockets, old)
        renew_certificate(sockets, listen)
        assert handshake_succeeds(sockets, new)
        assert not handshake_succeeds(sockets, old)
        pair.write_bytes(old.issue_cert("localhost").cert_chain_pems[0].bytes())  # its key is not written yet
        with pytest.raises(ConfigError, match="cannot be used"):
            renew_certificate(sockets, listen)
        assert handshake_succeeds(sockets, new)


def test_renewal_without_https_does_nothing(tmp_path):
    listen = ListenConfig(http="", unix=str(tmp_path / "a.sock"))
    with bound(listen) as sockets:
        renew_certificate(sockets, listen)
        assert sockets.tls is None


def handshake_succeeds(sockets: BoundSockets, authority: trustme.CA) -> bool:
    """Return whether a client that trusts only this authority completes a handshake."""
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    (client_in, client_out), (server_in, server_out) = ((ssl.MemoryBIO(), ssl.MemoryBIO()) for _ in range(2))
    assert sockets.tls is not None
    server = sockets.tls.wrap_bio(server_in, server_out, server_side=True)
    client = trust.wrap_bio(client_in, client_out, server_hostname="localhost")
    for _ in range(5):
        for side in (client, server):
            try:
                with contextlib.suppress(ssl.SSLWantReadError):
                    side.do_handshake()
            except ssl.SSLCertVerificationError:
                return False
            server_in.write(client_out.read())
            client_in.write(server_out.read())
    return client.version() is not None


def https(cert: Path, key: Path) -> ListenConfig:
    return ListenConfig(http="", unix="", https="127.0.0.1:0", tls_cert=str(cert), tls_key=str(key))


def test_https_is_bound_with_a_tls_context(pem):
    with bound(https(pem / "both.pem", pem / "both.pem")) as sockets:
        assert len(sockets.https) == 1
        assert sockets.tls is not None


@pytest.mark.parametrize(
    ("cert", "key", "word"),
    [
        ("absent.pem", "both.pem", "No such file"),
        ("odd.pem", "both.pem", "cannot be used"),
        ("both.pem", "odd.pem", "cannot be used"),
        ("both.pem", "other.key", "cannot be used"),
        ("both.pem", "locked.key", "is encrypted"),
    ],
)
def test_unusable_certificate_or_key_is_reported(pem, cert, key, word):
    assert word in refusal(https(pem / cert, pem / key), kind=ConfigError)


# Limits -------------------------------------------------------------------------------------------------------


def test_soft_descriptor_limit_is_raised_to_the_hard_one():
    script = (
        "import resource as r; from sidecar.receive import raise_descriptor_limit as f;"
        "r.setrlimit(r.RLIMIT_NOFILE, (64, r.getrlimit(r.RLIMIT_NOFILE)[1]));"
        "print(f(), *r.getrlimit(r.RLIMIT_NOFILE))"
    )
    limits = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert len(set(limits)) == 1
    assert int(limits[0]) >= 64


def test_descriptor_limit_is_kept_where_raising_is_forbidden(monkeypatch):
    def refuse(*_arguments):
        raise ValueError("not allowed")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert raise_descriptor_limit() == resource.getrlimit(resource.RLIMIT_NOFILE)[0]

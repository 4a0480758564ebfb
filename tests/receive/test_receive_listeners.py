"""Where events come in: who may bind, who is refused, whose socket is left alone, and every error in one sentence."""

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
from pathlib import Path

import pytest
import trustme

from sidecar.config import Listen
from sidecar.errors import ConfigError, Failed, SidecarError
from sidecar.receive import Opened, bind_control, bind_listeners, raise_descriptor_limit
from sidecar.receive.listeners import PATH_MAX_BYTES, _bound_unix, renew_certificate


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.sock"


def only_unix(path: Path, **more) -> Listen:
    return Listen(http="", unix=str(path), **more)


@contextlib.contextmanager
def opened(listen: Listen, inherited=None):
    found = bind_listeners(listen, inherited or {})
    try:
        yield found
    finally:
        found.close()


def why_not(listen: Listen, inherited=None, *, kind: type[SidecarError] = Failed) -> str:
    """The one sentence with which it is refused."""
    with pytest.raises(kind) as caught:
        bind_listeners(listen, inherited or {})
    said = str(caught.value)
    assert said.endswith(".")
    assert "\n" not in said
    return said


@pytest.fixture
def listening() -> Iterator:
    """Makes listening sockets that others hold; closed at the end."""
    with contextlib.ExitStack() as stack:

        def make(where, family=socket.AF_INET, backlog=5) -> socket.socket:
            one = stack.enter_context(socket.socket(family))
            one.bind(where)
            one.listen(backlog)
            return one

        yield make


def connect(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


# The Unix socket ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["0660", "0600", "0666", "777"])
def test_the_unix_socket_has_the_mode_it_should_whatever_the_umask(path, mode):
    before = os.umask(0o077)
    try:
        with opened(only_unix(path, unix_mode=mode)):
            assert stat.S_IMODE(path.stat().st_mode) == int(mode, 8)
            connect(path)
    finally:
        os.umask(before)


def test_its_group_is_the_one_that_is_named(path):
    group = next(one for one in grp.getgrall() if one.gr_gid != os.getgid())
    if os.getuid() != 0 and group.gr_gid not in os.getgroups():
        assert "make it a member of it" in why_not(only_unix(path, unix_group=group.gr_name))
        return
    with opened(only_unix(path, unix_group=group.gr_name)):
        assert path.stat().st_gid == group.gr_gid


def test_a_group_that_is_not_there_is_told(path):
    assert "listen.unix_group = no-such-group: there is no such group" in why_not(
        only_unix(path, unix_group="no-such-group")
    )
    assert list(path.parent.iterdir()) == []


def test_the_control_socket_is_for_our_own_user_only(tmp_path):
    path = tmp_path / "deep" / "control.sock"
    with bind_control(Listen(control=str(path))) as one:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert one.getblocking() is False
    assert not path.exists()


def test_nothing_is_left_behind(path):
    with opened(only_unix(path)):
        assert [one.name for one in path.parent.iterdir()] == [path.name]
    assert list(path.parent.iterdir()) == []


def test_nothing_is_left_behind_when_it_ends_by_an_error(path):
    with pytest.raises(ZeroDivisionError), bind_control(Listen(control=str(path))):
        raise ZeroDivisionError
    assert list(path.parent.iterdir()) == []


def test_a_socket_that_nobody_answers_on_is_replaced(path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    old = path.stat().st_ino
    with opened(only_unix(path)):
        connect(path)
        assert path.stat().st_ino != old


def test_the_path_always_leads_somewhere_while_it_is_replaced(path, monkeypatch):
    """Not unlinked and bound again: whoever looked in between would find nothing and give up."""
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    seen = []
    real_listen = socket.socket.listen

    def listen(self, *backlog):
        seen.append(path.exists())
        return real_listen(self, *backlog)

    monkeypatch.setattr(socket.socket, "listen", listen)
    with opened(only_unix(path)):
        assert seen == [True]


def test_a_live_socket_is_never_taken(path, listening):
    alive = listening(str(path), socket.AF_UNIX)
    assert why_not(only_unix(path)).startswith(f"Another process answers on {path}")
    connect(path)
    alive.accept()[0].close()


def test_a_live_socket_is_not_taken_when_its_queue_is_full(path, listening):
    listening(str(path), socket.AF_UNIX, backlog=0)
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(str(path))
        assert why_not(only_unix(path)).startswith(f"Another process answers on {path}")


@pytest.mark.parametrize("make", [Path.mkdir, Path.touch, lambda path: path.symlink_to("/nowhere")])
def test_what_is_no_socket_is_not_touched(path, make):
    make(path)
    assert "exists and is not a socket" in why_not(only_unix(path))
    assert path.is_dir() or path.is_symlink() or path.is_file()


def test_a_path_of_the_greatest_length_works_and_a_longer_one_is_told(tmp_path):
    room = PATH_MAX_BYTES - len(os.fsencode(tmp_path)) - 1
    longest = tmp_path / ("s" * room)
    with opened(only_unix(longest)):
        connect(longest)
    with pytest.raises(Failed, match="longer than 107 bytes"), _bound_unix(tmp_path / ("s" * (room + 1)), 0o600, ""):
        pass


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_a_folder_that_is_not_writable_is_told(tmp_path):
    tmp_path.chmod(0o500)
    assert "make its folder, writable for this user" in why_not(only_unix(tmp_path / "s.sock"))


def test_a_folder_that_is_a_file_is_told(tmp_path):
    (tmp_path / "file").touch()
    assert "cannot be made" in why_not(only_unix(tmp_path / "file" / "s.sock"))


def test_a_newer_process_keeps_the_path_that_it_took(path):
    older = bind_listeners(only_unix(path), {})
    path.unlink()
    with opened(only_unix(path)):
        older.close()
        connect(path)


# TCP ----------------------------------------------------------------------------------------------------------


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def test_an_address_is_listened_at(path):
    with opened(Listen(http="127.0.0.1:0", unix="")) as found:
        (one,) = found.http
        assert one.getsockname()[0] == "127.0.0.1"
        assert one.getblocking() is False
        socket.create_connection(one.getsockname()).close()


def test_it_can_be_listened_at_again_at_once(listening):
    address = free_address()
    host, port = address.split(":")
    for _ in range(3):
        with opened(Listen(http=address, unix="")) as found, socket.create_connection((host, int(port))):
            accepted = accept_soon(found.http[0])
            accepted.close()  # leaves TIME_WAIT on our side


def accept_soon(one: socket.socket) -> socket.socket:
    one.settimeout(5)
    return one.accept()[0]


def test_an_occupied_address_is_told(listening):
    host, port = listening(("127.0.0.1", 0)).getsockname()
    assert (
        why_not(Listen(http=f"{host}:{port}", unix=""))
        == f"listen.http = {host}:{port} cannot be opened: another process listens there; stop it or choose another port."
    )


def test_an_address_of_another_host_is_told():
    said = why_not(Listen(http="203.0.113.7:8321", unix="", allow_remote=True))
    assert "listen.http = 203.0.113.7:8321 cannot be opened" in said
    assert "choose an address of this host" in said


def test_a_host_that_cannot_be_found_is_told():
    assert "choose an address of this host" in why_not(
        Listen(http="no.such.host.invalid:1", unix="", allow_remote=True)
    )


def test_what_was_opened_is_closed_when_the_rest_fails(path):
    path.mkdir()
    address = free_address()
    why_not(Listen(http=address, unix=str(path)))
    with opened(Listen(http=address, unix="")):
        pass


def test_nothing_to_listen_on_is_an_error():
    assert "nothing to listen on" in why_not(Listen(http="", unix=""), kind=ConfigError)


# Inherited sockets --------------------------------------------------------------------------------------------


def test_inherited_sockets_are_used_in_place_of_the_configured_ones_and_never_unlinked(path, listening):
    unix, http = listening(str(path), socket.AF_UNIX), listening(("127.0.0.1", 0))
    host, port = http.getsockname()
    with opened(Listen(http=f"{host}:{port}", unix=str(path)), {"unix": [unix], "http": [http]}) as found:
        assert (found.unix, found.http) == ([unix], [http])
    assert path.is_socket()


def test_several_sockets_of_one_name_are_all_used(listening):
    two = [listening(("127.0.0.1", 0)), listening(("::1", 0, 0, 0), socket.AF_INET6)]
    with opened(Listen(http="", unix=""), {"http": two}) as found:
        assert found.http == two


def test_nameless_sockets_are_told_apart_by_their_family(path, listening):
    unix, http = listening(str(path), socket.AF_UNIX), listening(("127.0.0.1", 0))
    with opened(Listen(http="", unix=""), {"unknown": [unix, http]}) as found:
        assert (found.unix, found.http) == ([unix], [http])


def test_what_was_not_inherited_is_opened(path, listening):
    http = listening(("127.0.0.1", 0))
    with opened(only_unix(path), {"http": [http]}) as found:
        assert found.http == [http]
        connect(path)


def test_a_socket_by_a_name_that_nobody_serves_is_an_error(listening):
    said = why_not(Listen(http="", unix=""), {"px.socket": [listening(("127.0.0.1", 0))]}, kind=ConfigError)
    assert "'px.socket'" in said
    assert "FileDescriptorName=" in said


@pytest.mark.parametrize("name", ["http", "https"])
def test_a_path_is_not_served_as_an_address(path, listening, name):
    said = why_not(Listen(http="", unix=""), {name: [listening(str(path), socket.AF_UNIX)]}, kind=ConfigError)
    assert said.startswith(f"systemd handed over {path} by the name '{name}'")


def test_an_address_is_not_trusted_as_a_path(listening):
    """It would be exempt from write keys, Host and Origin."""
    said = why_not(Listen(http="", unix=""), {"unix": [listening(("127.0.0.1", 0))]}, kind=ConfigError)
    assert re.match(r"systemd handed over 127.0.0.1 port \d+ by the name 'unix'", said)


@pytest.mark.parametrize(
    ("family", "where"),
    [(socket.AF_INET, ("0.0.0.0", 0)), (socket.AF_INET6, ("::", 0, 0, 0))],
)
def test_an_inherited_address_that_others_reach_needs_allow_remote(listening, family, where):
    said = why_not(Listen(http="", unix=""), {"http": [listening(where, family)]}, kind=ConfigError)
    assert "which other hosts can reach" in said
    one = listening(where, family)
    with opened(Listen(http="", unix="", allow_remote=True), {"http": [one]}) as found:
        assert found.http == [one]


def test_an_inherited_https_needs_a_certificate(listening):
    said = why_not(Listen(http="", unix=""), {"https": [listening(("127.0.0.1", 0))]}, kind=ConfigError)
    assert "listen.tls_cert and listen.tls_key" in said


# TLS ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pem(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tls")
    issued = trustme.CA().issue_cert("localhost")
    issued.private_key_and_cert_chain_pem.write_to_path(folder / "both.pem")
    (folder / "odd.pem").write_text("no certificate")
    other = trustme.CA().issue_cert("localhost")
    other.private_key_pem.write_to_path(folder / "other.key")
    command = ["openssl", "pkey", "-in", str(folder / "both.pem"), "-aes256", "-passout", "pass:x"]
    subprocess.run([*command, "-out", str(folder / "locked.key")], check=True, capture_output=True)
    return folder


def test_a_renewed_certificate_is_served_and_half_a_pair_is_not(tmp_path):
    pair, old, new = tmp_path / "both.pem", *(trustme.CA() for _ in range(2))
    old.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(pair)
    listen = https(pair, pair)
    with opened(listen) as found:
        assert shakes_hands(found, old)
        new.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(pair)
        assert shakes_hands(found, old)
        renew_certificate(found, listen)
        assert shakes_hands(found, new)
        assert not shakes_hands(found, old)
        pair.write_bytes(old.issue_cert("localhost").cert_chain_pems[0].bytes())  # its key is not written yet
        with pytest.raises(ConfigError, match="cannot be used"):
            renew_certificate(found, listen)
        assert shakes_hands(found, new)


def test_without_https_there_is_nothing_to_renew(tmp_path):
    listen = Listen(http="", unix=str(tmp_path / "a.sock"))
    with opened(listen) as found:
        renew_certificate(found, listen)


def shakes_hands(found: Opened, authority: trustme.CA) -> bool:
    """Whether a client that trusts only this authority gets through a handshake."""
    trust = ssl.create_default_context()
    authority.configure_trust(trust)
    (client_in, client_out), (server_in, server_out) = ((ssl.MemoryBIO(), ssl.MemoryBIO()) for _ in range(2))
    assert found.tls is not None
    server = found.tls.wrap_bio(server_in, server_out, server_side=True)
    client = trust.wrap_bio(client_in, client_out, server_hostname="localhost")
    for _ in range(5):
        for one in (client, server):
            try:
                with contextlib.suppress(ssl.SSLWantReadError):
                    one.do_handshake()
            except ssl.SSLCertVerificationError:
                return False
            server_in.write(client_out.read())
            client_in.write(server_out.read())
    return client.version() is not None


def https(cert: Path, key: Path) -> Listen:
    return Listen(http="", unix="", https="127.0.0.1:0", tls_cert=str(cert), tls_key=str(key))


def test_https_speaks_only_http_1_1(pem):
    with opened(https(pem / "both.pem", pem / "both.pem")) as found:
        assert len(found.https) == 1
        assert found.tls is not None


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
def test_a_certificate_or_key_that_is_no_good_is_told(pem, cert, key, word):
    assert word in why_not(https(pem / cert, pem / key), kind=ConfigError)


# Limits -------------------------------------------------------------------------------------------------------


def test_the_soft_limit_of_descriptors_is_raised_to_the_hard_one():
    script = (
        "import resource as r; from sidecar.receive import raise_descriptor_limit as f;"
        "r.setrlimit(r.RLIMIT_NOFILE, (64, r.getrlimit(r.RLIMIT_NOFILE)[1]));"
        "print(f(), *r.getrlimit(r.RLIMIT_NOFILE))"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert len(set(said)) == 1
    assert int(said[0]) >= 64


def test_where_it_may_not_be_raised_the_limit_that_is_there_is_told(monkeypatch):
    def refuse(*_arguments):
        raise ValueError("not allowed")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert raise_descriptor_limit() == resource.getrlimit(resource.RLIMIT_NOFILE)[0]

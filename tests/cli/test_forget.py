"""`px-sidecar forget`, with and without a daemon."""

import socket

from outbox_files import accept, event
from running_daemon import DaemonDir, always, wait_until

from sidecar.outbox import Store


def test_forget_removes_history_and_pending_events(daemon_dir: DaemonDir, verb):
    with daemon_dir.running() as daemon:
        daemon.track("ann", "Feature Used")
        daemon.track("bob", "Feature Used")
        daemon.settle()
        daemon.client.post("/v1/pause")
        daemon.track("ann", "Feature Used")
        ran = verb("forget", "ann", "--json", *daemon_dir.flags)
        left = daemon.client.get("/v1/events")["events"]
        status = daemon.status()
    assert ran.code == 0
    assert ran.json | {"not_reached": []} == {
        "pending": 1,
        "dead": 0,
        "history": 1,
        "memory": 0,
        "left": 0,
        "linked": [],
        "not_reached": [],
    }
    assert any("backups" in what for what in ran.json["not_reached"])
    # As JSON it kept silent about PX, which the text names first.
    assert "the users in PX (--px deletes them)" in ran.json["not_reached"]
    assert all("ann" not in str(event) for event in left)
    assert status["dropped_by_reason"] == {"forgotten": 1}
    assert status["accepted"] == status["pending"] + status["delivered"] + status["dropped"] + status["dead"]


def test_a_forgotten_event_is_not_sent(daemon_dir: DaemonDir, verb):
    with daemon_dir.running() as daemon:
        daemon.client.post("/v1/pause")
        daemon.track("ann", "Feature Used")
        verb("forget", "ann", *daemon_dir.flags)
        daemon.client.post("/v1/resume")
        daemon.track("bob", "Feature Used")
        daemon.settle()
        sent = [request.body for request in daemon.network.sent]
    assert len(sent) == 1
    assert b"ann" not in sent[0]


def test_forget_erases_the_file_without_a_daemon(daemon_dir: DaemonDir, verb):
    with daemon_dir.running() as daemon:
        daemon.track("ann-the-unforgettable", "Feature Used")
        daemon.settle()
    ran = verb("forget", "ann-the-unforgettable", *daemon_dir.flags)
    assert ran.code == 0
    assert ran.out == "Forgotten: 0 pending, 0 dead and 1 settled events, 0 user records.\n"
    assert all(b"ann-the-unforgettable" not in path.read_bytes() for path in daemon_dir.folder.glob("outbox.db*"))


def test_alias_of_a_forgotten_user_is_forgotten_and_the_other_named(daemon_dir: DaemonDir, verb):
    with daemon_dir.running() as daemon:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(daemon_dir.unix))
            connection.sendall(b'{"type":"alias","userId":"new-id","previousId":"ann"}\n')
            assert b"true" in connection.recv(1000)
        daemon.settle()
        ran = verb("forget", "ann", "--json", *daemon_dir.flags)
        left = daemon.client.get("/v1/events")["events"]
    assert (ran.json["history"], ran.json["linked"], left) == (1, ["new-id"], [])


def test_suppression_survives_restart_and_reload(daemon_dir: DaemonDir, verb, tmp_path):
    users = tmp_path / "users.txt"
    users.write_text("ann\n\nbob\n")
    with daemon_dir.running() as daemon:
        assert verb("forget", "--suppress", "--from", str(users), *daemon_dir.flags).code == 0
        daemon.track("ann", "Feature Used")
        daemon.settle()
        assert daemon.status()["dropped_by_reason"] == {"suppressed": 1}
    with daemon_dir.running() as daemon:
        daemon.track("bob", "Feature Used")
        daemon.track("eve", "Feature Used")
        daemon.settle()
        status = daemon.status()
        left = daemon.client.get("/v1/events")["events"]
    assert (status["dropped_by_reason"], status["delivered"]) == ({"suppressed": 2}, 1)
    assert not any("bob" in str(event) or "ann" in str(event) for event in left)


def test_a_running_daemon_deletes_users_in_px(daemon_dir: DaemonDir, verb):
    """The command asked PX with a client of its own, beside the daemon's pace and day."""
    names = [f"u{number}" for number in range(25)]
    with daemon_dir.running(always(204)) as daemon:
        ran = verb("forget", *names, "--px", "--json", *daemon_dir.flags)
        asked = [(request.method, request.path) for request in daemon.network.sent]
        used = daemon.status()["quota"]["used"]
    assert (ran.code, ran.json["px_deleted"], ran.json["px_failed"]) == (0, 25, [])
    assert asked == [("DELETE", f"/v1/users/{name}") for name in names]
    assert used == 25


def test_users_that_px_could_not_be_asked_about_are_named(daemon_dir: DaemonDir, verb, monkeypatch):
    monkeypatch.setattr("sidecar.control.px_calls.DELETE_S", 0.2)
    with daemon_dir.running(always(204)) as daemon:
        daemon.client.post("/v1/pause")
        ran = verb("forget", "ann", "ben", "--px", *daemon_dir.flags)
        assert daemon.network.sent == []
    assert ran.code == 1
    assert "2 users were not deleted in PX: ann: Delivery was paused" in ran.err
    assert "Run the command again" in ran.err


def test_forget_needs_a_user(daemon_dir: DaemonDir, verb):
    assert verb("forget", *daemon_dir.flags).code == 2


def test_users_of_a_file_by_windows_are_found(daemon_dir: DaemonDir, verb, tmp_path):
    """The mark at its begin was part of the first user, who was not found: "Forgotten" was said all the same."""
    file = tmp_path / "erasure.txt"
    file.write_bytes(b"\xef\xbb\xbfu-1\r\nu-2\r\n")
    with daemon_dir.running() as daemon:
        daemon.client.post("/v1/pause")
        for user in ("u-1", "u-2"):
            daemon.track(user, "Feature Used")
        ran = verb("forget", "--from", str(file), *daemon_dir.flags)
        file.write_bytes("Müller\n".encode("latin-1"))
        other = verb("forget", "--from", str(file), *daemon_dir.flags)
    assert ran.out.startswith("Forgotten: 2 pending")
    assert (other.code, "is not UTF-8" in other.err) == (1, True)


def test_parked_events_that_were_read_too_early_are_forgotten(daemon_dir: DaemonDir):
    """They stayed checked out though nothing held them: "in flight" at every call, and sent in the end."""
    with daemon_dir.running() as daemon:
        daemon.client.post("/v1/pause")
    store = Store(daemon_dir.outbox)
    others = [event(number, user=f"v{number}") for number in range(2, 1_500)]
    accept(store, [event(1, user="u"), *others, event(1_500, user="u")])
    with store.transaction():
        store.park([1, 1_500])  # by the process before
    store.close()
    with daemon_dir.running() as daemon:
        wait_until(lambda: daemon.client.post("/v1/forget", {"users": ["u"]})["left"] == 0, "nothing in flight")
        assert daemon.client.get("/v1/events", {"user": "u", "state": "pending"})["events"] == []

"""`px-sidecar forget`, with and without a daemon."""

from living import Place


def test_a_user_is_forgotten_in_history_and_what_is_pending(place: Place, verb):
    with place.living() as daemon:
        daemon.track("ann", "Feature Used")
        daemon.track("bob", "Feature Used")
        daemon.settle()
        daemon.asked.post("/v1/pause")
        daemon.track("ann", "Feature Used")
        ran = verb("forget", "ann", "--json", *place.flags)
        left = daemon.asked.get("/v1/events")["events"]
        status = daemon.status()
    assert ran.code == 0
    assert ran.json == {"pending": 1, "dead": 0, "history": 1, "memory": 0, "left": 0}
    assert all("ann" not in str(event) for event in left)
    assert status["dropped_by_reason"] == {"forgotten": 1}
    assert status["accepted"] == status["pending"] + status["delivered"] + status["dropped"] + status["dead"]


def test_a_forgotten_event_is_not_sent_after_all(place: Place, verb):
    with place.living() as daemon:
        daemon.asked.post("/v1/pause")
        daemon.track("ann", "Feature Used")
        verb("forget", "ann", *place.flags)
        daemon.asked.post("/v1/resume")
        daemon.track("bob", "Feature Used")
        daemon.settle()
        sent = [request.body for request in daemon.network.sent]
    assert len(sent) == 1
    assert b"ann" not in sent[0]


def test_a_user_is_forgotten_from_the_file_of_a_stopped_daemon(place: Place, verb):
    with place.living() as daemon:
        daemon.track("ann-the-unforgettable", "Feature Used")
        daemon.settle()
    ran = verb("forget", "ann-the-unforgettable", *place.flags)
    assert ran.code == 0
    assert ran.out == "Forgotten: 0 pending, 0 dead and 1 settled events, 0 memories of the user.\n"
    assert all(b"ann-the-unforgettable" not in path.read_bytes() for path in place.folder.glob("outbox.db*"))

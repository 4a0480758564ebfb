"""`px-sidecar drain`, through the command line."""

from living import Place, always


def test_drain_waits_until_nothing_is_pending(place: Place, verb):
    with place.living() as daemon:
        daemon.asked.post("/v1/pause")
        for number in range(5):
            daemon.track(f"u{number}", "Feature Used")
        daemon.asked.post("/v1/resume")
        ran = verb("drain", "--json", *place.flags)
    assert ran.code == 0
    assert (ran.json["pending"], ran.json["delivered"]) == (0, 5)


def test_drain_of_a_paused_daemon_fails_at_once_with_the_reason(place: Place, verb):
    with place.living() as daemon:
        daemon.asked.post("/v1/pause")
        daemon.track("u1", "Feature Used")
        ran = verb("drain", *place.flags)
    assert ran.code == 1
    assert ran.err == ("px-sidecar: 1 events are pending. Delivery was paused; `px-sidecar resume` starts it again.\n")


def test_drain_of_an_empty_paused_daemon_is_done(place: Place, verb):
    with place.living() as daemon:
        daemon.asked.post("/v1/pause")
        assert verb("drain", *place.flags).code == 0


def test_drain_gives_up_in_time(place: Place, verb):
    with place.living(always(503)) as daemon:
        daemon.track("u1", "Feature Used")
        ran = verb("drain", "--timeout", "100ms", *place.flags)
    assert ran.code == 1
    assert "1 events are still pending" in ran.err


def test_drain_needs_a_daemon(place: Place, verb):
    assert verb("drain", *place.flags).code == 69

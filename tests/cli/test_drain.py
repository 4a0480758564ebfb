"""`px-sidecar drain`: waiting, pause and timeout."""

from running_daemon import DaemonDir, always, wait_until

from sidecar.px import NotSent


def test_drain_waits_until_nothing_is_pending(daemon_dir: DaemonDir, verb):
    with daemon_dir.running() as daemon:
        daemon.client.post("/v1/pause")
        for number in range(5):
            daemon.track(f"u{number}", "Feature Used")
        daemon.client.post("/v1/resume")
        ran = verb("drain", "--json", *daemon_dir.flags)
    assert ran.code == 0
    assert (ran.json["pending"], ran.json["delivered"]) == (0, 5)


def test_drain_fails_at_once_while_delivery_is_paused(daemon_dir: DaemonDir, verb):
    with daemon_dir.running() as daemon:
        daemon.client.post("/v1/pause")
        daemon.track("u1", "Feature Used")
        ran = verb("drain", *daemon_dir.flags)
    assert ran.code == 1
    assert ran.err == ("px-sidecar: 1 event is pending. Delivery was paused; `px-sidecar resume` starts it again.\n")


def test_drain_of_an_empty_paused_outbox_succeeds(daemon_dir: DaemonDir, verb):
    with daemon_dir.running() as daemon:
        daemon.client.post("/v1/pause")
        assert verb("drain", *daemon_dir.flags).code == 0


def test_drain_fails_after_its_timeout(daemon_dir: DaemonDir, verb):
    with daemon_dir.running(always(503)) as daemon:
        daemon.track("u1", "Feature Used")
        ran = verb("drain", "--timeout", "100ms", *daemon_dir.flags)
    assert ran.code == 1
    assert "1 event is still pending" in ran.err


def test_drain_needs_a_daemon(daemon_dir: DaemonDir, verb):
    assert verb("drain", *daemon_dir.flags).code == 69


def test_drain_says_that_px_is_away_while_it_waits(daemon_dir: DaemonDir, verb):
    with daemon_dir.running(away) as daemon:
        for number in range(12):
            daemon.track(f"u{number}", "Feature Used")
        wait_until(lambda: daemon.status()["state"] == "waiting", "the outage")
        ran = verb("drain", "--timeout", "600ms", *daemon_dir.flags)
    assert ran.code == 1
    assert "Waiting, nothing is delivered: " in ran.err
    assert "12 events are still pending" in ran.err


async def away(_request):
    return NotSent("connection refused")


def test_drain_counts_what_was_dropped_or_died_apart(daemon_dir: DaemonDir, verb):
    with daemon_dir.running(always(400)) as daemon:
        daemon.client.post("/v1/pause")
        daemon.track("u1", "Feature Used")
        daemon.track(None, "Feature Used")
        daemon.client.post("/v1/resume")
        ran = verb("drain", *daemon_dir.flags)
    assert ran.code == 0
    assert "delivered" in ran.out
    assert ran.out.startswith("Nothing is pending; 0 events were delivered")
    assert "1 is dead" in ran.out


def test_the_reason_to_wait_is_printed_as_it_is(daemon_dir: DaemonDir, verb):
    """Brackets in it are not markup: PX's answer and the names of sections have them."""
    script = always(503, b'{"message": "try [px] or [/v1/events]"}')
    with daemon_dir.running(script) as daemon:
        for number in range(12):
            daemon.track(f"u{number}", "Feature Used")
        wait_until(lambda: daemon.status()["state"] == "waiting", "the outage")
        ran = verb("drain", "--timeout", "600ms", *daemon_dir.flags)
    assert "Waiting, nothing is delivered: " in ran.err
    assert ran.err.count("try [px] or [/v1/events]") == 2

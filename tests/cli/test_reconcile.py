"""`px-sidecar reconcile` against the sandbox: counts, files of other hosts, refusals."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from running_daemon import DaemonDir, always

from sidecar.outbox.overflow import delete_rows

HOUR_AGO = datetime.now(UTC) - timedelta(hours=1)
RECONCILIATION = {"since_ms", "until_ms", "complete_since_ms", "names", "delivered", "px", "missing"}


@pytest.fixture
def sandboxed(px, tmp_path) -> DaemonDir:
    return px.daemon_dir(tmp_path)


def deliver(sandboxed: DaemonDir, px, names: list[str], when: datetime = HOUR_AGO) -> None:
    with sandboxed.running(network=px.network(sandboxed)) as daemon:
        for number, name in enumerate(names):
            daemon.track(f"u{number}", name, timestamp=when)
        daemon.settle()


def test_equal_counts_pass(px, sandboxed: DaemonDir, verb):
    deliver(sandboxed, px, ["Feature Used", "feature used", "Logged In"])
    ran = verb("reconcile", "--json", *sandboxed.flags)
    assert ran.code == 0
    assert set(ran.json) == RECONCILIATION
    assert (ran.json["delivered"], ran.json["px"], ran.json["missing"]) == (3, 3, 0)
    assert [(name["delivered"], name["px"]) for name in ran.json["names"]] == [(2, 2), (1, 1)]
    assert ran.json["complete_since_ms"] == ran.json["since_ms"]


def test_events_missing_in_px_fail(px, sandboxed: DaemonDir, verb):
    with sandboxed.running() as daemon:  # delivered to a fake network: the sandbox has none of it
        daemon.track("u1", "Feature Used", timestamp=HOUR_AGO)
        daemon.settle()
    ran = verb("reconcile", *sandboxed.flags)
    assert ran.code == 1
    assert "1 MISSING" in ran.out
    assert "PX has 1 event fewer than were delivered" in " ".join(ran.out.split())
    assert max(map(len, ran.out.splitlines())) <= 80


def test_the_daemon_asks_px_where_one_runs(px, sandboxed: DaemonDir, verb):
    """The verb asked PX itself, so that a member of the group needed the key, which root alone can read."""
    names = [f"Name {number}" for number in range(25)]
    with sandboxed.running(network=px.network(sandboxed)) as daemon:
        for name in names:
            daemon.track("u1", name, timestamp=HOUR_AGO)
        daemon.settle()
        ran = verb("reconcile", "--json", *sandboxed.flags, PX_SIDECAR_PX_API_KEY="")
    assert (ran.code, ran.json["delivered"], ran.json["px"]) == (0, 25, 25)


def test_what_the_daemon_cannot_ask_is_the_answer(sandboxed: DaemonDir, verb):
    async def no_read(request):
        return await always(403 if request.method == "GET" else 201)(request)

    with sandboxed.running(no_read) as daemon:
        daemon.track("u1", "Feature Used", timestamp=HOUR_AGO)
        daemon.settle()
        ran = verb("reconcile", *sandboxed.flags)
    assert ran.code == 1
    assert "Read permission" in ran.err


def test_the_newest_15_minutes_are_left_out(px, sandboxed: DaemonDir, verb):
    deliver(sandboxed, px, ["Feature Used"], datetime.now(UTC))
    assert verb("reconcile", "--json", *sandboxed.flags).json["delivered"] == 0


def test_figures_of_other_hosts_are_added(px, sandboxed: DaemonDir, verb, tmp_path):
    deliver(sandboxed, px, ["Feature Used", "Logged In"])
    host2 = tmp_path / "host2.json"
    local = verb("reconcile", "--local", "--json", *sandboxed.flags)
    assert (local.json["px"], local.json["missing"]) == (None, 0)
    figures = local.json
    figures["names"] = [{"name": "Feature Used", "delivered": 5}]
    host2.write_text(json.dumps(figures))
    ran = verb("reconcile", "--add", str(host2), "--since", "2h", "--json", *sandboxed.flags)
    assert (ran.code, ran.json["since_ms"]) == (1, figures["since_ms"])
    assert {name["name"]: (name["delivered"], name["px"]) for name in ran.json["names"]} == {
        "Feature Used": (6, 1),
        "Logged In": (1, 1),
    }


def test_files_with_different_times_are_refused(sandboxed: DaemonDir, verb, tmp_path):
    files = []
    for number in (1, 2):
        files += ["--add", str(tmp_path / f"{number}.json")]
        figures = {"since_ms": number, "until_ms": 10, "complete_since_ms": number, "names": []}
        (tmp_path / f"{number}.json").write_text(json.dumps(figures))
    ran = verb("reconcile", *files, *sandboxed.flags)
    assert ran.code == 1
    assert "different times" in ran.err


def test_a_pruned_history_is_reported(px, sandboxed: DaemonDir, verb):
    deliver(sandboxed, px, ["Feature Used"] * 3)
    with sandboxed.running(network=px.network(sandboxed)) as daemon:
        daemon.run(daemon.app.outbox.write, lambda store, _now_ms: delete_rows(store, [1]))
        ran = verb("reconcile", *sandboxed.flags)
    assert "the history starts at" in ran.out


def test_the_history_is_counted_over_many_pages(px, sandboxed: DaemonDir, verb, monkeypatch):
    monkeypatch.setattr("sidecar.control.outbox_admin.DELIVERED_ROWS", 7)
    deliver(sandboxed, px, ["Feature Used"] * 40)
    ran = verb("reconcile", "--json", *sandboxed.flags)
    assert (ran.json["delivered"], ran.json["px"]) == (40, 40)


def test_an_empty_time_window_is_refused(sandboxed: DaemonDir, verb):
    ran = verb("reconcile", "--since", "5m", *sandboxed.flags)
    assert ran.code == 1
    assert "newest 15 minutes" in ran.err
    assert verb("reconcile", "--since", "yesterday", *sandboxed.flags).code == 2


def test_local_figures_are_printed_without_asking_px(px, sandboxed: DaemonDir, verb):
    deliver(sandboxed, px, ["Feature Used", "Logged In"])
    ran = verb("reconcile", "--local", *sandboxed.flags)
    assert ran.code == 0
    assert "2 events were delivered." in ran.out
    assert "ok" not in ran.out


def test_a_name_with_a_semicolon_is_not_reported_missing(px, sandboxed: DaemonDir, verb):
    deliver(sandboxed, px, ["Used; twice", "Feature Used"])
    ran = verb("reconcile", *sandboxed.flags)
    assert ran.code == 0
    (line,) = [line for line in ran.out.splitlines() if "Used; twice" in line]
    assert "cannot ask (;)" in line
    assert "MISSING" not in ran.out


@pytest.mark.parametrize("names", [[], ["Used; twice"]])
def test_without_a_comparison_nothing_is_claimed(px, sandboxed: DaemonDir, verb, names):
    deliver(sandboxed, px, names)
    ran = verb("reconcile", *sandboxed.flags)
    assert ran.code == (1 if names else 0)
    assert "othing was compared" in " ".join(ran.out.split())
    assert "PX has all" not in ran.out
    assert verb("reconcile", "--json", *sandboxed.flags).json["px"] is None


def test_more_events_in_px_are_not_a_failure(px, sandboxed: DaemonDir, verb):
    deliver(sandboxed, px, ["Feature Used"] * 3)
    figures = verb("reconcile", "--local", "--json", *sandboxed.flags).json
    with sandboxed.running() as daemon:
        daemon.client.post("/v1/forget", {"user": "u0"})
    ran = verb("reconcile", *sandboxed.flags)
    assert figures["delivered"] == 3
    assert ran.code == 0
    assert "1 more" in ran.out


def test_an_invalid_file_of_figures_is_named(sandboxed: DaemonDir, verb, tmp_path):
    bad = tmp_path / "host2.json"
    bad.write_text("{}")
    ran = verb("reconcile", "--add", str(bad), *sandboxed.flags)
    assert ran.code == 1
    assert f"{bad} is not output of `px-sidecar reconcile --local --json`" in ran.err


def test_since_is_limited_to_190_days(sandboxed: DaemonDir, verb):
    ran = verb("reconcile", "--since", "2020-01-01", *sandboxed.flags)
    assert ran.code == 1
    assert "190 days" in ran.err


def test_a_date_without_an_offset_is_local(px, sandboxed: DaemonDir, verb):
    deliver(sandboxed, px, ["Feature Used"])
    start = (HOUR_AGO - timedelta(minutes=5)).astimezone().replace(tzinfo=None).isoformat()
    ran = verb("reconcile", "--since", start, "--until", "45m", "--json", *sandboxed.flags)
    assert (ran.code, ran.json["delivered"]) == (0, 1)
    wrong = verb("reconcile", "--since", "12 o'clock", *sandboxed.flags)
    assert wrong.code == 2
    assert "is not a time; write how long ago, as in 24h, or a date" in wrong.err


def test_the_call_adds_names_that_differ_in_case(px, sandboxed: DaemonDir):
    """PX's filters ignore case, so each spelling got the total of all, and a lost event of one was not seen."""
    with sandboxed.running(network=px.network(sandboxed)) as daemon:
        for name in ("Login", "login", "Login"):
            daemon.track("u1", name, timestamp=HOUR_AGO)
        daemon.settle()
        assert daemon.client.get("/v1/reconcile")["names"] == [{"name": "Login", "delivered": 3, "px": 3}]


def test_an_empty_window_says_why(daemon_dir: DaemonDir, verb):
    """Of a window that ends before it begins it said that the newest 15 minutes are left out."""
    with daemon_dir.running():
        swapped = verb("reconcile", "--since", "2d", "--until", "3d", *daemon_dir.flags)
        new = verb("reconcile", "--since", "5m", *daemon_dir.flags)
    assert (swapped.code, "--until is not after --since" in swapped.err) == (1, True)
    assert (new.code, "the newest 15 minutes are left out" in new.err) == (1, True)

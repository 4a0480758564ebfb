"""`px-sidecar reconcile` against the sandbox."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from living import Place

from sidecar.cli.px_asking import found_events
from sidecar.errors import Failed
from sidecar.px import Answer

HOUR_AGO = datetime.now(UTC) - timedelta(hours=1)
ACCOUNT = {"since_ms", "until_ms", "complete_since_ms", "names", "delivered", "px", "missing"}


@pytest.fixture
def there(px, tmp_path) -> Place:
    return px.place(tmp_path)


def deliver(there: Place, px, names: list[str], when: datetime = HOUR_AGO) -> None:
    with there.living(network=px.network(there)) as daemon:
        for number, name in enumerate(names):
            daemon.track(f"u{number}", name, timestamp=when)
        daemon.settle()


def test_everything_that_was_delivered_is_there(px, there: Place, verb):
    deliver(there, px, ["Feature Used", "feature used", "Logged In"])
    ran = verb("reconcile", "--json", *there.flags)
    assert ran.code == 0
    assert set(ran.json) == ACCOUNT
    assert (ran.json["delivered"], ran.json["px"], ran.json["missing"]) == (3, 3, 0)
    assert [(one["delivered"], one["px"]) for one in ran.json["names"]] == [(2, 2), (1, 1)]
    assert ran.json["complete_since_ms"] == ran.json["since_ms"]


def test_what_px_has_dropped_silently_is_the_finding(px, there: Place, verb):
    with there.living() as daemon:  # delivered, and PX has nothing of it
        daemon.track("u1", "Feature Used", timestamp=HOUR_AGO)
        daemon.settle()
    ran = verb("reconcile", *there.flags)
    assert ran.code == 1
    assert "1 MISSING" in ran.out
    assert "PX has 1 events fewer than were delivered" in " ".join(ran.out.split())
    assert max(map(len, ran.out.splitlines())) <= 80


def test_the_newest_quarter_of_an_hour_is_left_out(px, there: Place, verb):
    deliver(there, px, ["Feature Used"], datetime.now(UTC))
    assert verb("reconcile", "--json", *there.flags).json["delivered"] == 0


def test_figures_of_other_hosts_are_added(px, there: Place, verb, tmp_path):
    deliver(there, px, ["Feature Used", "Logged In"])
    host2 = tmp_path / "host2.json"
    local = verb("reconcile", "--local", "--json", *there.flags)
    assert (local.json["px"], local.json["missing"]) == (None, 0)
    figures = local.json
    figures["names"] = [{"name": "Feature Used", "delivered": 5}]
    host2.write_text(json.dumps(figures))
    ran = verb("reconcile", "--add", str(host2), "--since", "2h", "--json", *there.flags)
    assert (ran.code, ran.json["since_ms"]) == (1, figures["since_ms"])
    assert {one["name"]: (one["delivered"], one["px"]) for one in ran.json["names"]} == {
        "Feature Used": (6, 1),
        "Logged In": (1, 1),
    }


def test_files_about_different_times_are_refused(there: Place, verb, tmp_path):
    files = []
    for number in (1, 2):
        files += ["--add", str(tmp_path / f"{number}.json")]
        figures = {"since_ms": number, "until_ms": 10, "complete_since_ms": number, "names": []}
        (tmp_path / f"{number}.json").write_text(json.dumps(figures))
    ran = verb("reconcile", *files, *there.flags)
    assert ran.code == 1
    assert "different times" in ran.err


def test_pruned_history_is_said(px, there: Place, verb):
    deliver(there, px, ["Feature Used"] * 3)
    with there.living(network=px.network(there)) as daemon:
        import trio

        from sidecar.outbox.overflow import delete_rows

        trio.from_thread.run(
            daemon.daemon.outbox.write, lambda store, _now_ms: delete_rows(store, [1]), trio_token=daemon._token
        )
        ran = verb("reconcile", *there.flags)
    assert "the history reaches back to" in ran.out


def test_the_history_is_counted_over_many_pages(px, there: Place, verb, monkeypatch):
    monkeypatch.setattr("sidecar.control.archive.DELIVERED_ROWS", 7)
    deliver(there, px, ["Feature Used"] * 40)
    ran = verb("reconcile", "--json", *there.flags)
    assert (ran.json["delivered"], ran.json["px"]) == (40, 40)


def test_a_time_that_is_too_short_is_refused(there: Place, verb):
    ran = verb("reconcile", "--since", "5m", *there.flags)
    assert ran.code == 1
    assert "newest 15 minutes" in ran.err
    assert verb("reconcile", "--since", "yesterday", *there.flags).code == 2


def test_local_figures_are_shown_without_a_verdict_of_px(px, there: Place, verb):
    deliver(there, px, ["Feature Used", "Logged In"])
    ran = verb("reconcile", "--local", *there.flags)
    assert ran.code == 0
    assert "2 events were delivered." in ran.out
    assert "ok" not in ran.out


def test_a_name_that_px_cannot_be_asked_about_is_said_and_is_not_missing(px, there: Place, verb):
    deliver(there, px, ["Used; twice", "Feature Used"])
    ran = verb("reconcile", *there.flags)
    assert ran.code == 0
    (line,) = [line for line in ran.out.splitlines() if "Used; twice" in line]
    assert "cannot be asked (;)" in line
    assert "MISSING" not in ran.out


def test_what_px_has_more_is_told_and_no_failure(px, there: Place, verb):
    deliver(there, px, ["Feature Used"] * 3)
    figures = verb("reconcile", "--local", "--json", *there.flags).json
    with there.living() as daemon:
        daemon.asked.post("/v1/forget", {"user": "u0"})
    ran = verb("reconcile", *there.flags)
    assert figures["delivered"] == 3
    assert ran.code == 0
    assert "1 more" in ran.out


def test_figures_that_are_none_name_the_file(there: Place, verb, tmp_path):
    bad = tmp_path / "host2.json"
    bad.write_text("{}")
    ran = verb("reconcile", "--add", str(bad), *there.flags)
    assert ran.code == 1
    assert f"{bad} holds no figures of `px-sidecar reconcile --local --json`" in ran.err


def test_px_looks_back_over_190_days_at_most_and_a_date_may_be_given(there: Place, verb):
    ran = verb("reconcile", "--since", "2020-01-01", *there.flags)
    assert ran.code == 1
    assert "190 days" in ran.err


def test_an_answer_that_is_not_of_px_is_not_taken_for_figures():
    for body in (b"<html>", b"[]", b"{}", b'{"customEvents":{},"totalHits":1}', b'{"customEvents":[],"totalHits":"1"}'):
        with pytest.raises(Failed, match=r"cannot be understood; is px\.base_url or px\.region right"):
            found_events(Answer(200, body, content_type="application/json"))
    with pytest.raises(Failed, match="could not be read back from PX"):
        found_events(Answer(503, b""))


def test_a_date_without_a_zone_is_local_and_one_that_is_none_is_wrong_usage(px, there: Place, verb):
    deliver(there, px, ["Feature Used"])
    begin = (HOUR_AGO - timedelta(minutes=5)).astimezone().replace(tzinfo=None).isoformat()
    ran = verb("reconcile", "--since", begin, "--until", "45m", "--json", *there.flags)
    assert (ran.code, ran.json["delivered"]) == (0, 1)
    wrong = verb("reconcile", "--since", "12 o'clock", *there.flags)
    assert wrong.code == 2
    assert "is no moment; write how long ago, as in 24h, or a date" in wrong.err

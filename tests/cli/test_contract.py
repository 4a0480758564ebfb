"""`px-sidecar check --live --contract`, against the sandbox with both answers to each question."""

import time
from types import SimpleNamespace

import pytest
from running_daemon import DaemonDir

from sidecar.cli import contract
from sidecar.px import PxAnswer
from sidecar.sandbox import OpenAnswers

TEST_PRODUCT = "AP-TESTTESTTE-2"


def answers_of(verb, sandboxed: DaemonDir) -> dict[str, dict]:
    ran = verb(
        *("check", "--live", "--contract", "--product", TEST_PRODUCT, "--read-back", "0s", "--json"), *sandboxed.flags
    )
    assert ran.code == 0, ran.err
    assert ran.json["product"] == TEST_PRODUCT
    return {answer["question"]: answer for answer in ran.json["answers"]}


def test_the_sandboxs_own_answers(px, tmp_path, verb):
    answers = answers_of(verb, px.daemon_dir(tmp_path))
    assert answers["a user with an undeclared trait"]["answers"] == ["201"]
    assert {
        question: answer["read_back"] for question, answer in answers.items() if answer["read_back"] is not None
    } == {
        "a known user, an unregistered name, now": 1,
        "an unknown user": 1,
        "dated 1 day ago": 1,
        "dated 30 days ago": 1,
        "dated 400 days ago": 1,
        "50 attributes": 1,
        "51 attributes": 0,
        "one eventId twice": 2,
    }
    assert answers["51 attributes"]["answers"][0].startswith("400")
    assert answers["50 attributes"]["attributes"] == 50
    assert {body["propertyKey"] for body in px.box.events} == {TEST_PRODUCT}
    assert px.box.people.users == {}, "the user is deleted again"


def test_the_opposite_answers(px, tmp_path, verb):
    px.box.open_answers = OpenAnswers(
        unknown_user="refuse", old_event="drop", old_days=200, many_attributes="cut", repeated_event_id="drop", undeclared_trait="refuse",
    )  # fmt: skip
    px.box.reset()
    answers = answers_of(verb, px.daemon_dir(tmp_path))
    assert answers["a user with an undeclared trait"]["answers"][0].startswith("400")
    assert answers["the same user without it"]["answers"] == ["201"]
    assert answers["an unknown user"]["answers"][0].startswith("400")
    assert (answers["dated 30 days ago"]["read_back"], answers["dated 400 days ago"]["read_back"]) == (1, 0)
    assert answers["dated 400 days ago"]["answers"] == ["201"]
    assert (answers["51 attributes"]["read_back"], answers["51 attributes"]["attributes"]) == (1, 50)
    assert answers["one eventId twice"]["read_back"] == 1


def test_names_that_have_to_be_registered(px, tmp_path, verb):
    px.box.open_answers = OpenAnswers(unregistered_name="drop")
    answers = answers_of(verb, px.daemon_dir(tmp_path))
    assert answers["a known user, an unregistered name, now"]["answers"] == ["201"]
    assert answers["a known user, an unregistered name, now"]["read_back"] == 0


def test_the_table_fits_80_columns(px, tmp_path, verb):
    sandboxed = px.daemon_dir(tmp_path)
    ran = verb("check", "--live", "--contract", "--product", TEST_PRODUCT, "--read-back", "0s", *sandboxed.flags)
    assert "1 of 1" in ran.out
    assert max(map(len, ran.out.splitlines()[:-1])) <= 80


@pytest.mark.parametrize("flags", [["--contract"], ["--contract", "--live"], ["--contract", "--product", TEST_PRODUCT]])
def test_a_test_product_has_to_be_named(verb, flags):
    ran = verb("check", *flags)
    assert ran.code == 2
    assert "test product" in ran.err


def test_a_429_is_shown_with_its_headers_and_costs_no_other_answer(px, tmp_path, verb, monkeypatch):
    """Hosts that deliver for the same subscription share its limits; a 429 to a read lost the whole table."""
    ask_px = contract.ask_px
    answers = {"POST": iter([None, None, None, 429]), "GET": iter([429])}

    def busy(config, requests):
        if next(answers.get(requests[0].method, iter(())), None):
            return [PxAnswer(429, b"slow down", retry_after="2")]
        return ask_px(config, requests)

    monkeypatch.setattr(contract, "ask_px", busy)
    found = answers_of(verb, px.daemon_dir(tmp_path))
    assert found["an unknown user"]["answers"] == ["429, Retry-After: 2 slow down"]
    unread = found["a known user, an unregistered name, now"]
    assert unread["read_back"] is None
    assert "429" in unread["unread"]
    assert found["dated 1 day ago"]["read_back"] == 1


def test_events_that_appear_late_are_waited_for(px, tmp_path, verb, monkeypatch):
    now_s = 0.0

    def sleep(for_s: float) -> None:
        nonlocal now_s
        now_s += for_s

    monkeypatch.setattr(contract, "time", SimpleNamespace(time=time.time, monotonic=lambda: now_s, sleep=sleep))
    px.box.open_answers = OpenAnswers(unregistered_name="drop")
    sandboxed = px.daemon_dir(tmp_path)
    verb("check", "--live", "--contract", "--product", TEST_PRODUCT, "--read-back", "15s", *sandboxed.flags)
    reads = sum(entry.method == "GET" for entry in px.box.log())
    assert reads >= 16, "two rounds over eight questions"
    assert now_s == 15


def test_ctrl_c_while_waiting_deletes_the_user_too(px, tmp_path, verb, monkeypatch):
    def interrupt(_seconds):
        assert px.box.people.users
        raise KeyboardInterrupt

    monkeypatch.setattr("sidecar.cli.contract.time.sleep", interrupt)
    px.box.open_answers = OpenAnswers(unregistered_name="drop")
    sandboxed = px.daemon_dir(tmp_path)
    ran = verb("check", "--live", "--contract", "--product", TEST_PRODUCT, "--read-back", "1h", *sandboxed.flags)
    assert ran.code == 1
    assert px.box.people.users == {}


def test_the_user_that_px_did_not_know_is_deleted_too(px, tmp_path, verb):
    """PX may make a user of the event that names it."""
    sandboxed = px.daemon_dir(tmp_path)
    verb("check", "--live", "--contract", "--product", TEST_PRODUCT, "--read-back", "0s", *sandboxed.flags)
    deleted = [entry.path.rpartition("/")[2] for entry in px.box.log() if entry.method == "DELETE"]
    assert len(deleted) == 2
    assert deleted[1] == f"{deleted[0]}-unknown"


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--live", "--contract", "--product", "foo"), "begins with AP-"),
        (("--live", "--product", TEST_PRODUCT), "--contract"),
        (("--contract", "--product", TEST_PRODUCT), "give --live"),
    ],
)
def test_nothing_is_sent_to_a_product_that_cannot_be_one(daemon_dir: DaemonDir, verb, options, word):
    """A mistyped product key got the events; without `--contract` the option was ignored."""
    ran = verb("check", *options, *daemon_dir.flags)
    assert (ran.code, word in ran.err) == (2, True)

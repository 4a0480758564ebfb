"""The switches of the sandbox for what PX's documents leave open."""

import pytest

from sidecar.sandbox import OpenAnswers
from sidecar.sandbox.judge import JudgeAnswer
from sidecar.sandbox.open_answers import DAY_MS, decide, judge_traits

NOW_MS = 1_700_000_000_000


def event(**fields):
    return {"identifyId": "u", "eventName": "E", "date": NOW_MS} | fields


def asked(answers, given, *, users=("u",), event_ids=()):
    return decide(answers, given, now_ms=NOW_MS, users=users, event_ids=event_ids)


def test_the_defaults_store_everything():
    odd = event(identifyId="unknown", date=NOW_MS - 400 * DAY_MS, eventId="seen")
    assert asked(OpenAnswers(), odd, event_ids={"seen"}) == "store"


@pytest.mark.parametrize(
    ("answers", "given"),
    [
        (OpenAnswers(unknown_user="drop"), event(identifyId="unknown")),
        (OpenAnswers(old_event="drop"), event(date=NOW_MS - 31 * DAY_MS)),
        (OpenAnswers(old_event="drop", old_days=365), event(date=NOW_MS - 366 * DAY_MS)),
        (OpenAnswers(unregistered_name="drop", registered_names=("F",)), event()),
        (OpenAnswers(repeated_event_id="drop"), event(eventId="seen")),
        (OpenAnswers(many_attributes="drop"), event(attributes={str(number): 1 for number in range(51)})),
    ],
)
def test_each_switch_drops_its_event_and_no_other(answers, given):
    assert asked(answers, given, event_ids={"seen"}) == "drop"
    plain = event(eventName="F", eventId="new", attributes={str(number): 1 for number in range(50)})
    assert asked(answers, plain, event_ids={"seen"}) == "store"


@pytest.mark.parametrize(
    ("answers", "given", "field"),
    [
        (OpenAnswers(unknown_user="refuse"), event(identifyId="unknown"), b"identifyId"),
        (OpenAnswers(old_event="refuse"), event(date=NOW_MS - 31 * DAY_MS), b"date"),
    ],
)
def test_a_refusal_is_a_400_that_names_the_field(answers, given, field):
    answer = asked(answers, given)
    assert isinstance(answer, JudgeAnswer)
    assert answer.status == 400
    assert field in answer.body


def test_surplus_attributes_are_cut():
    given = event(attributes={str(number): 1 for number in range(51)})
    assert asked(OpenAnswers(many_attributes="cut"), given) == "store"
    assert len(given["attributes"]) == 50


def test_undeclared_traits_are_refused_or_ignored():
    user = {"customAttributes": {"known": 1, "odd": 2}}
    assert judge_traits(OpenAnswers(), user) is None
    refusal = judge_traits(OpenAnswers(undeclared_trait="refuse", declared_traits=("known",)), user)
    assert refusal is not None
    assert b"odd" in refusal.body
    assert judge_traits(OpenAnswers(undeclared_trait="ignore", declared_traits=("known",)), user) is None
    assert user["customAttributes"] == {"known": 1}

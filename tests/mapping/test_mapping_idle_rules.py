"""Rules that do nothing are named: what matched none of the newest events, and what can never match."""

import pytest
from mapping_help import identify, mapper, track

from sidecar.config import load_text
from sidecar.mapping.idle_rules import MIN_EVENTS, IdleRules

EVENTS = [
    track(
        "Feature Used",
        properties={"plan_name": "Pro", "Email": "x", "n": {"card": 1}, "link": "https://a.test/?token=1"},
        context={"groupId": "g", "consent": {"categoryPreferences": {"ads": False}}},
    ),
    {"type": "page", "userId": "u", "name": "Pricing", "properties": {}},
    identify({"plan": "x", "first_name": "Jane"}),
] * MIN_EVENTS


def idle(toml: str, events: list = EVENTS) -> list[str]:
    rules = IdleRules(load_text(toml).mapping)
    for event in events:
        rules.add(event)
    return rules.sentences()


@pytest.mark.parametrize(
    "toml",
    [
        '[mapping.attributes]\ndrop = ["email", "token"]\nhash = ["n.card", "card"]\n',
        '[mapping.attributes]\nkeep = ["plan_name"]\nrename = { plan_name = "plan" }\n',
        '[mapping.attributes]\nrename = { name = "page" }\n',
        '[mapping.events]\n"Feature *" = "X"\npage = "Y"\n',
        '[mapping.event."Page Viewed"]\npriority = "low"\n',
        '[mapping.fields]\naccountId = ["context.groupId"]\nuserType = "=LEAD"\n',
        '[[mapping.drop]]\nwhere = { "properties.plan_name" = "P*" }\n',
        '[mapping]\nconsent = ["ads"]\nurl_query = ["token"]\n',
        '[mapping.traits]\nkeep = ["plan", "first_name"]\n',
    ],
)
def test_rule_that_matches_is_not_named(toml: str):
    assert idle(toml) == []


def test_too_few_events_say_nothing_about_a_rule():
    seen = [track(properties={"plan_name": "pro"})]
    rule = '[mapping.attributes]\ndrop = ["email"]\n'
    assert idle(rule, seen * (MIN_EVENTS - 1)) == []
    assert len(idle(rule, seen * MIN_EVENTS)) == 1


def test_a_rule_for_a_key_of_a_form_is_not_named():
    posted = [track("Form Sent", properties={"body": "email=ann%40example.com&plan=pro"})] * MIN_EVENTS
    assert idle('[mapping.attributes]\ndrop = ["email"]\n', posted) == []


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        (
            '[mapping.attributes]\ndrop = ["e-mail"]\n',
            "mapping.attributes.drop 'e-mail' matched none of the last 60 events",
        ),
        ('[mapping.attributes]\nhash = ["phone"]\n', "mapping.attributes.hash 'phone' matched none"),
        (
            '[mapping.attributes]\nrename = { planName = "plan" }\n',
            "mapping.attributes.rename 'planName' matched none of the last 40 events of its kind. "
            "The apps send 'plan_name': rules see names before camel case.",
        ),
        ('[mapping.attributes]\nkeep = ["planName"]\n', "The apps send 'plan_name'"),
        ('[mapping.events]\n"Features *" = "X"\n', "mapping.events 'Features *' matched none"),
        ('[mapping.event."Logged In"]\npriority = "low"\n', "mapping.event 'Logged In' matched none"),
        ('[mapping.fields]\nsessionId = "properties.session"\n', "mapping.fields 'properties.session' matched none"),
        ('[[mapping.drop]]\nevent = "Debug*"\n', 'mapping.drop, entry 1 (event "Debug*") matched none'),
        ('[mapping]\nconsent = ["analytics"]\n', "mapping.consent 'analytics' matched none"),
        ('[mapping]\nurl_query = ["utm_source"]\n', "mapping.url_query 'utm_source' matched none"),
        ('[mapping.traits]\nrename = { firstName = "x" }\n', "The apps send 'first_name'"),
    ],
)
def test_rule_that_matched_nothing_is_named(toml: str, said: str):
    (sentence,) = idle(toml)
    assert said in sentence


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        (
            '[mapping.attributes]\ndrop = ["a"]\nrename = { A = "b" }\n',
            "mapping.attributes.rename names 'A', which `drop`",
        ),
        ('[mapping.attributes]\nkeep = ["a"]\nrename = { c = "b" }\n', "which is not in `keep`"),
        ('[mapping.events]\nX = ""\n[mapping.event.X]\npriority = "high"\n', "maps that name to nothing"),
        ('[mapping.fields]\nuserType = ["traits.kind", "=ADMIN"]\n', "'=ADMIN', which is not a user type of PX"),
    ],
)
def test_rule_that_can_never_match_is_named_without_events(toml: str, said: str):
    (sentence,) = idle(toml, [])
    assert said in sentence


def test_few_events_say_nothing_about_rules():
    assert idle('[mapping.attributes]\ndrop = ["e-mail"]\n', EVENTS[:9]) == []


def test_sentences_hold_no_values():
    toml = '[mapping.attributes]\ndrop = ["x1"]\nrename = { x2 = "y" }\n[[mapping.drop]]\nwhere = { "properties.a" = "b" }\n'
    assert "Jane" not in repr(idle(toml))


@pytest.mark.parametrize(
    "properties",
    [
        {"note": '{"a": [{"Email": "x"}]}'},
        {"in": {"note": '{"user": "{\\"email\\": 1}"}'}},
        {"link": "https://a.test/?q=%7B%22email%22%3A1%7D"},
        {"email.work": 1},
        {"n": {"my.email.work": 1}},
    ],
)
def test_rule_that_matches_inside_a_text_or_name_is_not_named(properties: dict):
    toml = '[mapping.attributes]\ndrop = ["email"]\n'
    assert mapper(toml).redact(track(properties=properties)) != track(properties=properties)
    assert idle(toml, [track(properties=properties)] * MIN_EVENTS) == []


def test_a_text_that_is_nested_too_deep_ends_nothing():
    assert idle("", [track(properties={"note": '{"a":' * 900 + "1" + "}" * 900})] * MIN_EVENTS) == []


@pytest.mark.parametrize("key", ["drop", "hash", "keep"])
def test_rule_of_one_event_is_compared_with_its_own_events(key: str):
    """A misspelled `drop` of an event sent every email, and nothing said so."""
    toml = f'[mapping.event."Feature Used".attributes]\n{key} = ["first_name"]\n'
    (sentence,) = idle(toml)
    assert f"mapping.event.\"Feature Used\".attributes.{key} 'first_name' matched none of the last 20" in sentence
    assert idle(toml.replace("first_name", "plan_name")) == []
    assert idle(toml, EVENTS[:9]) == []


def test_names_come_from_the_configured_path():
    toml = '[mapping.fields]\neventName = "properties.action"\n[mapping.events]\nSave = "Saved"\n[mapping.event.Save]\n'
    assert idle(toml, [track(properties={"action": "Save"})] * MIN_EVENTS) == []
    assert len(idle(toml, [track("Save", properties={"action": "x"})] * MIN_EVENTS)) == 2


def test_a_path_in_keep_matches_only_what_is_flattened():
    toml = '[mapping]\nnested = "{}"\n[mapping.attributes]\nkeep = ["n.card"]\n'
    assert idle(toml.format("flatten")) == []
    (sentence,) = idle(toml.format("string"))
    assert "keep 'n.card' matched none" in sentence
    assert len(idle(toml.format("flatten").replace("card", "cards"))) == 1


def test_an_id_of_the_call_is_not_what_a_rule_matches():
    assert len(idle('[mapping.attributes]\ndrop = ["messageId"]\n', [track(messageId="m")] * MIN_EVENTS)) == 1


def test_a_parameter_without_a_value_is_one_that_url_query_keeps():
    visits = [{"type": "page", "userId": "u", "context": {"page": {"url": "https://a.test/?beta&q=1"}}}] * MIN_EVENTS
    assert idle('[mapping]\nurl_query = ["beta"]\n', visits) == []


@pytest.mark.parametrize(
    ("event", "rule"),
    [
        (track(properties={"traits": {"email": "x"}}), "traits.email"),
        (track(properties={"body": '{"traits": {"email": "x"}}'}), "traits.email"),
        ({**track(), "extra": {"address": {"email": "x"}}}, "address.email"),
    ],
)
def test_path_that_begins_in_an_object_of_data_is_not_named(event: dict, rule: str):
    toml = f'[mapping.attributes]\ndrop = ["{rule}"]\n'
    assert mapper(toml).redact(event) != event
    assert idle(toml, [event] * MIN_EVENTS) == []


def test_path_in_the_traits_of_the_context_begins_below_them():
    event = track(context={"traits": {"address": {"email": "x"}}})
    assert idle('[mapping.attributes]\ndrop = ["address.email"]\n', [event] * MIN_EVENTS) == []
    assert len(idle('[mapping.attributes]\ndrop = ["traits.address.email"]\n', [event] * MIN_EVENTS)) == 1


def test_keep_matches_what_a_flat_name_is_below():
    sent = [track(properties={"plan.name": "pro"})] * MIN_EVENTS
    rules = '[mapping.attributes]\nkeep = ["plan"]\nrename = { "plan.name" = "plan_name" }\n'
    assert idle('[mapping]\nnested = "flatten"\n' + rules, sent) == []
    apart = idle(rules, sent)
    assert len(apart) == 2
    assert "mapping.attributes.rename names 'plan.name', which is not in `keep`" in apart[0]
    assert "mapping.attributes.keep 'plan' matched none" in apart[1]


def test_rules_of_one_event_never_act_on_what_the_common_ones_remove():
    common = '[mapping.attributes]\nkeep = ["plan", "email"]\ndrop = ["email"]\n'
    own = '[mapping.event."Plan Changed".attributes]\nrename = { seats = "licences" }\nhash = ["email"]\nhash_salt = "a salt of the host"\n'
    said = "\n".join(idle(common + own, []))
    assert "rename names 'seats', which is not in `keep`" in said
    assert "hash names 'email', which `drop` removes first" in said


def test_rules_for_traits_match_those_of_an_account_among_them():
    calls = [{"type": "identify", "userId": "u", "traits": {"company": {"id": "c", "plan_name": "p"}}}] * MIN_EVENTS
    rules = '[mapping.traits]\nkeep = ["company", "plan_name"]\nrename = { plan_name = "plan" }\n'
    assert idle(rules, calls) == []


def test_an_entry_behind_another_one_for_the_same_events_is_named():
    calls = [track("Debug A"), {"type": "page", "userId": "u"}] * MIN_EVENTS
    (first, second) = idle('[mapping.events]\n"Debug*" = ""\n"*A" = "A"\npage = "P"\n"Page Viewed" = "Q"\n', calls)
    assert "'*A' decided none" in first
    assert "'Page Viewed' decided none" in second
    assert idle('[mapping.events]\n"Debug*" = ""\n"Debug A" = "A"\n', [*calls, *[track("Debug B")] * 5]) == []

"""``px-sidecar map``: forms of input, forms of output, and the comparison with expected lines."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sidecar.cli.map import map as map_command
from sidecar.errors import Failed

RECEIVED = ["--received", "1717700000000"]
TRACK = {"type": "track", "event": "Feature Used", "userId": "u1"}
SENT = {
    "identifyId": "u1",
    "propertyKey": "AP-XXXXXXXXXX-2",
    "userType": "USER",
    "eventName": "Feature Used",
    "date": 1717700000000,
    "attributes": {},
}


@pytest.fixture(autouse=True)
def _empty_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Isolate the tests from the configuration of this host."""
    empty = tmp_path / "empty.toml"
    empty.touch()
    monkeypatch.setenv("PX_SIDECAR_CONFIG", str(empty))


def run(data: object, *arguments: str) -> Result:
    text = data if isinstance(data, (str, bytes)) else json.dumps(data)
    result = CliRunner().invoke(map_command, [*RECEIVED, *arguments], input=text)
    if result.exception is not None and not isinstance(result.exception, (SystemExit, Failed)):
        raise result.exception
    return result


def lines(data: object, *arguments: str) -> list[dict]:
    return [json.loads(line) for line in run(data, *arguments).stdout.splitlines()]


def request(**body: object) -> dict:
    return {"requests": [{"method": "POST", "path": "/v1/events/custom", "body": SENT | body}]}


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(TRACK),
        json.dumps(TRACK, indent=2),
        json.dumps([TRACK]),
        json.dumps([TRACK], indent=2),
        f"\n{json.dumps(TRACK)}\r\n\n",
    ],
)
def test_file_may_be_an_object_an_array_or_lines(text: str):
    assert lines(text) == [request()]


def test_event_with_a_batch_of_its_own_is_one_event():
    """As on the Unix socket: a type says that the line is a call."""
    (outcome,) = lines({**TRACK, "batch": [1, 2]})
    assert outcome["requests"][0]["body"]["eventName"] == TRACK["event"]


def test_batch_body_is_split_and_merged_into_events():
    body = {"batch": [TRACK, {**TRACK, "userId": "u2"}], "context": {"groupId": "g"}, "writeKey": "k"}
    assert lines(body) == [request_with(accountId="g"), request_with(identifyId="u2", accountId="g")]


def request_with(**more: object) -> dict:
    ordered = {key: value for key, value in (SENT | more).items() if key != "attributes"}
    return {"requests": [{"method": "POST", "path": "/v1/events/custom", "body": ordered | {"attributes": {}}}]}


def test_each_line_is_judged_on_its_own():
    text = "\n".join([json.dumps(TRACK), "oops", json.dumps([{**TRACK, "userId": "u2"}, 7]), '{"type":"nope"}'])
    first, broken, second, number, unknown = lines(text)
    assert (first, second) == (request(), request(identifyId="u2"))
    assert [outcome["dead"] for outcome in (broken, number, unknown)] == ["bad_event"] * 3
    assert "type" in unknown["detail"]


def test_truncated_object_is_one_bad_event():
    assert [outcome["dead"] for outcome in lines('{"type": "track"')] == ["bad_event"]
    assert lines("") == []
    assert lines("[]") == []


def test_memory_carries_from_event_to_event():
    identify = {"type": "identify", "userId": "u1", "traits": {"account_id": "a1"}}
    assert lines([TRACK, identify, TRACK, {**TRACK, "userId": "u2"}]) == [
        request(),
        {"dropped": "remembered"},
        {"requests": [{**request()["requests"][0], "body": {**SENT, "accountId": "a1"}}]},
        request(identifyId="u2"),
    ]


def test_changes_appear_only_if_there_are_any():
    (line,) = lines({**TRACK, "timestamp": "soon"})
    assert line["changes"] == [{"field": "date", "what": "timestamp cannot be read as a time; the next path is used"}]
    assert "changes" not in lines(TRACK)[0]


def test_python_nan_and_surrogates_are_accepted():
    (line,) = lines('{"type":"track","event":"E","userId":"u1","properties":{"x":NaN,"y":"\\ud800"}}')
    assert line["requests"][0]["body"]["attributes"] == {"y": "\ufffd"}


def test_configuration_applies(tmp_path: Path):
    path = tmp_path / "config.toml"
    path.write_text(
        '[px]\nproperty_key = "AP-MINE-2"\n[mapping.events]\n"Feature Used" = "Used"\n[people]\nusers = "upsert"'
    )
    event, user = lines([TRACK, {"type": "identify", "userId": "u/1"}], "--config", str(path))
    assert event == request(propertyKey="AP-MINE-2", eventName="Used")
    (sent,) = user["requests"]
    assert (sent["method"], sent["path"]) == ("PUT", "/v1/users/update")
    assert sent["body"]["propertyKeys"] == ["AP-MINE-2"]


def test_expect_exits_1_and_prints_the_difference(tmp_path: Path):
    golden = tmp_path / "golden.ndjson"
    golden.write_text(run([TRACK, {**TRACK, "userId": None}]).stdout)
    same = run([TRACK, {**TRACK, "userId": None}], "--expect", str(golden))
    assert (same.exit_code, same.stdout) == (0, "")
    other = run([{**TRACK, "event": "Else"}, {**TRACK, "userId": None}], "--expect", str(golden))
    assert isinstance(other.exception, Failed)
    assert "1 of 2 events" in str(other.exception)
    assert "event 1" in other.stdout
    assert '-        "eventName": "Feature Used",' in other.stdout
    assert '+        "eventName": "Else",' in other.stdout


@pytest.mark.parametrize("events", [[], [TRACK, TRACK]])
def test_expect_reports_missing_and_surplus_events(tmp_path: Path, events: list):
    golden = tmp_path / "golden.ndjson"
    golden.write_text(run([TRACK]).stdout)
    result = run(events, "--expect", str(golden))
    assert result.exit_code == 1
    assert "nothing" in result.stdout


def test_expect_says_if_its_file_is_not_output_of_map(tmp_path: Path):
    """The reason why it is not JSON was shown as what had been expected."""
    golden = tmp_path / "golden.ndjson"
    golden.write_text("not JSON")
    result = run([TRACK], "--expect", str(golden))
    assert isinstance(result.exception, Failed)
    assert "golden.ndjson is not output of `px-sidecar map`" in str(result.exception)


def test_explain_names_rule_and_path_within_80_columns():
    event = {
        **TRACK,
        "event": "Products Searched",
        "timestamp": "soon",
        "context": {"page": {"url": "https://example.test/" + "long/" * 40}},
        "properties": {"feature_name": "x", "gone": None},
    }
    shown = run(event, "--explain").stdout
    assert max(map(len, shown.splitlines())) <= 80
    for words in ("preset b2b-saas", "context.page.url", "properties.feature_name", "camel", "userId", "soon"):
        assert (words in shown) is (words != "soon")
    assert "not sent" in shown


def test_explain_as_json():
    (line,) = lines({**TRACK, "properties": {"a_b": 1, "featureName": 2, "feature_name": 3}}, "--explain", "--json")
    rows = {row["field"]: (row["value"], row["source"]) for row in line["explain"]}
    assert rows["attributes.aB"] == (1, "properties.a_b (camel)")
    assert rows["attributes.featureName"] == (2, "properties.featureName")
    assert rows["date"] == (1717700000000, "time of receipt")


@pytest.mark.parametrize(
    ("event", "words"),
    [
        ({"type": "identify", "userId": "u1", "traits": {"account_id": "a1"}}, "remembered"),
        ({"type": "alias", "userId": "u1"}, "not_supported"),
        ({"type": "track", "event": "E", "userId": "u1", "integrations": {"All": False}}, "opted_out"),
        ({"type": "track", "event": "E"}, "no_user"),
        ({"type": "nope"}, "bad_event"),
    ],
)
def test_explain_gives_the_reason_for_unsent_events(event: dict, words: str):
    assert words in run(event, "--explain").stdout


def test_explain_covers_people_and_rules_by_name(tmp_path: Path):
    path = tmp_path / "config.toml"
    path.write_text(
        '[people]\nusers = "upsert"\naccounts = "upsert"\n[mapping]\nunmapped = "drop"\nanonymous = "lead"\n'
        '[mapping.events]\n"Noise*" = ""\n[mapping.fields]\nuserType = "context.kind"\n'
        '[mapping.event."Signed Up"]\nuser_type = "VISITOR"\n'
    )
    events = [
        {"type": "identify", "userId": "u1", "traits": {"email": "e@x.test"}},
        {"type": "group", "userId": "u1", "groupId": "g1", "traits": {"name": "Acme"}},
        {**TRACK, "event": "Noise 7"},
        {**TRACK, "event": "Unheard Of"},
        {**TRACK, "context": {"kind": "lead"}},
        {**TRACK, "event": "Signed Up"},
        {**TRACK, "userId": None, "anonymousId": "a"},
    ]
    shown = lines(events, "--config", str(path), "--explain", "--json")
    rows = [{row["field"]: (row["value"], row["source"]) for row in line["explain"]} for line in shown]
    assert rows[0]["user"] == ("u1", "identifyId")
    assert rows[0]["user.email"][0] == "e@x.test"
    assert rows[0]["user.signUpDate"] == (1717700000000, "only for a new record")
    assert rows[1]["account"] == ("g1", "accountId")
    assert rows[2]["not sent"] == ("mapped_to_nothing", 'mapping.events "Noise*"')
    assert rows[3]["not sent"] == ("unmapped", 'unmapped = "drop"')
    assert [row["userType"] for row in rows[4:]] == [
        ("LEAD", "context.kind"),
        ("VISITOR", "mapping.event, user_type"),
        ("LEAD", "mapping.anonymous"),
    ]


def test_map_counts_per_day_down_the_file(tmp_path: Path):
    config = tmp_path / "c.toml"
    config.write_text("[mapping.event.X]\nper_day = 2\n")
    lines = '{"type":"track","event":"X","userId":"u"}\n' * 3
    result = CliRunner().invoke(map_command, ["--config", str(config)], input=lines)
    outcomes = [json.loads(line) for line in result.output.splitlines()]
    assert [outcome.get("dropped") for outcome in outcomes] == [None, None, "capped"]


def test_sizes_are_judged_as_the_daemon_does():
    event = b'{"type":"page","userId":"u","messageId":"m","p":"%b%b"}' % (b"\xff" * 9_000, b"x" * 23_000)
    batch = b'{"batch":[%b],"context":{"app":"%b"}}' % (event, b"\xff" * 15_000)
    shared_alone = b'{"batch":[{"type":"page","userId":"u"}],"context":{"app":"%b"}}' % (b"\xff" * 15_000)
    assert "requests" in lines(event)[0]
    assert "as stored, more than twice" in lines(batch)[0]["detail"]
    assert "requests" in lines(shared_alone)[0]

"""Each mistake in a configuration is told in one sentence: file and line, key, value, what is allowed."""

import sys

import pytest

from sidecar.config import load, load_text
from sidecar.errors import ConfigError

MISTAKES = [
    # unknown keys and tables
    ("[px]\n\nregio = 'us'", "config.toml line 3: [px] has an unknown key 'regio'; the nearest known one is 'region'."),
    ("[deliverr]", "config.toml line 1: the file has an unknown key 'deliverr'; the nearest known one is 'deliver'."),
    (
        "zzz = 1",
        "config.toml line 1: the file has an unknown key 'zzz'; known are px, listen, source, outbox, deliver, mapping, "
        "people, identity, log.",
    ),
    (
        "[[source]]\nwrite_key = 'a'\n[[source]]\nwrite_key = 'b'\nproperti_key = 's'",
        "config.toml line 5: [[source]] number 2 has an unknown key 'properti_key'; the nearest known one is 'property_key'.",
    ),
    (
        '[mapping.event.A]\n[mapping.event."B C"]\nprio = 1',
        "config.toml line 3: [mapping.event.\"B C\"] has an unknown key 'prio'; the nearest known one is 'priority'.",
    ),
    (
        '[mapping.event."B C"]\nattributes = { caze = "x" }',
        "config.toml line 2: [mapping.event.\"B C\".attributes] has an unknown key 'caze'; the nearest known one is 'case'.",
    ),
    (
        "[mapping.fields]\nidentifyID = 'userId'",
        "config.toml line 2: [mapping.fields] has an unknown key 'identifyID'; the nearest known one is 'identifyId'.",
    ),
    # choices
    ("[px]\nregion = 'eur'", "config.toml line 2: px.region is 'eur', but must be one of 'us', 'eu', 'us2'."),
    (
        '[mapping.event.A]\npriority = "high"\n[mapping.event."B C"]\npriority = "x"',
        "config.toml line 4: mapping.event.\"B C\".priority is 'x', but must be one of 'high', 'normal'.",
    ),
    (
        '[mapping.event."B C"]\nuser_type = "ADMIN"',
        "config.toml line 2: mapping.event.\"B C\".user_type is 'ADMIN', but must be one of 'USER', 'VISITOR', 'LEAD'.",
    ),
    # numbers
    ("[deliver]\nhosts = 0", "config.toml line 2: deliver.hosts is 0, but must be a whole number from 1."),
    ("[deliver]\nhosts = 1.5", "config.toml line 2: deliver.hosts is 1.5, but must be a whole number from 1."),
    ("[deliver]\nhosts = true", "config.toml line 2: deliver.hosts is true, but must be a whole number from 1."),
    ("[deliver]\nper_day = '5'", "config.toml line 2: deliver.per_day is '5', but must be a whole number above 0."),
    (
        "deliver.per_second = nan",
        "config.toml line 1: deliver.per_second is nan, but must be a number above 0 up to 10000.",
    ),
    (
        "deliver.per_second = inf",
        "config.toml line 1: deliver.per_second is inf, but must be a number above 0 up to 10000.",
    ),
    (
        "[deliver]\nmax_in_flight = 2000",
        "config.toml line 2: deliver.max_in_flight is 2000, but must be a whole number from 1 up to 1024.",
    ),
    (
        "[deliver]\nreserve_for_high = 1",
        "config.toml line 2: deliver.reserve_for_high is 1, but must be a number from 0 below 1.",
    ),
    # texts, durations, sizes, lists, tables
    ("[px]\nca_file = 2026-01-01", "config.toml line 2: px.ca_file is 2026-01-01, but must be a text in quotes."),
    ("[listen]\nallow_remote = 'yes'", "config.toml line 2: listen.allow_remote is 'yes', but must be true or false."),
    (
        "[deliver]\ntimeout = 'soon'",
        'config.toml line 2: deliver.timeout is \'soon\', but must be a duration such as "30s" or "24h".',
    ),
    (
        "[deliver]\ntimeout = 30",
        'config.toml line 2: deliver.timeout is 30, but must be a duration such as "30s" or "24h".',
    ),
    (
        "[deliver]\nmax_age = 3",
        'config.toml line 2: deliver.max_age is 3, but must be a duration such as "3d", or "" for none.',
    ),
    (
        "[outbox]\nmax_bytes = '4 huge'",
        'config.toml line 2: outbox.max_bytes is \'4 huge\', but must be a size such as "32KiB" or "4GiB".',
    ),
    (
        "[outbox]\nmax_bytes = -4",
        'config.toml line 2: outbox.max_bytes is -4, but must be a size such as "32KiB" or "4GiB".',
    ),
    (
        "[mapping.fields]\naccountId = 3",
        "config.toml line 2: mapping.fields.accountId is 3, but must be a text in quotes or a list of texts.",
    ),
    (
        "[mapping.fields]\naccountId = ['a', 3]",
        "config.toml line 2: mapping.fields.accountId[1] is 3, but must be a text in quotes.",
    ),
    (
        "[mapping.attributes]\nhash = [\n'a',\n4]",
        "config.toml line 2: mapping.attributes.hash[1] is 4, but must be a text in quotes.",
    ),
    (
        "[mapping.attributes]\nhash = 'a'",
        "config.toml line 2: mapping.attributes.hash is 'a', but must be a list of texts.",
    ),
    (
        "[mapping.attributes]\nset = { a = 1, b = [1] }",
        "config.toml line 2: mapping.attributes.set.b is a list, but must be a text in quotes, a whole number, a number or true or false.",
    ),
    (
        "[mapping.events]\nA = 'x'\n'B.*' = 3",
        'config.toml line 3: mapping.events."B.*" is 3, but must be a text in quotes.',
    ),
    ("[mapping.event]\nA = 4", "config.toml line 2: mapping.event.A must be a table."),
    ("px = 'MARKED'", "config.toml line 1: px must be a table."),
    ("source = ['MARKED']", "config.toml line 1: [[source]] number 1 must be a table."),
    (
        "[source]\nwrite_key = 'a'",
        "config.toml line 1: source is a table, but must be a list of tables, each under its own [[…]] header.",
    ),
    # secrets
    ("[px]\napi_key = 5", "config.toml line 2: px.api_key must be a text in quotes."),
    (
        "[[source]]\nwrite_key = 'a'\n[[source]]\nwrite_key = 5",
        "config.toml line 4: write_key of [[source]] number 2 must be a text in quotes.",
    ),
    (
        "[[source]]\nwrite_key = 'a'\n[[source]]",
        "config.toml line 3: write_key of [[source]] number 2 is missing; add it.",
    ),
    (
        "[[source]]\nwrite_key = ''",
        'config.toml line 2: write_key of [[source]] number 1 must be a text that is not empty, as in "wk_web".',
    ),
    (
        "[[source]]\nwrite_key = 'MARKED'\n[[source]]\nwrite_key = 'MARKED'",
        "config.toml line 1: source is a list, but must not give two sources one write_key, as it tells them apart.",
    ),
    # what a table forbids beyond types
    (
        "[listen]\nhttp = '0.0.0.0:1'",
        "config.toml line 2: listen.http is '0.0.0.0:1', but must be a loopback address unless allow_remote = true, as other "
        "hosts could reach it.",
    ),
    (
        "[listen]\nhttp = 'x'",
        'config.toml line 2: listen.http is \'x\', but must be host:port, as in "127.0.0.1:8321" or "[::1]:8321".',
    ),
    (
        "[listen]\nhttp = '[::1]:99999'",
        'config.toml line 2: listen.http is \'[::1]:99999\', but must be host:port, as in "127.0.0.1:8321" or "[::1]:8321".',
    ),
    (
        "[listen]\nhttps = '127.0.0.1:1'",
        "config.toml line 2: listen.https is '127.0.0.1:1', but needs tls_cert and tls_key, the paths of the certificate and its key.",
    ),
    (
        f"[listen]\ncontrol = '/{'x' * 107}'",
        f"config.toml line 2: listen.control is '/{'x' * 58}…, but must be a path of at most 107 bytes, the system's limit for sockets.",
    ),
    (
        "[listen]\nunix_mode = 'rw'",
        "config.toml line 2: listen.unix_mode is 'rw', but must be an octal file mode, as in \"0660\".",
    ),
    (
        "[px]\nbase_url = 'https://user:MARKED@host'",
        "config.toml line 2: px.base_url is 'https://****@host', but must not hold a user name or password; the key belongs in api_key_file.",
    ),
    (
        "[px]\nbase_url = 'http://host'",
        "config.toml line 2: px.base_url is 'http://host', but must begin with https:// unless its host is loopback, as the API key travels along.",
    ),
    (
        "[px]\nbase_url = 'https://host/v1'",
        "config.toml line 2: px.base_url is 'https://host/v1', but must be scheme://host[:port] without a path, as in "
        '"https://api.aptrinsic.com".',
    ),
    ("[deliver]\ntimeout = '0s'", "config.toml line 2: deliver.timeout is '0s', but must be longer than nothing."),
    ("[deliver]\nretry_max = '1ms'", "config.toml line 1: deliver.retry_initial must not be longer than retry_max."),
    (
        "[deliver]\nretry_initial = '9m'",
        "config.toml line 2: deliver.retry_initial is '9m', but must not be longer than retry_max.",
    ),
    (
        "[outbox]\nmax_event_bytes = '9MiB'",
        "config.toml line 2: outbox.max_event_bytes is '9MiB', but must not be above max_request_bytes, which bounds the request "
        "that holds it.",
    ),
    # not TOML
    (
        "[px",
        "config.toml is not valid TOML (Expected ']' at the end of a table declaration (at end of document)); correct that place.",
    ),
]


@pytest.mark.parametrize(("text", "sentence"), MISTAKES, ids=[text.replace("\n", " ") for text, _ in MISTAKES])
def test_a_mistake_is_one_sentence(text, sentence):
    with pytest.raises(ConfigError) as caught:
        load_text(text, {}, "config.toml")
    assert str(caught.value) == sentence
    assert "MARKED" not in str(caught.value)
    assert caught.value.exit_code == 78


def test_the_line_is_that_of_the_setting_and_not_of_a_text_that_looks_like_it():
    text = '[px]\nproperty_key = """\nregion = "none"\n"""\n# region = "none"\n\n  region   =  "none"\n'
    with pytest.raises(ConfigError, match=r"line 7: px\.region"):
        load_text(text, {}, "config.toml")


VARIABLES = [
    ({"PX_SIDECAR_PX_REGION": "usa"}, "The variable PX_SIDECAR_PX_REGION: px.region is 'usa', but must be one of 'us', 'eu', 'us2'."),
    ({"PX_SIDECAR_PX_REGON": "eu"}, "The variable PX_SIDECAR_PX_REGON names no setting; the nearest known one is 'region'; rename or unset it."),
    ({"PX_SIDECAR_DELIVER_HOSTS": "two"}, "The variable PX_SIDECAR_DELIVER_HOSTS is 'two', but must be a number."),
    ({"PX_SIDECAR_DELIVER_HOSTS": "0"}, "The variable PX_SIDECAR_DELIVER_HOSTS: deliver.hosts is 0, but must be a whole number from 1."),
    ({"PX_SIDECAR_LISTEN_ALLOW_REMOTE": "si"}, "The variable PX_SIDECAR_LISTEN_ALLOW_REMOTE is 'si', but must be true or false."),
    ({"PX_SIDECAR_MAPPING_EVENTS": "x"}, "The variable PX_SIDECAR_MAPPING_EVENTS names a table or list; set it in the file instead."),
    ({"PX_SIDECAR_MAPPING_ATTRIBUTES": "x"}, "The variable PX_SIDECAR_MAPPING_ATTRIBUTES names a table or list; set it in the file instead."),
]  # fmt: skip


@pytest.mark.parametrize(("environ", "sentence"), VARIABLES, ids=[next(iter(environ)) for environ, _ in VARIABLES])
def test_a_mistake_in_a_variable_names_the_variable(environ, sentence):
    with pytest.raises(ConfigError) as caught:
        load_text("[px]\nregion = 'eu'\n[deliver]\nhosts = 3", environ, "config.toml")
    assert str(caught.value) == sentence


def test_a_variable_wins_over_the_file_and_others_variables_are_left_alone():
    environ = {
        "PX_SIDECAR_PX_REGION": "us2",
        "PX_SIDECAR_DELIVER_PER_DAY": "500_000",
        "PX_SIDECAR_DELIVER_PER_SECOND": "12.5",
        "PX_SIDECAR_OUTBOX_MAX_BYTES": "1GiB",
        "PX_SIDECAR_LISTEN_ALLOW_REMOTE": "true",
        "PX_SIDECAR_SERVICE_HOST": "10.0.0.1",  # set by Kubernetes for a service of this name
        "PATH": "/bin",
    }
    config = load_text("[px]\nregion = 'eu'\nproperty_key = 'AP-FILE-2'", environ)
    assert (config.px.region, config.px.property_key) == ("us2", "AP-FILE-2")
    assert (config.deliver.per_day, config.deliver.per_second, config.outbox.max_bytes) == (500_000, 12.5, 2**30)
    assert config.listen.allow_remote is True


def test_a_file_that_was_asked_for_must_exist_and_one_that_was_not_need_not(tmp_path, monkeypatch):
    missing = tmp_path / "missing.toml"
    for flag, environ in ((str(missing), {}), (None, {"PX_SIDECAR_CONFIG": str(missing)})):
        with pytest.raises(ConfigError) as caught:
            load(flag, environ)
        assert (
            str(caught.value) == f"The configuration file {missing} does not exist; create it with `px-sidecar init`."
        )
    monkeypatch.setattr(sys.modules["sidecar.config.load"], "DEFAULT_PATH", str(missing))
    assert load(None, {"PX_SIDECAR_PX_REGION": "eu"}).px.region == "eu"


def test_the_flag_wins_over_the_variable(tmp_path):
    (tmp_path / "a.toml").write_text("px.region = 'eu'")
    (tmp_path / "b.toml").write_text("px.region = 'us2'")
    assert load(str(tmp_path / "a.toml"), {"PX_SIDECAR_CONFIG": str(tmp_path / "b.toml")}).px.region == "eu"
    assert load(None, {"PX_SIDECAR_CONFIG": str(tmp_path / "b.toml")}).px.region == "us2"


def test_a_file_that_cannot_be_read_is_told_with_the_reason(tmp_path):
    (tmp_path / "latin.toml").write_bytes(b"px.property_key = '\xe4'")
    for path, reason in ((tmp_path, "Is a directory"), (tmp_path / "latin.toml", "it is not UTF-8 text")):
        with pytest.raises(ConfigError) as caught:
            load(str(path), {})
        assert (
            str(caught.value) == f"The configuration file {path} cannot be read ({reason}); check its owner and mode."
        )

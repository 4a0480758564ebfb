"""Every configuration error is one sentence that names file and line, key, value, and what is allowed."""

import sys

import pytest

from sidecar.config import ConfigFile, load, load_text
from sidecar.config.file import examine
from sidecar.errors import ConfigError

ERRORS = [
    # unknown keys and tables
    ("[px]\n\nregio = 'us'", "config.toml line 3: [px] has an unknown key 'regio'; the nearest known key is 'region'."),
    ("[deliverr]", "config.toml line 1: the file has an unknown key 'deliverr'; the nearest known key is 'deliver'."),
    (
        "zzz = 1",
        "config.toml line 1: the file has an unknown key 'zzz'; known keys are px, listen, source, outbox, deliver, fleet, "
        "mapping, people, identity, log.",
    ),
    (
        "[[source]]\nwrite_key = 'a'\n[[source]]\nwrite_key = 'b'\nproperti_key = 's'",
        "config.toml line 5: [[source]] number 2 has an unknown key 'properti_key'; the nearest known key is 'property_key'.",
    ),
    (
        '[mapping.event.A]\n[mapping.event."B C"]\nprio = 1',
        "config.toml line 3: [mapping.event.\"B C\"] has an unknown key 'prio'; the nearest known key is 'priority'.",
    ),
    (
        '[mapping.event."B C"]\nattributes = { caze = "x" }',
        "config.toml line 2: [mapping.event.\"B C\".attributes] has an unknown key 'caze'; the nearest known key is 'case'.",
    ),
    (
        "[mapping.fields]\nidentifyID = 'userId'",
        "config.toml line 2: [mapping.fields] has an unknown key 'identifyID'; the nearest known key is 'identifyId'.",
    ),
    # an unknown key, and what is missing because it is misspelled
    (
        "[[mapping.drop]]\nevents = 'Debug'",
        "config.toml line 2: mapping.drop[0] has an unknown key 'events'; the nearest known key is 'event'.",
    ),
    (
        "[[source]]\nwritekey = 'a'",
        "config.toml line 2: [[source]] number 1 has an unknown key 'writekey'; the nearest known key is 'write_key'.",
    ),
    (
        "[fleet]\nurl = 'redis://h'\nnam = 'a'",
        "config.toml line 3: [fleet] has an unknown key 'nam'; the nearest known key is 'name'.",
    ),
    # choices
    ("[px]\nregion = 'eur'", "config.toml line 2: px.region is 'eur', but must be one of 'us', 'eu', 'us2'."),
    (
        '[mapping.event.A]\npriority = "high"\n[mapping.event."B C"]\npriority = "x"',
        "config.toml line 4: mapping.event.\"B C\".priority is 'x', but must be one of 'high', 'normal', 'low'.",
    ),
    (
        '[mapping.event."B C"]\nuser_type = "ADMIN"',
        "config.toml line 2: mapping.event.\"B C\".user_type is 'ADMIN', but must be one of 'USER', 'VISITOR', 'LEAD'.",
    ),
    # numbers
    ("[deliver]\nhosts = 0", "config.toml line 2: deliver.hosts is 0, but must be an integer of at least 1."),
    ("[deliver]\nhosts = 1.5", "config.toml line 2: deliver.hosts is 1.5, but must be an integer of at least 1."),
    ("[deliver]\nhosts = true", "config.toml line 2: deliver.hosts is true, but must be an integer of at least 1."),
    ("[deliver]\nper_day = '5'", "config.toml line 2: deliver.per_day is '5', but must be an integer above 0."),
    (
        "deliver.per_second = nan",
        "config.toml line 1: deliver.per_second is nan, but must be a number above 0 and at most 10000.",
    ),
    (
        "deliver.per_second = inf",
        "config.toml line 1: deliver.per_second is inf, but must be a number above 0 and at most 10000.",
    ),
    (
        "[deliver]\nmax_in_flight = 2000",
        "config.toml line 2: deliver.max_in_flight is 2000, but must be an integer of at least 1 and at most 1024.",
    ),
    (
        "[deliver]\nreserve_for_high = 1",
        "config.toml line 2: deliver.reserve_for_high is 1, but must be a number of at least 0 and below 1.",
    ),
    # strings, durations, sizes, lists, tables
    ("[px]\nca_file = 2026-01-01", "config.toml line 2: px.ca_file is 2026-01-01, but must be a quoted string."),
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
        'config.toml line 2: deliver.max_age is 3, but must be a duration such as "3d", or "" for no limit.',
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
        "[outbox]\nmax_bytes = true",
        'config.toml line 2: outbox.max_bytes is true, but must be a size such as "32KiB" or "4GiB".',
    ),
    (
        "[outbox]\nmax_bytes = 4611686018427387905",
        'config.toml line 2: outbox.max_bytes is 4611686018427387905, but must be a size such as "32KiB" or "4GiB".',
    ),
    (
        "[mapping.fields]\naccountId = 3",
        "config.toml line 2: mapping.fields.accountId is 3, but must be a quoted string or a list of strings.",
    ),
    (
        "[mapping.fields]\naccountId = ['a', 3]",
        "config.toml line 2: mapping.fields.accountId[1] is 3, but must be a quoted string.",
    ),
    (
        "[mapping.attributes]\nhash = [\n'a',\n4]",
        "config.toml line 2: mapping.attributes.hash[1] is 4, but must be a quoted string.",
    ),
    (
        "[mapping.attributes]\nhash = 'a'",
        "config.toml line 2: mapping.attributes.hash is 'a', but must be a list of strings.",
    ),
    (
        "[mapping.attributes]\nset = { a = 1, b = [1] }",
        "config.toml line 2: mapping.attributes.set.b is a list, but must be a quoted string, an integer, a number or true or false.",
    ),
    (
        "[mapping.events]\nA = 'x'\n'B.*' = 3",
        'config.toml line 3: mapping.events."B.*" is 3, but must be a quoted string.',
    ),
    ("[mapping.event]\nA = 4", "config.toml line 2: mapping.event.A must be a table."),
    ("px = 'MARKED'", "config.toml line 1: px must be a table."),
    ("source = ['MARKED']", "config.toml line 1: [[source]] number 1 must be a table."),
    (
        "[source]\nwrite_key = 'a'",
        "config.toml line 1: source is a table, but must be a list of tables, each under its own [[…]] header.",
    ),
    # secrets
    ("[px]\napi_key = 5", "config.toml line 2: px.api_key must be a quoted string."),
    (
        "[[source]]\nwrite_key = 'a'\n[[source]]\nwrite_key = 5",
        "config.toml line 4: write_key of [[source]] number 2 must be a quoted string.",
    ),
    (
        "[[source]]\nwrite_key = 'a'\n[[source]]",
        "config.toml line 3: write_key of [[source]] number 2 is missing; add it.",
    ),
    (
        "[[source]]\nwrite_key = ''",
        'config.toml line 2: write_key of [[source]] number 1 must be a non-empty string, as in "wk_web".',
    ),
    (
        "[[source]]\nwrite_key = 'MARKED'\n[[source]]\nwrite_key = 'MARKED'",
        "config.toml line 1: source is a list, but must not give two sources the same write_key, because the key identifies the source.",
    ),
    # rules of a table beyond types
    (
        "[listen]\nhttp = '0.0.0.0:1'",
        "config.toml line 2: listen.http is '0.0.0.0:1', but must be a loopback address unless allow_remote = true, "
        "because other hosts could reach it.",
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
        "config.toml line 2: listen.https is '127.0.0.1:1', but needs tls_cert and tls_key, the paths of the certificate and its private key.",
    ),
    (
        "[listen]\nunix = '/a/b.sock'\ncontrol = '/a/./b.sock'",
        "config.toml line 3: listen.control is '/a/./b.sock', but must be another path than listen.unix.",
    ),
    (
        "[listen]\ncontrol = ''",
        "config.toml line 2: listen.control is '', but must be a path, because the daemon is reached there.",
    ),
    (
        "[listen]\ncontrol_read = '/run/px-sidecar/control.sock'",
        "config.toml line 2: listen.control_read is '/run/px-sidecar/control.sock', but must be another path than listen.control.",
    ),
    (
        "[listen]\nhttp = '127.0.0.1:1'\nhttps = '127.0.0.1:1'\ntls_cert = 'a'\ntls_key = 'a'",
        "config.toml line 3: listen.https is '127.0.0.1:1', but must be another address than listen.http.",
    ),
    (
        f"[listen]\ncontrol = '/{'x' * 107}'",
        f"config.toml line 2: listen.control is '/{'x' * 58}…, but must be a path of at most 107 bytes, the system's limit for socket paths.",
    ),
    (
        "[listen]\nunix_mode = 'rw'",
        "config.toml line 2: listen.unix_mode is 'rw', but must be an octal file mode, as in \"0660\".",
    ),
    (
        "[px]\nbase_url = 'https://user:MARKED@host'",
        "config.toml line 2: px.base_url is 'https://****@host', but must not contain a user name or password; put the key into api_key_file.",
    ),
    (
        "[px]\nbase_url = 'http://host'",
        "config.toml line 2: px.base_url is 'http://host', but must begin with https:// unless its host is loopback, because requests carry the API key.",
    ),
    (
        "[px]\nbase_url = 'https://host/v1'",
        "config.toml line 2: px.base_url is 'https://host/v1', but must be scheme://host[:port] without a path; write "
        '"https://host".',
    ),
    (
        "[px]\nbase_url = 'api.aptrinsic.com'",
        "config.toml line 2: px.base_url is 'api.aptrinsic.com', but must be scheme://host[:port] without a path; write "
        '"https://api.aptrinsic.com".',
    ),
    (
        "[px]\nbase_url = 'https://host:abc'",
        "config.toml line 2: px.base_url is 'https://host:abc', but must be scheme://host[:port] without a path, as in "
        '"https://api.aptrinsic.com".',
    ),
    (
        "[px]\nbase_url = 'https://[::1'",
        "config.toml line 2: px.base_url is 'https://[::1', but must be scheme://host[:port] without a path, as in "
        '"https://api.aptrinsic.com".',
    ),
    (
        "[px]\nbase_url = ' HTTPS://Host:8443/ '",
        "config.toml line 2: px.base_url is ' HTTPS://Host:8443/ ', but must be scheme://host[:port] without a path; write "
        '"https://Host:8443".',
    ),
    # spellings of a choice
    ("[px]\nregion = 'EU'", "config.toml line 2: px.region is 'EU', but must be one of 'us', 'eu', 'us2'; write 'eu'."),
    (
        "[log]\nlevel = ' Info'",
        "config.toml line 2: log.level is ' Info', but must be one of 'debug', 'info', 'warning', 'error'; write 'info'.",
    ),
    (
        "[mapping]\nurl_query = 'Keep'",
        "config.toml line 2: mapping.url_query is 'Keep', but must be one of 'keep', 'drop' or a list of strings; write 'keep'.",
    ),
    (
        "[fleet]\nname = 'a'\nurl = 'redis://[::1'",
        "config.toml line 3: fleet.url is 'redis://[::1', but must be redis://HOST:PORT, rediss://HOST:PORT or unix:///PATH, "
        'as in "redis://10.0.0.5:6379", "rediss://engine.example:6380" or "unix:///run/redis/redis.sock".',
    ),
    # hosts that no look-up takes: it raises UnicodeError, which ended the daemon again and again
    (
        "[fleet]\nname = 'a'\nurl = 'redis://a..b:6379'",
        "config.toml line 3: fleet.url is 'redis://a..b:6379', but must have a host whose parts between dots have 1 to 63 characters.",
    ),
    (
        "[px]\nbase_url = 'https://a..b'",
        "config.toml line 2: px.base_url is 'https://a..b', but must have a host whose parts between dots have 1 to 63 characters.",
    ),
    (
        f"[px]\nbase_url = 'https://{'x' * 64}'",
        f"config.toml line 2: px.base_url is 'https://{'x' * 51}…, but must have a host whose parts between dots have 1 to 63 characters.",
    ),
    (
        "[listen]\nhttp = 'a..localhost:1'",
        "config.toml line 2: listen.http is 'a..localhost:1', but must have a host whose parts between dots have 1 to 63 characters.",
    ),
    ("[deliver]\ntimeout = '0s'", "config.toml line 2: deliver.timeout is '0s', but must be longer than 0s."),
    ("[deliver]\nretry_max = '1ms'", "config.toml line 1: deliver.retry_initial must not be longer than retry_max."),
    (
        "[deliver]\nretry_initial = '9m'",
        "config.toml line 2: deliver.retry_initial is '9m', but must not be longer than retry_max.",
    ),
    (
        "[outbox]\nmax_event_bytes = '9MiB'",
        "config.toml line 2: outbox.max_event_bytes is '9MiB', but must not be above max_request_bytes, the limit "
        "of the request that contains it.",
    ),
    # not TOML
    (
        "[px",
        "config.toml is not valid TOML (Expected ']' at the end of a table declaration (at end of document)); correct its syntax.",
    ),
    (
        "[px]\nregion = eu  # Europe",
        'config.toml line 2 is not valid TOML (Invalid value); write text in straight quotes: region = "…".',
    ),
    (
        "[px]\nregion = “eu”",
        'config.toml line 2 is not valid TOML (Invalid value); write text in straight quotes: region = "…".',
    ),
    (
        "[listen]\nallow_remote = True",
        "config.toml line 2 is not valid TOML (Invalid value); write allow_remote = true.",
    ),
]


@pytest.mark.parametrize(("text", "sentence"), ERRORS, ids=[text.replace("\n", " ") for text, _ in ERRORS])
def test_an_error_is_one_sentence(text, sentence):
    with pytest.raises(ConfigError) as caught:
        load_text(text, {}, "config.toml")
    assert str(caught.value) == sentence
    assert "MARKED" not in str(caught.value)
    assert caught.value.exit_code == 78


@pytest.mark.parametrize("text", ["x = " + "[" * 5_000, "x = " + "{a=" * 5_000, ".".join("a" * 3_000) + " = 1"])
def test_values_that_are_nested_too_deeply_are_one_sentence(text):
    """A RecursionError would have ended the daemon at a reload."""
    with pytest.raises(ConfigError, match=r"not valid TOML \(Values are nested too deeply\)"):
        load_text(text, {}, "config.toml")


def test_the_line_is_not_taken_from_a_string_or_comment():
    text = '[px]\nproperty_key = """\nregion = "none"\n"""\n# region = "none"\n\n  region   =  "none"\n'
    with pytest.raises(ConfigError, match=r"line 7: px\.region"):
        load_text(text, {}, "config.toml")


VARIABLES = [
    ({"PX_SIDECAR_PX_REGION": "usa"}, "The variable PX_SIDECAR_PX_REGION: px.region is 'usa', but must be one of 'us', 'eu', 'us2'."),
    ({"PX_SIDECAR_PX_REGON": "eu"}, "The variable PX_SIDECAR_PX_REGON does not name a setting; the nearest known key is 'region'; rename or unset it."),
    ({"PX_SIDECAR_DELIVER_HOSTS": "two"}, "The variable PX_SIDECAR_DELIVER_HOSTS is 'two', but must be an integer."),
    ({"PX_SIDECAR_DELIVER_PER_DAY": "1e6"}, "The variable PX_SIDECAR_DELIVER_PER_DAY is '1e6', but must be an integer."),
    ({"PX_SIDECAR_DELIVER_PER_SECOND": "x"}, "The variable PX_SIDECAR_DELIVER_PER_SECOND is 'x', but must be a number."),
    ({"PX_SIDECAR_MAPPING_TRAITS_NESTD": "x"}, "The variable PX_SIDECAR_MAPPING_TRAITS_NESTD does not name a setting; the nearest known key is 'nested'; rename or unset it."),
    ({"PX_SIDECAR_DELIVER_HOSTS": "0"}, "The variable PX_SIDECAR_DELIVER_HOSTS: deliver.hosts is 0, but must be an integer of at least 1."),
    ({"PX_SIDECAR_LISTEN_ALLOW_REMOTE": "si"}, "The variable PX_SIDECAR_LISTEN_ALLOW_REMOTE is 'si', but must be true or false."),
    ({"PX_SIDECAR_MAPPING_EVENTS": "x"}, "The variable PX_SIDECAR_MAPPING_EVENTS names a table or list; set that key in the file instead."),
    ({"PX_SIDECAR_MAPPING_ATTRIBUTES_HASH": "x"}, "The variable PX_SIDECAR_MAPPING_ATTRIBUTES_HASH names a table or list; set that key in the file instead."),
    ({"PX_SIDECAR_MAPPING_HASH_SALT": "x"}, "The variable PX_SIDECAR_MAPPING_HASH_SALT does not name a setting; known keys are preset, unmapped, anonymous, attribute_case, nested, url_query, consent, events, event, drop, fields, attributes, traits; rename or unset it."),
    ({"PX_SIDECAR_MAPPING_ATTRIBUTES_CASE": "x"}, "The variable PX_SIDECAR_MAPPING_ATTRIBUTES_CASE: mapping.attributes.case is 'x', but must be one of 'camel', 'keep'."),
    ({"PX_SIDECAR_MAPPING_ATTRIBUTES": "x"}, "The variable PX_SIDECAR_MAPPING_ATTRIBUTES names a table or list; set that key in the file instead."),
]  # fmt: skip


@pytest.mark.parametrize(("environ", "sentence"), VARIABLES, ids=[next(iter(environ)) for environ, _ in VARIABLES])
def test_an_error_in_a_variable_names_the_variable(environ, sentence):
    with pytest.raises(ConfigError) as caught:
        load_text("[px]\nregion = 'eu'\n[deliver]\nhosts = 3", environ, "config.toml")
    assert str(caught.value) == sentence


def test_the_keys_that_variables_set_are_known_without_their_values():
    environ = {"PX_SIDECAR_PX_API_KEY": "secret", "PX_SIDECAR_DELIVER_HOSTS": "2", "PX_SIDECAR_SERVICE_PORT": "1"}
    variables = ConfigFile("config.toml", environ).variables()
    assert variables == {"px.api_key": "PX_SIDECAR_PX_API_KEY", "deliver.hosts": "PX_SIDECAR_DELIVER_HOSTS"}


def test_a_variable_sets_a_key_of_a_table_in_a_section():
    """`mapping.attributes.hash_salt`, a secret, could only stand in the file."""
    environ = {"PX_SIDECAR_MAPPING_ATTRIBUTES_HASH_SALT": "from the variable", "PX_SIDECAR_MAPPING_TRAITS_CASE": "keep"}
    config = load_text("[mapping.attributes]\nhash = ['phone']\nhash_salt = 'from the file'", environ)
    assert config.mapping.attributes.hash_salt.reveal() == "from the variable"
    assert (config.mapping.attributes.hash, config.mapping.traits.case) == (["phone"], "keep")
    assert ConfigFile("config.toml", environ).variables() == {
        "mapping.attributes.hash_salt": "PX_SIDECAR_MAPPING_ATTRIBUTES_HASH_SALT",
        "mapping.traits.case": "PX_SIDECAR_MAPPING_TRAITS_CASE",
    }


def test_variables_override_the_file_and_foreign_ones_are_ignored():
    environ = {
        "PX_SIDECAR_PX_REGION": "us2",
        "PX_SIDECAR_DELIVER_PER_DAY": "500_000",
        "PX_SIDECAR_DELIVER_PER_SECOND": "12.5",
        "PX_SIDECAR_OUTBOX_MAX_BYTES": "1GiB",
        "PX_SIDECAR_LISTEN_ALLOW_REMOTE": "true",
        # Set by Kubernetes for services of these names.
        "PX_SIDECAR_SERVICE_HOST": "10.0.0.1",
        "PX_SIDECAR_SERVICE_PORT": "8321",
        "PX_SIDECAR_SERVICE_PORT_HTTP": "8321",
        "PX_SIDECAR_PORT": "tcp://10.0.0.1:8321",
        "PX_SIDECAR_PORT_8321_TCP": "tcp://10.0.0.1:8321",
        "PX_SIDECAR_PORT_8321_TCP_ADDR": "10.0.0.1",
        "PX_SIDECAR_PORT_8321_TCP_PROTO": "tcp",
        "PX_SIDECAR_OUTBOX_SERVICE_HOST": "10.0.0.2",
        "PX_SIDECAR_LISTEN_SERVICE_PORT_HTTPS": "443",
        "PX_SIDECAR_LISTEN_PORT_443_TCP_PORT": "443",
        "PATH": "/bin",
    }
    config = load_text("[px]\nregion = 'eu'\nproperty_key = 'AP-FILE-2'", environ)
    assert (config.px.region, config.px.property_key) == ("us2", "AP-FILE-2")
    assert (config.deliver.per_day, config.deliver.per_second, config.outbox.max_bytes) == (500_000, 12.5, 2**30)
    assert config.listen.allow_remote is True


def test_only_a_named_file_must_exist(tmp_path, monkeypatch):
    missing = tmp_path / "missing.toml"
    for flag, environ in ((str(missing), {}), (None, {"PX_SIDECAR_CONFIG": str(missing)})):
        with pytest.raises(ConfigError) as caught:
            load(flag, environ)
        assert (
            str(caught.value) == f"The configuration file {missing} does not exist; create it with `px-sidecar init`."
        )
    monkeypatch.setattr(sys.modules["sidecar.config.file"], "DEFAULT_PATH", str(missing))
    assert load(None, {"PX_SIDECAR_PX_REGION": "eu"}).px.region == "eu"


def test_the_flag_overrides_the_variable(tmp_path):
    (tmp_path / "a.toml").write_text("px.region = 'eu'")
    (tmp_path / "b.toml").write_text("px.region = 'us2'")
    assert load(str(tmp_path / "a.toml"), {"PX_SIDECAR_CONFIG": str(tmp_path / "b.toml")}).px.region == "eu"
    assert load(None, {"PX_SIDECAR_CONFIG": str(tmp_path / "b.toml")}).px.region == "us2"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"px.property_key = 'AP'\n# \xe4", "is not UTF-8 text (line 2); save it as UTF-8"),
        ("px.region = 'eu'".encode("utf-16"), "is UTF-16 text; save it as UTF-8"),
        ("px.region = 'eu'".encode("utf-16-be"), "is UTF-16 text; save it as UTF-8"),
        ("px.region = 'eu'".encode("utf-8-sig"), "begins with a byte order mark; save it as UTF-8 without one"),
        (b"#" * (4 * 2**20 + 1), "is longer than 4,194,304 bytes; check that the path is the right one"),
        (None, "is a directory; name the file in it"),
    ],
)
def test_a_file_that_is_not_plain_text_is_one_sentence(tmp_path, data, reason):
    path = tmp_path / "config.toml"
    path.mkdir() if data is None else path.write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        load(str(path), {})
    assert str(caught.value) == f"The configuration file {path} {reason}."


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_line_ends_of_every_system_are_read(tmp_path, line_end):
    path = tmp_path / "config.toml"
    path.write_bytes(line_end.join(["[px]", "\tregion = 'eu'", "[deliver]", "hosts = 0", ""]).encode())
    with pytest.raises(ConfigError, match="line 4"):
        load(str(path), {})
    path.write_bytes(path.read_bytes().replace(b"hosts = 0", b"hosts = 2"))
    assert load(str(path), {}).px.region == "eu"


def test_all_problems_are_found_in_the_order_of_the_file(tmp_path):
    """One error per run made correcting a file a guessing game."""
    path = tmp_path / "config.toml"
    path.write_text(
        "[px]\nregion = eu\nbase_url = 'x y'\n"
        "[deliver]\nhosts = 0\nper_secnd = 1\nretry_max = '1ms'\n"
        "[[source]]\nwrite_key = 5\n[[source]]\nwrite_key = ''\n[[source]]\nnope = 1\nwrite_key = 'a'\n"
        "[[mapping.drop]]\n[[mapping.drop]]\nevent = 4\n"
        "[mapping.attributes]\nhash = ['a', 3, 'b', 4]\n[mapping.event.A]\npriority = 'x'\n[mapping.event.B]\nsample = 2\n"
    )
    config, problems = examine(str(path), {"PX_SIDECAR_LOG_LEVEL": "loud", "PX_SIDECAR_LOG_LEVLE": "x"})
    assert [(problem.line, ".".join(map(str, problem.path))) for problem in problems] == [
        (None, ""),
        (None, "log.level"),
        (2, ""),
        (3, "px.base_url"),
        (4, "deliver.retry_initial"),
        (5, "deliver.hosts"),
        (6, "deliver.per_secnd"),
        (9, "source.0.write_key"),
        (11, "source.1.write_key"),
        (13, "source.2.nope"),
        (15, "mapping.drop.0.event"),
        (17, "mapping.drop.1.event"),
        (19, "mapping.attributes.hash.1"),
        (19, "mapping.attributes.hash.3"),
        (21, "mapping.event.A.priority"),
        (23, "mapping.event.B.sample"),
    ]
    assert config is not None
    with pytest.raises(ConfigError, match=r"and 15 more: `px-sidecar check` shows all\)\.$"):
        load(str(path), {"PX_SIDECAR_LOG_LEVEL": "loud", "PX_SIDECAR_LOG_LEVLE": "x"})


@pytest.mark.parametrize("text", ["[px]\nca = [\n'a'\nregion = 'eu'\n[deliver]\nhosts = 0\n", 'a = """\nb\nc\n', "[px"])
def test_what_only_follows_from_an_error_of_syntax_is_not_reported(tmp_path, text):
    path = tmp_path / "config.toml"
    path.write_text(text)
    config, problems = examine(str(path), {})
    assert (config, len(problems)) == (None, 1), problems


def test_a_table_that_is_there_twice_keeps_its_keys(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text("[px]\n[deliver]\n[px]\nregion = 'eu'\n[log]\nlevel = 'x'\n")
    assert [problem.line for problem in examine(str(path), {})[1]] == [3, 6]


@pytest.mark.parametrize(
    ("port", "is_valid"), [(1, True), (9_999, True), (64_999, True), (65_535, True), (65_536, False)]
)
def test_every_port_that_exists_can_be_that_of_px(port, is_valid):
    try:
        load_text(f"[px]\nbase_url = 'https://px.example.com:{port}'\n")
    except ConfigError:
        assert not is_valid
    else:
        assert is_valid

"""Logs: the right form for who reads, no secrets, no forged lines, no floods."""

import base64
import io
import json
import logging
import os

import pytest

from sidecar.config import Log, Secret, load_text
from sidecar.observe import configure, secrets_of
from sidecar.observe.logs import REPEAT_EVERY_S, REPEAT_KEYS_MAX, Repeats

log = logging.getLogger("sidecar.deliver.shell")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def _logging_as_it_was():
    root, ours = logging.getLogger(), logging.getLogger("sidecar")
    before, levels = list(root.handlers), (root.level, ours.level)
    yield
    for handler in [one for one in root.handlers if one not in before]:
        root.removeHandler(handler)
        handler.close()
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


def lines_in(stream):
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_terminal_gets_text_and_a_pipe_gets_json():
    terminal, pipe = Terminal(), io.StringIO()
    configure(Log(), terminal, {})
    log.info("PX answers again after %s", "3s", extra={"status": 201})
    configure(Log(), pipe, {})
    log.info("PX answers again after %s", "3s", extra={"status": 201})
    assert terminal.getvalue().endswith("Z INFO deliver.shell: PX answers again after 3s  status=201\n")
    (line,) = lines_in(pipe)
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info",
        "logger": "sidecar.deliver.shell",
        "message": "PX answers again after 3s",
        "status": 201,
    }


@pytest.mark.parametrize(("chosen", "stream"), [("json", Terminal()), ("text", io.StringIO())])
def test_a_chosen_format_wins_over_the_stream(chosen, stream):
    configure(Log(format=chosen), stream, {})
    log.warning("hello")
    assert stream.getvalue().startswith("{") == (chosen == "json")


def test_under_journald_every_line_begins_with_its_priority(tmp_path):
    with (tmp_path / "journal").open("w+") as stream:
        status = os.fstat(stream.fileno())
        configure(Log(level="debug"), stream, {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"})
        log.debug("one")
        log.info("two")
        log.warning("three")
        log.error("four")
        log.critical("five")
        stream.seek(0)
        lines = stream.read().splitlines()
    assert [line[:4] for line in lines] == ["<7>{", "<6>{", "<4>{", "<3>{", "<2>{"]
    assert [json.loads(line[3:])["message"] for line in lines] == ["one", "two", "three", "four", "five"]


def test_a_traceback_in_text_keeps_its_priority_on_every_line(tmp_path):
    with (tmp_path / "journal").open("w+") as stream:
        status = os.fstat(stream.fileno())
        configure(Log(format="text"), stream, {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"})
        try:
            raise ZeroDivisionError("a bug")
        except ZeroDivisionError:
            log.exception("stopped")
        stream.seek(0)
        lines = stream.read().splitlines()
    assert len(lines) >= 4
    assert all(line.startswith("<3>") for line in lines)


def test_the_stream_of_another_journal_is_no_journal(tmp_path):
    with (tmp_path / "log").open("w+") as stream:
        configure(Log(), stream, {"JOURNAL_STREAM": "1:2"})
        log.warning("hello")
        stream.seek(0)
        assert stream.read().startswith("{")


def test_the_level_is_for_us_and_libraries_speak_from_warnings_on():
    stream = io.StringIO()
    configure(Log(level="debug"), stream, {})
    log.debug("ours")
    logging.getLogger("httpcore").debug("headers with a key")
    logging.getLogger("httpcore").info("request")
    logging.getLogger("httpcore").warning("theirs")
    assert [line["message"] for line in lines_in(stream)] == ["ours", "theirs"]
    configure(Log(level="error"), stream := io.StringIO(), {})
    log.warning("not now")
    log.error("now")
    assert [line["message"] for line in lines_in(stream)] == ["now"]


def test_configuring_again_replaces_what_was_there():
    first, second = io.StringIO(), io.StringIO()
    configure(Log(), first, {})
    configure(Log(), second, {})
    log.info("once")
    assert first.getvalue() == ""
    assert len(lines_in(second)) == 1


@pytest.mark.parametrize("format_", ["text", "json"])
def test_a_secret_is_masked_wherever_it_stands(format_):
    key, quoted = "MARKED-api-key-123", 'wk"\\ü-MARKED'
    stream = io.StringIO()
    configure(Log(format=format_), stream, {}, [Secret(key), Secret(quoted), Secret(""), Secret("a")])
    basic = base64.b64encode(f"{key}:".encode()).decode()
    log.warning("header %s and %s", f"X-APTRINSIC-API-KEY: {key}", basic, extra={"key": key, "other": [quoted]})
    try:
        raise ValueError(f"refused {key} {quoted}")
    except ValueError:
        log.exception("it went wrong with %s", quoted)
    text = stream.getvalue()
    assert "MARKED" not in text
    assert basic not in text
    assert text.count("****") >= 6
    assert "X-APTRINSIC-API-KEY: ****" in text  # a secret of one letter would leave no readable line


def test_all_secrets_of_the_configuration_are_known():
    text = """
        [px]
        api_key = "MARKED-1"
        [[source]]
        write_key = "MARKED-2"
        [[source]]
        write_key = "MARKED-3"
        [mapping.attributes]
        hash_salt = "MARKED-4"
        [mapping.event."A".attributes]
        hash_salt = "MARKED-5"
    """
    revealed = {secret.reveal() for secret in secrets_of(load_text(text)) if secret}
    assert revealed == {f"MARKED-{number}" for number in range(1, 6)}


@pytest.mark.parametrize("format_", ["text", "json"])
def test_a_message_cannot_forge_a_line_or_steer_a_terminal(format_):
    stream = io.StringIO()
    configure(Log(format=format_), stream, {})
    log.warning("event %s", "x\n<0>2026 CRITICAL sidecar: all is lost\x1b[2J\u2028", extra={"name_": "y\nz"})
    assert stream.getvalue().count("\n") == 1
    assert "\x1b" not in stream.getvalue()


def test_odd_data_does_not_lose_the_line():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace")
    configure(Log(), stream, {})
    log.warning("odd %s", "\ud800", extra={"data": {"at": object(), "number": float("nan")}, "level": "stolen"})
    stream.seek(0)
    line = json.loads(stream.read())
    assert line["message"] == "odd \ud800"
    assert line["level"] == "warning"


# Repeats --------------------------------------------------------------------------------------------------------


class Clock:
    now_s = 0.0

    def __call__(self):
        return self.now_s


def record(message, *arguments, level=logging.WARNING):
    return logging.LogRecord("sidecar.px", level, "", 0, message, arguments, None)


def told(repeats, one):
    return [(each.getMessage(), getattr(each, "more", "")) for each in repeats.let_through(one)]


def test_a_repeated_warning_is_told_once_and_then_how_often():
    clock = Clock()
    repeats = Repeats(clock)
    assert told(repeats, record("event %s failed", 1)) == [("event 1 failed", "")]
    for number in range(2, 10):
        clock.now_s += 1
        assert told(repeats, record("event %s failed", number)) == []
    clock.now_s = REPEAT_EVERY_S
    assert told(repeats, record("event %s failed", 10)) == [("event 10 failed", "and 8 more like it in 1m")]
    assert told(repeats, record("event %s failed", 11)) == []


def test_what_was_held_back_is_told_with_the_next_line_of_another_kind():
    clock = Clock()
    repeats = Repeats(clock)
    for number in range(4):
        told(repeats, record("event %s failed", number))
    assert told(repeats, record("other")) == [("other", "")]
    clock.now_s = REPEAT_EVERY_S + 1
    assert told(repeats, record("third")) == [("event 3 failed", "and 2 more like it in 1m"), ("third", "")]
    assert told(repeats, record("event %s failed", 4)) == [("event 4 failed", "")]


def test_what_is_held_back_keeps_no_frames_alive():
    repeats = Repeats(Clock())
    told(repeats, record("failed"))
    try:
        raise ZeroDivisionError
    except ZeroDivisionError as error:
        one = record("failed")
        one.exc_info = (type(error), error, error.__traceback__)
    told(repeats, one)
    (last,) = repeats.rest()
    assert last.exc_info is None
    assert one.exc_info is not None  # other handlers get the record as it was


def test_another_level_or_message_is_no_repeat_and_infos_always_pass():
    repeats = Repeats(Clock())
    assert told(repeats, record("x"))
    assert told(repeats, record("y"))
    assert told(repeats, record("x", level=logging.ERROR))
    assert not told(repeats, record("x"))
    for _ in range(3):
        assert told(repeats, record("Listening at %s", "a", level=logging.INFO))


def test_memory_is_bounded_and_nothing_is_lost_of_the_count():
    repeats = Repeats(Clock())
    written = []
    for index in range(REPEAT_KEYS_MAX * 5):
        for _ in range(3):
            written += repeats.let_through(record(f"message {index}"))
        assert len(repeats._held) <= REPEAT_KEYS_MAX
    written += repeats.rest()
    more = sum(int(getattr(one, "more", "and 0").split()[1]) for one in written)
    assert len(written) + more == REPEAT_KEYS_MAX * 5 * 3


def test_a_closed_log_tells_what_it_held_back():
    stream = io.StringIO()
    configure(Log(format="text"), stream, {})
    for number in range(5):
        log.warning("event %s failed", number)
    assert stream.getvalue().count("\n") == 1
    configure(Log(format="text"), io.StringIO(), {})
    assert "event 4 failed (and 3 more like it in" in stream.getvalue()

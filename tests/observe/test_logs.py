"""Logs: the format fits the stream, secrets are masked, lines cannot be forged, repeats are suppressed."""

import base64
import io
import json
import logging
import os

import pytest

from sidecar.config import LogConfig, Secret, load_text
from sidecar.observe import LogLines, configure, secrets_of, write_keys_of
from sidecar.observe.logs import REPEAT_EVERY_S, REPEAT_KEYS_MAX, RepeatFilter

log = logging.getLogger("sidecar.deliver.delivery_loop")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def _restore_logging():
    root, ours = logging.getLogger(), logging.getLogger("sidecar")
    before, levels = list(root.handlers), (root.level, ours.level)
    yield
    for handler in [handler for handler in root.handlers if handler not in before]:
        root.removeHandler(handler)
        handler.close()
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


def lines_in(stream):
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_terminal_gets_text_and_a_pipe_gets_json():
    terminal, pipe = Terminal(), io.StringIO()
    configure(LogConfig(), terminal, {})
    log.info("PX answers again after %s", "3s", extra={"status": 201})
    configure(LogConfig(), pipe, {})
    log.info("PX answers again after %s", "3s", extra={"status": 201})
    assert terminal.getvalue().endswith("Z INFO deliver.delivery_loop: PX answers again after 3s  status=201\n")
    (line,) = lines_in(pipe)
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info",
        "logger": "sidecar.deliver.delivery_loop",
        "message": "PX answers again after 3s",
        "status": 201,
    }


@pytest.mark.parametrize(("chosen", "stream"), [("json", Terminal()), ("text", io.StringIO())])
def test_a_configured_format_overrides_the_stream(chosen, stream):
    configure(LogConfig(format=chosen), stream, {})
    log.warning("hello")
    assert stream.getvalue().startswith("{") == (chosen == "json")


def test_lines_for_journald_begin_with_their_priority(tmp_path):
    with (tmp_path / "journal").open("w+") as stream:
        status = os.fstat(stream.fileno())
        configure(LogConfig(level="debug"), stream, {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"})
        log.debug("one")
        log.info("two")
        log.warning("three")
        log.error("four")
        log.critical("five")
        stream.seek(0)
        lines = stream.read().splitlines()
    assert [line[:4] for line in lines] == ["<7>{", "<6>{", "<4>{", "<3>{", "<2>{"]
    assert [json.loads(line[3:])["message"] for line in lines] == ["one", "two", "three", "four", "five"]


def test_every_line_of_a_traceback_has_the_priority(tmp_path):
    with (tmp_path / "journal").open("w+") as stream:
        status = os.fstat(stream.fileno())
        configure(LogConfig(format="text"), stream, {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"})
        try:
            raise ZeroDivisionError("a bug")
        except ZeroDivisionError:
            log.exception("stopped")
        stream.seek(0)
        lines = stream.read().splitlines()
    assert len(lines) >= 4
    assert all(line.startswith("<3>") for line in lines)


def test_a_stream_other_than_journald_gets_no_priority(tmp_path):
    with (tmp_path / "log").open("w+") as stream:
        configure(LogConfig(), stream, {"JOURNAL_STREAM": "1:2"})
        log.warning("hello")
        stream.seek(0)
        assert stream.read().startswith("{")


def test_the_level_applies_to_our_loggers_only():
    stream = io.StringIO()
    configure(LogConfig(level="debug"), stream, {})
    log.debug("ours")
    logging.getLogger("httpcore").debug("headers with a key")
    logging.getLogger("httpcore").info("request")
    logging.getLogger("httpcore").warning("theirs")
    assert [line["message"] for line in lines_in(stream)] == ["ours", "theirs"]
    configure(LogConfig(level="error"), stream := io.StringIO(), {})
    log.warning("not now")
    log.error("now")
    assert [line["message"] for line in lines_in(stream)] == ["now"]


def test_configuring_again_replaces_the_handler():
    first, second = io.StringIO(), io.StringIO()
    configure(LogConfig(), first, {})
    configure(LogConfig(), second, {})
    log.info("once")
    assert first.getvalue() == ""
    assert len(lines_in(second)) == 1


@pytest.mark.parametrize("format_", ["text", "json"])
def test_secrets_are_masked_in_every_form(format_):
    key, quoted = "MARKED-api-key-123", 'wk"\\ü-MARKED'
    stream = io.StringIO()
    configure(LogConfig(format=format_), stream, {}, [Secret(key), Secret(quoted), Secret(""), Secret("a")])
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
    assert "X-APTRINSIC-API-KEY: ****" in text  # a secret of one character is not masked


def test_all_secrets_of_the_configuration_are_found():
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
    config = load_text(text)
    assert {key.reveal() for key in write_keys_of(config)} == {"MARKED-2", "MARKED-3"}
    revealed = {secret.reveal() for secret in [*secrets_of(config), *write_keys_of(config)] if secret}
    assert revealed == {f"MARKED-{number}" for number in range(1, 6)}


def test_the_password_of_the_proxy_is_a_secret():
    config = load_text('[px]\nproxy = "http://user:MARKED%40pass@proxy.example:3128"')
    stream = io.StringIO()
    configure(LogConfig(format="text"), stream, {}, secrets_of(config))
    log.warning("%s and %s failed at proxy.example", config.px.proxy, "MARKED@pass")
    assert "http://user:****@proxy.example:3128 and **** failed at proxy.example" in stream.getvalue()


@pytest.mark.parametrize("format_", ["text", "json"])
def test_a_message_cannot_forge_a_line_or_control_a_terminal(format_):
    stream = io.StringIO()
    configure(LogConfig(format=format_), stream, {})
    log.warning(
        "event %s", "x\n<0>2026 CRITICAL sidecar: all is lost\x1b[2J\u2028\x85\x9b2J", extra={"name_": "y\nz\x7f"}
    )
    assert len(stream.getvalue().splitlines()) == 1
    assert stream.getvalue().strip().isprintable()


def test_unusual_data_is_logged():
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="backslashreplace")
    configure(LogConfig(), stream, {})
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


def admitted(repeats, offered):
    return [(written.getMessage(), getattr(written, "more", "")) for written in repeats.admit(offered)]


def test_a_repeated_warning_is_written_once_a_minute_with_a_count():
    clock = Clock()
    repeats = RepeatFilter(clock)
    assert admitted(repeats, record("event %s failed", 1)) == [("event 1 failed", "")]
    for number in range(2, 10):
        clock.now_s += 1
        assert admitted(repeats, record("event %s failed", number)) == []
    clock.now_s = REPEAT_EVERY_S
    assert admitted(repeats, record("event %s failed", 10)) == [("event 10 failed", "and 8 more like it in 1m")]
    assert admitted(repeats, record("event %s failed", 11)) == []


def test_suppressed_records_are_counted_before_another_line():
    clock = Clock()
    repeats = RepeatFilter(clock)
    for number in range(4):
        admitted(repeats, record("event %s failed", number))
    assert admitted(repeats, record("other")) == [("other", "")]
    clock.now_s = REPEAT_EVERY_S + 1
    assert admitted(repeats, record("third")) == [("event 3 failed", "and 2 more like it in 1m"), ("third", "")]
    assert admitted(repeats, record("event %s failed", 4)) == [("event 4 failed", "")]


def test_a_suppressed_record_does_not_keep_frames_alive():
    repeats = RepeatFilter(Clock())
    admitted(repeats, record("failed"))
    try:
        raise ZeroDivisionError
    except ZeroDivisionError as error:
        repeated = record("failed")
        repeated.exc_info = (type(error), error, error.__traceback__)
    admitted(repeats, repeated)
    (last,) = repeats.flush()
    assert last.exc_info is None
    assert repeated.exc_info is not None  # other handlers get the record as it was


def test_only_equal_warnings_and_errors_repeat():
    repeats = RepeatFilter(Clock())
    assert admitted(repeats, record("x"))
    assert admitted(repeats, record("y"))
    assert admitted(repeats, record("x", level=logging.ERROR))
    assert not admitted(repeats, record("x"))
    for _ in range(3):
        assert admitted(repeats, record("Listening at %s", "a", level=logging.INFO))


def test_whole_sentences_repeat_only_if_they_are_equal():
    """A second problem of the fleet's engine, or a second socket that vanished, was held back as a repeat of the first."""
    stream = io.StringIO()
    configure(LogConfig(format="text"), stream, {})
    for sentence in ("The socket a has vanished.", "The socket b has vanished.", "The socket a has vanished."):
        log.error("%s", sentence)
    assert [line.rsplit(": ")[-1] for line in stream.getvalue().splitlines()] == [
        "The socket a has vanished.",
        "The socket b has vanished.",
    ]


def test_memory_is_bounded_and_every_record_is_counted():
    repeats = RepeatFilter(Clock())
    written = []
    for index in range(REPEAT_KEYS_MAX * 5):
        for _ in range(3):
            written += repeats.admit(record(f"message {index}"))
        assert repeats.remembered <= REPEAT_KEYS_MAX
    written += repeats.flush()
    more = sum(int(getattr(line, "more", "and 0").split()[1]) for line in written)
    assert len(written) + more == REPEAT_KEYS_MAX * 5 * 3


def test_closing_writes_the_suppressed_records():
    stream = io.StringIO()
    configure(LogConfig(format="text"), stream, {})
    for number in range(5):
        log.warning("event %s failed", number)
    assert stream.getvalue().count("\n") == 1
    configure(LogConfig(format="text"), io.StringIO(), {})
    assert "event 4 failed (and 3 more like it in" in stream.getvalue()


def test_a_write_key_is_masked_only_in_values_and_as_a_word():
    stream = io.StringIO()
    keys = [Secret("time"), Secret("info")]
    configure(LogConfig(format="json"), stream, {}, write_keys=keys)
    logging.getLogger("sidecar.x").info("The time of %s is runtime.", "time and sometimes", extra={"key": "info"})
    line = json.loads(stream.getvalue())
    assert line["level"] == "info"
    assert line["message"] == "The time of **** and sometimes is runtime."
    assert line["key"] == "****"
    assert "time" in line


@pytest.mark.parametrize("format_", ["text", "json"])
def test_an_exception_is_logged_with_its_type(format_):
    """Masking made a text of it, and the line about a bug named neither the type nor what a group holds."""
    stream, memory = io.StringIO(), LogLines()
    configure(LogConfig(format=format_), stream, {}, lines=memory, write_keys=[Secret("wk_web")])
    group = ExceptionGroup("in a nursery", [KeyError("wk_web")])
    logging.getLogger("sidecar").error("A connection ended: %r", group, extra={"error": ValueError("wk_web")})
    logging.getLogger("sidecar").error("A disk said: %s", OSError(5, "I/O error"))
    text = stream.getvalue()
    assert "A connection ended: ExceptionGroup('in a nursery', [KeyError('****')])" in text
    assert "A disk said: [Errno 5] I/O error" in text
    assert ("error=****" if format_ == "text" else '"error": "****"') in text
    assert "wk_web" not in text
    assert [line["message"] for line in memory.after(0)] == [
        "A connection ended: ExceptionGroup('in a nursery', [KeyError('****')])",
        "A disk said: [Errno 5] I/O error",
    ]


def test_the_lines_in_memory_show_no_secret_and_no_write_key():
    lines = LogLines()
    masks = configure(LogConfig(), io.StringIO(), {}, [Secret("MARKED-key")], lines, write_keys=[Secret("wk_web")])
    masks.add(write_keys=[Secret("wk_new")])
    log.warning("Nothing has the write keys %s and %s: %s.", "wk_web", "wk_new", "MARKED-key")
    assert [line["message"] for line in lines.after(0)] == ["Nothing has the write keys **** and ****: ****."]


def test_arguments_that_do_not_fit_end_nothing(capsys):
    configure(LogConfig(), io.StringIO(), {}, lines=LogLines())
    logging.getLogger("library").warning("%d connections", "many")
    assert "--- Logging error ---" in capsys.readouterr().err


def test_the_newest_lines_can_be_read_while_others_are_written():
    """A thread that logged just then made the console's log an internal error."""
    lines = LogLines()
    record = logging.LogRecord("sidecar", logging.INFO, "", 0, "written", None, None)

    class Writing(int):
        """An id that writes a line each time it is compared, as another thread may."""

        def __lt__(self, other):
            lines.emit(record)
            return True

    lines.emit(record)
    lines.emit(record)
    assert [line["id"] for line in lines.after(Writing(0))] == [1, 2]
    assert [line["id"] for line in lines.after(2)] == [3, 4]

"""Log lines in JSON are what `px-sidecar config schema --log` says."""

import io
import logging

import pytest
from log_lines import check_log_line

from sidecar.config import LogConfig
from sidecar.observe import configure


@pytest.fixture
def stream():
    """A stream that gets the log in JSON."""
    root, ours = logging.getLogger(), logging.getLogger("sidecar")
    before, levels = list(root.handlers), (root.level, ours.level)
    stream = io.StringIO()
    configure(LogConfig(level="debug", format="json"), stream, {})
    yield stream
    for handler in [handler for handler in root.handlers if handler not in before]:
        root.removeHandler(handler)
        handler.close()
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


class Odd:
    def __str__(self) -> str:
        return "odd\n\x1b[31m\u2028"


def test_every_level_and_kind_of_data_fits_the_schema(stream):
    log = logging.getLogger("sidecar.deliver.delivery_loop")
    for level in ("debug", "info", "warning", "error", "critical"):
        getattr(log, level)("%s %s", level, Odd(), extra={"status": 503, "ok": True, "none": None, "thing": Odd()})
    try:
        raise ValueError("a bug")
    except ValueError:
        log.exception("An error: %s", "é\ud800")
    logging.getLogger("httpcore").warning("of a library")
    lines = stream.getvalue().removesuffix("\n").split("\n")
    assert len(lines) == 7, "one record is one line"
    given = [check_log_line(line) for line in lines]
    assert "ValueError: a bug" in given[5]["traceback"]
    assert given[0]["status"] == 503


def test_a_suppressed_repeat_fits_the_schema(stream):
    log = logging.getLogger("sidecar.receive.server")
    for number in range(3):
        log.warning("number %d", number)
    logging.getLogger().handlers[-1].close()
    given = [check_log_line(line) for line in stream.getvalue().splitlines()]
    assert "(and 1 more like it in" in given[-1]["message"]


def test_the_schema_can_fail():
    for line in ('{"time":"x"}', '{"time":"2026-01-31T12:00:00.123Z","level":"loud","logger":"a","message":"b"}'):
        with pytest.raises(AssertionError):
            check_log_line(line)

"""The newest line about delivery matches the state, and few lines say so."""

import io
import logging

import pytest

from sidecar.config import LogConfig
from sidecar.observe import configure
from sidecar.observe.delivery_log import ACCEPTING, STEADY_MAX_S, STEADY_S, UNSTEADY_EVERY_S, DeliveryLog


class LogHarness:
    """A log of delivery on a clock of its own; ``lines`` are what a log file holds."""

    def __init__(self, stream: io.StringIO) -> None:
        self.now_s = 1000.0
        self._stream = stream
        self.log = DeliveryLog(lambda: self.now_s)

    def pass_time(self, seconds: float) -> None:
        for _ in range(int(seconds)):
            self.now_s += 1.0
            self.log.tick()

    def stop(self, reason: str = "away", state: str = "waiting") -> None:
        self.log.state(state, reason, f"because of {reason}.")
        self.log.tick()

    def open(self) -> None:
        self.log.state("open", "", "")
        self.log.tick()

    @property
    def lines(self) -> list[str]:
        for handler in logging.getLogger().handlers:
            handler.flush()
        return [line.split(" ", 1)[1].strip() for line in self._stream.getvalue().splitlines()]


@pytest.fixture
def harness():
    stream = io.StringIO()
    configure(LogConfig(format="text"), stream, {})
    yield LogHarness(stream)
    logging.getLogger().handlers.clear()


def test_a_stop_is_logged_at_once_and_its_end_once_it_lasts(harness):
    harness.stop()
    assert "Delivery is waiting: because of away." in harness.lines[-1]
    harness.open()
    harness.pass_time(STEADY_S - 1)
    assert len(harness.lines) == 1
    harness.pass_time(2)
    assert "continues" in harness.lines[-1]
    harness.pass_time(600)
    assert len(harness.lines) == 2


def test_flapping_delivery_logs_one_line_a_minute(harness):
    """With few descriptors 245 lines said "continues" in 14 s, and two said why it had stopped."""
    for _ in range(3 * int(UNSTEADY_EVERY_S)):
        for _ in range(5):
            harness.stop("no descriptors")
            harness.open()
        harness.pass_time(1)
    assert 3 <= len(harness.lines) <= 4
    assert all("no descriptors" in line for line in harness.lines)
    assert "Delivery keeps stopping" in harness.lines[-1]
    harness.pass_time(STEADY_MAX_S + 1)
    assert "continues" in harness.lines[-1]


def test_a_stop_soon_after_its_end_is_logged_although_it_repeats(harness):
    harness.stop()
    harness.open()
    harness.pass_time(STEADY_S + 1)
    harness.stop()
    assert "because of away" in harness.lines[-1]
    harness.open()
    harness.pass_time(STEADY_S + 1)
    assert "continues" not in harness.lines[-1], "the last one was premature"
    harness.pass_time(STEADY_S)
    assert "continues" in harness.lines[-1]


def test_a_pause_is_logged_at_once_even_while_waiting(harness):
    harness.stop("away")
    harness.stop("wrong_key", "paused")
    assert "Delivery is paused: because of wrong_key." in harness.lines[-1]
    harness.stop("wrong_key", "probing")
    harness.stop("wrong_key", "paused")
    assert len(harness.lines) == 2


def test_another_reason_of_a_lasting_outage_is_logged(harness):
    harness.stop("away")
    harness.pass_time(60)
    harness.stop("later")
    assert "because of later" in harness.lines[-1]


def test_another_reason_soon_after_the_first_is_logged_once_it_lasts(harness):
    harness.stop("away")
    harness.pass_time(2)
    harness.stop("wait")
    assert len(harness.lines) == 1
    harness.pass_time(600)
    assert len(harness.lines) == 2
    assert "Delivery is waiting: because of wait." in harness.lines[-1]


def test_a_pause_is_logged_again_when_its_probe_says_something_else(harness):
    """A replaced key was read-only; the log's last line spoke of the first key for the whole pause."""
    harness.log.state("paused", "wrong_key", "PX answered 401.")
    harness.pass_time(STEADY_S)
    harness.log.state("paused", "wrong_key", "PX answered 401.")
    assert len(harness.lines) == 1
    harness.log.state("paused", "wrong_key", "PX answered 403.")
    assert harness.lines[-1].endswith("Delivery is paused: PX answered 403.")


def test_an_operators_pause_is_logged_as_one_sentence(harness):
    harness.log.state("paused", "operator", "Delivery was paused; `px-sidecar resume` starts it again.")
    assert "WARNING" in harness.lines[-1]
    assert "Delivery is paused" not in harness.lines[-1]


def test_refusing_events_is_logged_once_and_so_is_its_end(harness):
    """On a full disk each event was answered 503, and the log said nothing."""
    harness.log = DeliveryLog(lambda: harness.now_s, ACCEPTING)
    for _ in range(30):
        harness.log.state("refused", "disk_full", "The disk is full.")
        harness.pass_time(1)
    assert len(harness.lines) == 1
    assert "ERROR" in harness.lines[0]
    assert harness.lines[0].endswith("Events are refused: The disk is full.")
    harness.open()
    harness.pass_time(STEADY_S + 1)
    assert len(harness.lines) == 2
    assert harness.lines[1].endswith("Events are accepted again.")

"""A stream that takes nothing stops nothing, and says afterwards how much is missing."""

import errno
import io
import threading
import time

from log_lines import check_log_line

from sidecar.config import LogConfig
from sidecar.observe import QueuedStream
from sidecar.observe.logs import missing_note


class StalledStream(io.StringIO):
    """A stream that takes nothing until ``resume`` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.resume = threading.Event()

    def write(self, text: str) -> int:
        self.resume.wait(10)
        return super().write(text)


def test_lines_are_written_in_order():
    text = io.StringIO()
    stream = QueuedStream(text)
    for number in range(100):
        stream.write(f"{number}\n")
    stream.close()
    assert text.getvalue().splitlines() == [str(number) for number in range(100)]


def test_a_stalled_stream_drops_lines_and_says_how_many():
    stalled = StalledStream()
    stream = QueuedStream(stalled, lines_max=3)
    for number in range(20):
        stream.write(f"{number}\n")
    stalled.resume.set()
    while stream.pending:
        pass
    stream.write("after\n")
    stream.close()
    lines = stalled.getvalue().splitlines()
    assert lines[-1] == "after"
    missing = 20 - (len(lines) - 2)
    assert lines[-2] == f"The log could not be written for a while; {missing} lines are missing here."


def test_lines_that_were_dropped_last_are_counted_at_the_end():
    stalled = StalledStream()
    stream = QueuedStream(stalled, lines_max=3)
    for number in range(20):
        stream.write(f"{number}\n")
    stalled.resume.set()
    stream.close()
    *lines, note = stalled.getvalue().splitlines()
    assert note == f"The log could not be written for a while; {20 - len(lines)} lines are missing here."


def test_a_stream_that_fails_causes_no_error():
    class ClosedStream(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    stream = QueuedStream(ClosedStream())
    stream.write("nobody reads this\n")
    stream.close()
    assert not stream.pending


class FullDisk(io.StringIO):
    """A file on a disk that is full until ``has_room``."""

    has_room = False
    refused = 0

    def write(self, text: str) -> int:
        if not self.has_room:
            self.refused += 1
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(text)


def test_lines_that_a_full_disk_refused_are_counted():
    """They were lost without a word, and the note about dropped lines was plain text in a log of JSON lines."""
    disk = FullDisk()
    stream = QueuedStream(disk, note=missing_note(LogConfig(format="json"), disk, {}))
    for number in range(20):
        stream.write(f"{number}\n")
    while disk.refused < 20:
        time.sleep(0.001)
    disk.has_room = True
    stream.write("after\n")
    stream.close()
    note, after = disk.getvalue().splitlines()
    assert check_log_line(note)["message"] == "The log could not be written for a while; 20 lines are missing here."
    assert after == "after"


def test_closing_gives_a_full_queue_its_time_too():
    """With a full queue the end did not wait at all, and the last lines were lost: those that say why the daemon ends."""

    class Slow(io.StringIO):
        def write(self, text: str) -> int:
            time.sleep(0.02)
            return super().write(text)

    slow = Slow()
    stream = QueuedStream(slow, lines_max=5)
    while not stream._queue.full():
        stream.write("line\n")
    stream.close()
    assert slow.getvalue().count("line\n") >= 5

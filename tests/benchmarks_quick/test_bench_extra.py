"""What the extra `bench` adds: the pictures, and persist-queue as an alternative. Skipped where it is not installed."""

from pathlib import Path

import msgspec
import pytest

from benchmarks.apps import left_on_disk
from benchmarks.results import Results

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "results.json"


@pytest.mark.filterwarnings("ignore")  # matplotlib warns about its own dependencies while it is imported
def test_the_pictures_are_drawn_from_stored_results(tmp_path):
    pytest.importorskip("matplotlib")
    from benchmarks.plots import draw

    draw(msgspec.json.decode(RESULTS.read_bytes(), type=Results), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"ceiling.png", "latency.png", "scale.png"}
    assert all(path.stat().st_size > 5_000 for path in tmp_path.iterdir())


def test_persist_queue_keeps_what_is_not_acknowledged(tmp_path):
    pytest.importorskip("persistqueue")
    from benchmarks.apps import _ack_queue

    queue = _ack_queue(str(tmp_path))
    for body in (b'{"eventId":"a"}', b'{"eventId":"b"}'):
        queue.put(body)
    queue.ack(queue.get(block=False))
    queue.get(block=False)
    del queue
    assert left_on_disk("persist_queue", str(tmp_path)) == {"b"}

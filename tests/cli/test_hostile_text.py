"""Text of events on a terminal: nothing in it is executed."""

import io
import json
import sys

import pytest
from running_daemon import DaemonDir

from sidecar.cli.common import json_for, print_document


class Terminal(io.TextIOWrapper):
    """A terminal that keeps what was printed."""

    def isatty(self) -> bool:
        return True


# An escape sequence, the same with the one character that stands for its begin, a direction of writing, and a return.
HOSTILE = "a\x1b[2J\x9b2J\u202eb\rc"


def test_json_on_a_terminal_escapes_control_characters():
    """JSON itself escapes what is below the blank only."""
    data = json.dumps({"name": HOSTILE}, ensure_ascii=False).encode()
    shown = json_for(Terminal(io.BytesIO(), encoding="utf-8"), data)
    assert shown.isprintable()
    assert json.loads(shown) == {"name": HOSTILE}
    assert json_for(io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), data).encode() == data, (
        "a pipe gets the same bytes"
    )


def test_a_document_on_a_terminal_shows_marks_for_control_characters(monkeypatch: pytest.MonkeyPatch):
    """``names --csv`` printed the names as apps had sent them."""
    monkeypatch.setattr(sys, "stdout", Terminal(io.BytesIO(), encoding="utf-8"))
    print_document(f"name,events\r\n{HOSTILE},1\r\n")
    assert sys.stdout.buffer.getvalue().decode() == "name,events\na·[2J·2J·b·c,1\n"


def test_names_and_ids_of_events_are_shown_without_control_characters(daemon_dir: DaemonDir, verb, tmp_path):
    """In what ``events show`` says of the mapping, in the ids that ``forget`` names, and in ``map --explain``."""
    event = {"type": "track", "event": "A", "userId": "u1", "anonymousId": "an\x9bon"}
    event |= {"properties": {"\x9b" + "k" * 2_000: "v", "plan": "go\x9bld"}}
    file = tmp_path / "events.ndjson"
    file.write_text(json.dumps(event))
    with daemon_dir.running() as daemon:
        daemon.client.post("/v1/send", {"event": event})
        daemon.settle()
        shown = verb("events", "show", "1", *daemon_dir.flags)
        forgotten = verb("forget", "u1", *daemon_dir.flags)
    explained = verb("map", "--explain", str(file), *daemon_dir.flags)
    assert "changed: attributes.·kkk" in shown.out
    assert "forget them, too: an·on" in forgotten.err
    assert "go·ld" in explained.out
    for ran in (shown, forgotten, explained):
        assert "\x9b" not in ran.out + ran.err

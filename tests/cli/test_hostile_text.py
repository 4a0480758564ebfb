"""Text of events on a terminal: nothing in it is executed."""

import io
import json
import sys

import pytest

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

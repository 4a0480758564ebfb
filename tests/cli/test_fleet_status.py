"""The screen of ``px-sidecar fleet status``."""

from typing import Any

import pytest

from sidecar.cli.fleet import _show

OWN = {
    "name": "production", "state": "sharing", "problem": "", "members": 1, "absent": 0, "rate": 190.0, "alone": 11.45,
    "used": 1, "slots_granted": 700, "slots_late": 3, "clock_uncertainty_s": 0.001,
}  # fmt: skip


def screen(capsys: pytest.CaptureFixture[str], members: list[dict[str, Any]], **own: object) -> list[str]:
    _show({"fleet": OWN | own, "members": members, "error": None})
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def member(host: str, granted: int, **other: object) -> dict[str, Any]:
    about = {"this": False, "connected": True, "alone_per_second": 11.45}
    return {"host": host, "granted": granted, **about, **other}


def test_a_member_is_one_line_of_eighty_columns(capsys):
    """The line of this host was 84 columns wide."""
    lines = screen(capsys, [member("web-1", 300, connected=False), member("ip-10-20-30-40.local", 700, this=True)])
    assert lines[-2:] == [
        "  ip-10-20-30-40.local  connected   70.0 % of slots  alone 11.45/s, this host",
        "  web-1                 absent      30.0 % of slots  alone 11.45/s",
    ]


def test_a_count_of_one_is_singular(capsys):
    text = "\n".join(screen(capsys, []))
    assert "for 1 connected host, 0 absent" in text
    assert "1 request of all hosts" in text


@pytest.mark.parametrize("state", ["joining", "quiet", "alone"])
def test_a_state_does_not_say_that_an_engine_is_away_that_refuses(capsys, state):
    problem = "This host was not joined to the fleet: deliver.per_second is 188 here and 189 there."
    text = " ".join(screen(capsys, [member("web-1", 1)], state=state, problem=problem))
    assert f"{state}: not connected" in text
    assert "answer" not in text

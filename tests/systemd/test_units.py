"""The shipped units, judged by systemd's own tools; ``test_units_booted.py`` runs them."""

import re
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import pytest

from sidecar.outbox import Store

UNITS = Path(__file__).resolve().parents[2] / "systemd"
MOST_EXPOSURE = 12  # tenths of systemd's own score, from 0 (nothing left to lock) to 100

needs_analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


@pytest.fixture
def units(tmp_path):
    """A copy of the units whose program exists here: ``verify`` looks for it."""
    for unit in (*UNITS.glob("*.service"), *UNITS.glob("*.socket")):
        text = unit.read_text(encoding="utf-8").replace("ExecStart=/usr/bin/px-sidecar", "ExecStart=/bin/true")
        (tmp_path / unit.name).write_text(text, encoding="utf-8")
    return tmp_path


def settings(unit):
    """The assignments of a unit as (section, key, value), in order."""
    found, section = [], ""
    for line in (UNITS / unit).read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            found.append((section, *line.split("=", 1)))
    return found


@needs_analyze
def test_systemd_finds_nothing_to_complain_about(units):
    names = sorted(f"./{unit.name}" for unit in units.iterdir())
    assert len(names) == 5
    done = subprocess.run(
        ["systemd-analyze", "verify", "--recursive-errors=one", *names],
        cwd=units,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_analyze
@pytest.mark.parametrize("unit", ["px-sidecar.service", "px-sidecar@.service"])
def test_little_is_left_to_an_attacker_in_the_daemon(units, unit):
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--no-pager", f"--threshold={MOST_EXPOSURE}", f"./{unit}"],
        cwd=units, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("unit", "template"), [("px-sidecar.service", "px-sidecar@.service"), ("px-sidecar.socket", "px-sidecar@.socket")]
)
def test_a_template_differs_only_in_what_an_instance_has_of_its_own(unit, template):
    own = {"Description", "Wants", "ExecStart", "StateDirectory", "LoadCredential", "Also", "ListenStream", "Service"}
    own.add("Environment")
    for (section, key, value), (_, other_key, other) in zip(settings(unit), settings(template), strict=True):
        assert key == other_key
        assert value == other or (key in own and "%i" in other), (section, key)


@pytest.mark.parametrize(
    ("unit", "name"),
    [("px-sidecar.socket", "unix"), ("px-sidecar-http.socket", "http"), ("px-sidecar@.socket", "unix")],
)
def test_each_socket_unit_has_one_socket_and_one_name(unit, name):
    """``FileDescriptorName=`` counts for all sockets of a unit, so two in one would not be told apart."""
    keys = [(key, value) for _, key, value in settings(unit)]
    assert sum(key.startswith("Listen") for key, _ in keys) == 1
    assert ("FileDescriptorName", name) in keys
    assert ("TriggerLimitIntervalSec", "0") in keys


def test_each_setting_has_its_reason_beside_it():
    """Each block of settings of the two daemons' units begins with a comment; the sandbox is one block."""
    text = (UNITS / "px-sidecar.service").read_text(encoding="utf-8")
    blocks = [block for block in re.split(r"\n\s*\n", text) if "=" in block]
    bare = [block for block in blocks if not re.match(r"(\[\w+\]\n)?(#|Description=)", block)]
    assert not bare


def test_the_data_map_names_every_table_of_the_outbox(tmp_path):
    """A new table holds something of somebody: the page says what, for how long, and for whom."""
    path = tmp_path / "outbox.db"
    Store(path).close()
    with closing(sqlite3.connect(path)) as database:
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
    page = (UNITS / "README.md").read_text(encoding="utf-8")
    data_map = page.partition("\n## Data map\n")[2].partition("\n## ")[0]
    assert tables - {"_sqlite_migrations"} <= set(re.findall(r"`(\w+)`", data_map))

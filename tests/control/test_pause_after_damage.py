"""An operator's pause survives damage to the record that holds it: the audit trail lies in other pages."""

import json

import pytest

from sidecar.control.delivery_control import load_destination
from sidecar.outbox import Store
from sidecar.outbox.operations import add_audit


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "o.db", durability="process")
    yield store
    store.close()


def record(store: Store, *actions: str, saved: str | None = None, damaged: bool = False) -> None:
    with store.transaction():
        for action in actions:
            add_audit(store, 1, "root", action, "")
        if saved is not None:
            store.set_meta("destination", saved)
    store.notice = "the outbox was damaged" if damaged else ""


def test_a_pause_survives_the_loss_of_its_record(store):
    record(store, "pause", "reload", damaged=True)
    assert load_destination(store) == {"operator": True}
    store.notice = ""  # at the next start
    assert load_destination(store) == {"operator": True}


def test_a_pause_survives_an_older_or_corrupt_record(store):
    record(store, "resume", "pause", saved='{"operator":false,"pace":0.5}', damaged=True)
    assert load_destination(store) == {"operator": True, "pace": 0.5}
    record(store, saved="{", damaged=True)
    assert load_destination(store) == {"operator": True}


def test_a_resume_is_not_undone(store):
    record(store, "pause", "resume", damaged=True)
    assert load_destination(store) == {}


def test_without_damage_the_record_decides(store):
    """A crash between a resume and its row in the audit trail must not pause delivery again."""
    record(store, "pause", saved=json.dumps({"operator": False}))
    assert load_destination(store) == {"operator": False}

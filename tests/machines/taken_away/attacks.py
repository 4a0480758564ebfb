"""What happens to the outbox's files under a running daemon, and which answered events the next start finds.

    python tests/machines/taken_away/attacks.py              every attack
    python tests/machines/taken_away/attacks.py NAME …       some of them

A real daemon stores events of a client that sends all the time. An attack removes, moves, replaces or overwrites files. A
few seconds later the daemon is killed (if it has not ended by itself), and the next start, with what `status` asks an
operator to do, is compared with the answers.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from process_harness import ProcessHarness, wait_until  # noqa: E402

from sidecar.outbox import open_outbox  # noqa: E402
from sidecar.outbox.rescue import rescued_files  # noqa: E402

NOTICED_S = 2.0
BEFORE_S, AFTER_S = 2.0, 5.0
PATIENCE_S = 30.0  # for what has no promised time: the file put back, the end of the daemon


class Attack(NamedTuple):
    """``act`` works on the place. ``spares``: it destroys nothing itself, so that no answered event may be lost at all."""

    name: str
    act: Callable[["Place"], None]
    spares: bool = True


class Place:
    """The folders of one daemon: ``state`` holds the outbox, at the path that the configuration has."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.harness = ProcessHarness(folder)
        self.state = folder / "state"
        self.state.mkdir()
        self.link = folder / "link"
        self.link.symlink_to(self.state)
        self.outbox = self.state / "outbox.db"
        self.harness.outbox = self.link / "outbox.db"
        self.backup = folder / "backup.db"

    def files(self) -> list[Path]:
        return [self.outbox.with_name(f"outbox.db{suffix}") for suffix in ("", "-wal", "-shm")]


class Client(threading.Thread):
    """Sends events one after another and records when each was answered 200."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self.url = url
        self.answered: dict[str, float] = {}
        self.stopped = threading.Event()

    def run(self) -> None:
        number = 0
        while not self.stopped.is_set():
            number += 1
            body = json.dumps({"messageId": f"m{number}", "userId": "u", "event": "Feature Used"}).encode()
            request = urllib.request.Request(f"{self.url}/v1/track", body, {"Content-Type": "application/json"})
            try:
                with urllib.request.urlopen(request, timeout=10):
                    self.answered[f"m{number}"] = time.monotonic()
            except OSError:
                time.sleep(0.05)


def remove_all(place: Place) -> None:
    for file in place.files():
        file.unlink(missing_ok=True)


def replace_by_backup(place: Place) -> None:
    """As `mv backup outbox.db` of a copy that was made by SQLite a moment ago."""
    shutil.move(place.backup, place.outbox)


def copy_over(place: Place) -> None:
    """As `cp backup outbox.db`: the same file with another content."""
    with place.outbox.open("r+b") as file:
        file.truncate(0)
        file.write(place.backup.read_bytes())


def truncate(path: Path) -> None:
    os.truncate(path, 0)


def link_elsewhere(place: Place) -> None:
    other = place.folder / "other"
    other.mkdir()
    place.link.unlink()
    place.link.symlink_to(other)


def hard_link(place: Place) -> None:
    os.link(place.outbox, place.folder / "second.db")
    place.outbox.unlink()


def bind_mount(place: Place) -> None:
    """Another file system over the folder, as after a mount that came too late."""
    subprocess.run(["mount", "-t", "tmpfs", "none", place.state], check=True)


def remove_folder(place: Place) -> None:
    """As `rm -rf`: the daemon may put the outbox back into the folder while it is being emptied."""
    shutil.rmtree(place.state, ignore_errors=True)


def move_and_return(place: Place) -> None:
    """The folder is moved away, and moved back over the one that the daemon has made."""
    place.state.rename(place.folder / "moved")
    time.sleep(3)
    wait_until(place.outbox.exists, PATIENCE_S, what="the outbox put back")
    place.state.rename(place.folder / "made")
    (place.folder / "moved").rename(place.state)


def forbid(place: Place) -> None:
    place.state.chmod(0)
    time.sleep(3)
    place.state.chmod(0o700)


REPLACED = (replace_by_backup, link_elsewhere, move_and_return)  # another file stands in the place: the daemon ends

ATTACKS = (
    Attack("everything removed", remove_all),
    Attack("the outbox removed", lambda place: place.outbox.unlink()),
    Attack("the outbox renamed", lambda place: place.outbox.rename(place.state / "old.db") and None),
    Attack("the log removed", lambda place: place.files()[1].unlink()),
    Attack("the index removed", lambda place: place.files()[2].unlink()),
    Attack("log and index removed", lambda place: [file.unlink() for file in place.files()[1:]] and None),
    Attack("the folder removed", remove_folder),
    Attack("the folder moved", lambda place: place.state.rename(place.folder / "moved") and None),
    Attack("the folder moved and returned", move_and_return),
    Attack("replaced by a backup", replace_by_backup),
    Attack("a backup copied over it", copy_over, spares=False),
    Attack("the outbox cut to nothing", lambda place: truncate(place.outbox), spares=False),
    Attack("the log cut to nothing", lambda place: truncate(place.files()[1]), spares=False),
    Attack("a hard link, and the name removed", hard_link),
    Attack("the link to the folder leads elsewhere", link_elsewhere, spares=False),
    Attack("another file system over the folder", bind_mount),
    Attack("no permission for a while", forbid),
)


class Outcome(NamedTuple):
    """How many events were answered, and which of them are lost: those answered after the notice, and all."""

    answered: int
    lost_after_notice: list[str]
    lost: list[str]
    exit_code: int | None
    said: str


def try_attack(attack: Attack, folder: Path) -> Outcome:
    """Run one attack in the folder, which is on a disk."""
    place = Place(folder)
    harness = place.harness
    harness.write_config(px='proxy = ""')
    daemon = harness.start_daemon()
    client = Client(f"http://{harness.http}")
    client.start()
    try:
        time.sleep(BEFORE_S / 2)
        _back_up(place.outbox, place.backup)
        time.sleep(BEFORE_S / 2)
        attacked_s = time.monotonic()
        attack.act(place)
        time.sleep(AFTER_S)
        client.stopped.set()
        client.join(15)
        if attack.act in REPLACED:
            wait_until(lambda: daemon.poll() is not None, PATIENCE_S, what="the end of the daemon")
        code = daemon.poll()
        if code is None:
            harness.kill(daemon)
        found = _found(place)
    finally:
        client.stopped.set()
        subprocess.run(["umount", place.state], check=False, capture_output=True)
        for process in harness.processes:
            if process.poll() is None:
                harness.kill(process)
    lost = [name for name in client.answered if name not in found]
    late = [name for name in lost if client.answered[name] > attacked_s + NOTICED_S]
    return Outcome(len(client.answered), late, lost, code, harness.log("run"))


def _back_up(outbox: Path, to: Path) -> None:
    """Copy the file alone, as a careless backup does: it is consistent after a checkpoint."""
    shutil.copy(outbox, to)


def _found(place: Place) -> set[str]:
    """Return the message ids that the next start finds, once an operator has imported what was rescued."""
    outbox = place.harness.outbox.resolve()
    names: set[str] = set()
    for path in (outbox, *rescued_files(outbox)):
        if path.exists():
            names |= _message_ids(path)
    return names


def _message_ids(path: Path) -> set[str]:
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        for suffix in ("", "-wal", ".recover"):
            source = path.with_name(path.name + suffix)
            if source.exists():
                shutil.copy(source, Path(folder) / f"o.db{suffix}")
        store = open_outbox(Path(folder) / "o.db", durability="process")
        with closing(store.connection):
            bodies = store.connection.execute("SELECT body FROM events").fetchall()
    return {json.loads(body)["messageId"] for (body,) in bodies}


def main() -> int:
    names = sys.argv[1:]
    broken = 0
    for attack in ATTACKS:
        if names and attack.name not in names:
            continue
        with tempfile.TemporaryDirectory(prefix="ta-") as folder:
            outcome = try_attack(attack, Path(folder))
        bad = outcome.lost_after_notice or (attack.spares and outcome.lost)
        broken += bool(bad)
        print(
            f"{'BROKEN' if bad else 'ok':6} {attack.name}: {outcome.answered} answered, {len(outcome.lost)} lost, "
            f"{len(outcome.lost_after_notice)} of them after {NOTICED_S:g} s; exit {outcome.exit_code}",
            flush=True,
        )
        if bad or names:
            print(outcome.said[-1500:])
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())

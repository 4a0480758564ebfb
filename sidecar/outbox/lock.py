"""Before SQLite opens the outbox: its path, its schema number, and the locks that keep a second process out.

A start takes these before it loads anything heavy, so this module imports the standard library and the configuration only.
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from sidecar.config.schema import Config
from sidecar.errors import ConfigError, Failed

__all__ = ["SCHEMA_VERSION", "Lock", "hold_lock", "newer_schema", "real_path", "refuse_newer_schema", "take_lock"]

SCHEMA_VERSION: Final = 2  # the number of the last migration in ``schema.py``
# A newer px-sidecar has a higher schema number, but a number above this comes from a damaged byte.
SCHEMAS_MAX: Final = 2**24
_MAGIC: Final = b"SQLite format 3\x00"
_SCHEMA_AT: Final = 60  # https://www.sqlite.org/fileformat2.html, "The Database Header": the user version


def real_path(config: Config) -> Path:
    """Return the file that ``outbox.path`` leads to, without symbolic links: its companion files are beside that one."""
    return Path(config.outbox.path).resolve()


def newer_schema(path: Path, version: int) -> ConfigError:
    """Return the error for an outbox that a newer px-sidecar has written."""
    return ConfigError(
        f"The outbox {path} was written by a newer px-sidecar (schema {version}, this one knows {SCHEMA_VERSION}); "
        "install that version, or set another outbox.path."
    )


def refuse_newer_schema(path: Path) -> None:
    """Raise ConfigError if the header of the file names a newer schema; to be called before SQLite opens the file.

    Anything else that is wrong with the file is found when it is opened, including a newer schema that is only in its log.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_SCHEMA_AT + 4)
    except OSError:
        return
    version = int.from_bytes(head[_SCHEMA_AT:], "big")
    if head.startswith(_MAGIC) and SCHEMA_VERSION < version <= SCHEMAS_MAX:
        raise newer_schema(path, version)


class Lock:
    """An exclusive lock on an outbox; released by ``release`` or by the end of the process, however it ends.

    It is held twice: on a lock file beside the outbox, and on the database file itself, so that neither a removed lock file
    nor a second name of the file (a link) lets another process in. The descriptor of the database is opened before SQLite
    opens the file and kept until after SQLite has closed it: closing any descriptor of a file drops all POSIX locks that
    the process has on it, SQLite's too (https://www.sqlite.org/howtocorrupt.html section 2.2). It is locked with
    flock(2), which is independent of those. ``path`` is the file to open: a link in ``outbox.path`` may have changed since.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptors = [descriptor]
        self._claimed: set[tuple[int, int]] = set()  # all that were: a file that was moved away may come back

    def claim(self, path: Path | None = None) -> None:
        """Lock the file that is now at the outbox's path; it is created if it is missing. Raises Failed.

        ``path`` names another file that is about to be renamed to the outbox: another process never finds it unlocked.
        """
        try:
            descriptor = os.open(path or self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            return  # opening it as a database reports the reason
        status = os.fstat(descriptor)
        if (status.st_dev, status.st_ino) in self._claimed:
            os.close(descriptor)  # only before SQLite has opened it: see above
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise _not_locked(self.path, error, "") from None
        self._claimed.add((status.st_dev, status.st_ino))
        self._descriptors.append(descriptor)

    def release(self) -> None:
        """Release the lock; SQLite must have closed the database before."""
        for descriptor in self._descriptors:
            os.close(descriptor)


def _not_locked(path: Path, error: OSError, holder: str) -> Failed:
    if error.errno not in (errno.EAGAIN, errno.EACCES):
        return Failed(
            f"The outbox lock of {path} cannot be taken ({error.strerror}); put the outbox on a local file system."
        )
    return Failed(f"The outbox {path} is held by another process{holder}; stop it or set another outbox.path.")


def take_lock(path: Path) -> Lock:
    """Lock the outbox at ``path``, which has no symbolic links in it (``Path.resolve``); waits for nothing.

    Raises Failed if another process holds it or the directory is not writable. A file that is missing, or put in the
    place of another one by a recovery, is locked by ``Lock.claim`` before it is opened.
    """
    lock_path = path.with_name(path.name + ".lock")
    try:
        descriptor = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Failed(
            f"The outbox folder {path.parent} cannot be written ({error.strerror}); create it or set another outbox.path."
        ) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
        os.close(descriptor)
        raise _not_locked(path, error, f" (pid {holder or 'unknown'})") from None
    with suppress(OSError):  # the pid is for people alone: a disk that is full or fails prevents no start
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    lock = Lock(path, descriptor)
    if path.exists():
        try:
            lock.claim()
        except BaseException:
            lock.release()
            raise
    return lock


@contextmanager
def hold_lock(config: Config) -> Iterator[Lock]:
    """Lock the outbox for the length of the block. Raises Failed."""
    path = real_path(config)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Failed(
            f"The outbox folder {path.parent} cannot be created ({error.strerror}); create it or set another outbox.path."
        ) from None
    lock = take_lock(path)
    try:
        yield lock
    finally:
        lock.release()

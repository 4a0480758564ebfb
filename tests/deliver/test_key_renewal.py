"""A new API key is read while PX refuses the old one: before each probe, on resume, and on a reload."""

import logging
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from delivery_harness import CREATED, ScriptedPx, delivering, new_event, wait_until_settled

from sidecar.config import Config, PxConfig, Secret, load_text
from sidecar.daemon import reload
from sidecar.px import PxAnswer
from sidecar.px.key_renewal import READ_S, KeyRenewal

HTML = "text/html"
# The next probe would be minutes away. The virtual clock jumps on while a thread reads the key file, as often as that takes.
AT_ONCE_S = 60


class KeyedPx(ScriptedPx):
    """A PX that accepts the key "new" alone, and answers ``refusal`` to others."""

    def __init__(self, refusal: PxAnswer) -> None:
        super().__init__(lambda _event, _px: CREATED if self.key == "new" else refusal)
        self.key = "old"

    def use_key(self, key: Secret) -> None:
        self.key = key.reveal()


class KeyDir:
    """A key file, a PX, and what renews the key."""

    def __init__(self, folder: Path, refusal: PxAnswer) -> None:
        self.path = folder / "key"
        self.path.write_text("old\n")
        self.px = KeyedPx(refusal)
        self.masked: list[str] = []
        self.renewal = KeyRenewal(self.px, Secret("old"), {}, self._mask)
        self.config = f'api_key_file = "{self.path}"\n'

    def _mask(self, keys) -> None:
        self.masked += [key.reveal() for key in keys]


@pytest.fixture
def keyed(tmp_path):
    return KeyDir(tmp_path, PxAnswer(401))


@pytest.fixture
def inline_threads(monkeypatch):
    """Read the key in the loop: while a thread reads it the virtual clock jumps on, as often as the machine is slow."""

    async def run_sync(call, *arguments, **_options):
        await trio.lowlevel.checkpoint()
        return call(*arguments)

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)


@pytest.fixture
def warnings():
    """The warnings of the key's renewal. caplog cannot be used in another task than the test's."""
    records: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record.getMessage())

    handler, logger = Handler(logging.WARNING), logging.getLogger("sidecar.px.key_renewal")
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)


def reading(load: Callable[[], Config]) -> Callable[[], Awaitable[Config]]:
    async def read() -> Config:
        return load()

    return read


async def paused(daemon, keyed) -> None:
    await daemon.outbox.accept([new_event(number, f"u{number}") for number in range(20)])
    with trio.fail_after(60):
        while daemon.delivery.dispatcher.destination.describe(daemon.clock.monotonic_s()).state != "paused":
            await trio.sleep(0.1)
    assert not keyed.px.stored


@pytest.mark.parametrize(
    "refusal", [PxAnswer(401), PxAnswer(403, b"{}"), PxAnswer(403, b"<html>", content_type=HTML)], ids=str
)
async def test_the_key_is_read_again_before_a_probe(tmp_path, autojump_clock, inline_threads, refusal):
    keyed = KeyDir(tmp_path, refusal)
    async with delivering(tmp_path, keyed.px, keyed.config, keyed.renewal) as daemon:
        await paused(daemon, keyed)
        keyed.path.write_text("new")
        began_s = trio.current_time()
        await wait_until_settled(daemon)
        assert trio.current_time() - began_s < 310, "the next probe, and no later one"
    assert len(keyed.px.stored) == 20
    assert keyed.masked == ["new"]


async def test_a_resume_reads_the_key_and_probes_at_once(tmp_path, autojump_clock, keyed):
    async with delivering(tmp_path, keyed.px, keyed.config, keyed.renewal) as daemon:
        await paused(daemon, keyed)
        keyed.path.write_text("new")
        began_s = trio.current_time()
        await daemon.delivery_control.resume()
        await wait_until_settled(daemon)
        assert trio.current_time() - began_s < AT_ONCE_S


async def test_a_reload_with_a_new_key_probes_at_once(tmp_path, autojump_clock, keyed):
    """Delivery stayed paused on the old key although `check --live` said that PX knows the new one."""
    async with delivering(tmp_path, keyed.px, keyed.config, keyed.renewal) as daemon:
        await paused(daemon, keyed)
        keyed.path.write_text("new")
        began_s = trio.current_time()
        result = await reload(daemon, reading(lambda: daemon.config))
        assert (result.error, result.new_key) == ("", True)
        await wait_until_settled(daemon)
        assert trio.current_time() - began_s < AT_ONCE_S


async def test_a_reload_may_name_another_key_file(tmp_path, autojump_clock, keyed):
    other = tmp_path / "other"
    other.write_text("new")
    async with delivering(tmp_path, keyed.px, keyed.config, keyed.renewal) as daemon:
        await paused(daemon, keyed)
        text = f'[px]\nproperty_key = "AP-XXXXXXXXXX-2"\napi_key_file = "{other}"\n'
        result = await reload(daemon, reading(lambda: load_text(text)))
        assert (result.error, result.new_key, result.waiting) == ("", True, [])
        await wait_until_settled(daemon)


async def test_a_reload_whose_key_cannot_be_read_changes_nothing(tmp_path, autojump_clock, keyed):
    async with delivering(tmp_path, keyed.px, keyed.config + "[deliver]\nhosts = 1\n", keyed.renewal) as daemon:
        keyed.path.unlink()
        text = f'[px]\nproperty_key = "AP-XXXXXXXXXX-2"\n{keyed.config}[deliver]\nhosts = 2\n'
        result = await reload(daemon, reading(lambda: load_text(text)))
        assert "does not exist" in result.error
        assert daemon.config.deliver.hosts == 1
        assert keyed.px.key == "old"


async def test_a_key_file_that_is_being_written_leaves_the_old_key(tmp_path, autojump_clock, keyed, warnings):
    async with delivering(tmp_path, keyed.px, keyed.config, keyed.renewal) as daemon:
        await paused(daemon, keyed)
        keyed.path.write_text("")
        await daemon.delivery_control.resume()
        assert ["the old one stays in use" in warning for warning in warnings] == [True]
        keyed.path.write_text("new")
        await wait_until_settled(daemon)
    assert len(keyed.px.stored) == 20


async def test_a_reload_with_the_same_key_does_not_shorten_a_pause(tmp_path, autojump_clock, keyed):
    async with delivering(tmp_path, keyed.px, keyed.config, keyed.renewal) as daemon:
        await paused(daemon, keyed)
        await trio.sleep(1)
        before = len(keyed.px.requests_s)
        assert not (await reload(daemon, reading(lambda: daemon.config))).new_key
        await trio.sleep(60)
        assert len(keyed.px.requests_s) == before


async def test_an_operators_pause_stays_when_a_new_key_comes(tmp_path, autojump_clock, keyed):
    async with delivering(tmp_path, keyed.px, keyed.config, keyed.renewal) as daemon:
        await paused(daemon, keyed)
        await daemon.delivery_control.pause()
        keyed.path.write_text("new")
        assert (await reload(daemon, reading(lambda: daemon.config))).new_key
        await trio.sleep(330)
        assert not keyed.px.stored
        await daemon.delivery_control.resume()
        await wait_until_settled(daemon)


async def test_the_key_is_not_read_while_px_is_away(tmp_path, autojump_clock):
    keyed = KeyDir(tmp_path, PxAnswer(503))
    reads = []
    keyed.renewal.read = lambda px: reads.append(px) or Secret("new")  # type: ignore[method-assign]
    async with delivering(tmp_path, keyed.px, keyed.config, keyed.renewal) as daemon:
        await daemon.outbox.accept([new_event(number, f"u{number}") for number in range(20)])
        await trio.sleep(30)
        assert not reads
        keyed.px.key = "new"
        await wait_until_settled(daemon)


def test_the_key_comes_from_the_credential_again(tmp_path):
    (tmp_path / "px_api_key").write_text("from-the-credential")
    px = KeyedPx(PxAnswer(401))
    renewal = KeyRenewal(px, Secret("old"), {"CREDENTIALS_DIRECTORY": str(tmp_path)}, lambda _keys: None)
    assert renewal.use(renewal.read(PxConfig()))
    assert px.key == "from-the-credential"


async def test_a_key_file_that_hangs_holds_up_neither_probe_nor_stop(keyed, autojump_clock, monkeypatch):
    """The probe waited for the file system, and a stop for the probe; each further one took a thread from DNS look-ups."""
    go_on = threading.Event()
    monkeypatch.setattr(keyed.renewal, "read", lambda _px: go_on.wait() and Secret("new"))
    before = trio.to_thread.current_default_thread_limiter().available_tokens
    try:
        for _ in range(2):
            with trio.fail_after(2 * READ_S):
                assert not await keyed.renewal.renew(PxConfig())
    finally:
        go_on.set()
    assert trio.to_thread.current_default_thread_limiter().available_tokens == before
    assert keyed.px.key == "old"

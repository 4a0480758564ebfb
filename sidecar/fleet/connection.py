"""The connection to the engine: one stream, one request at a time, hiredis as the parser.

Nothing is ever repeated here: a call that may have had its effects must not have them twice. A request that fails or
times out leaves answers of unknown owners on the stream, so the stream is closed and the next one begins with a hello.
"""

import ssl
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qs, urlsplit

import hiredis
import trio

from sidecar.config import FleetConfig, Secret
from sidecar.errors import SidecarError

__all__ = ["EngineAway", "EngineConnection", "EngineInfo", "EngineRefused", "no_answer_of_redis"]

CONNECT_S: Final = 2.0
# The share of a call's time that WAIT may block. The server looks for clients whose time is over ten times a second (its
# setting "hz"), so WAIT answers up to 0.1 s later than it was asked to; the rest is for the network and a busy machine.
WAIT_SHARE: Final = 0.5
OLDEST: Final = (6, 2)  # ACLs with selectors of keys, and TIME in scripts that write
# Errors after which a call has surely had no effect: the engine refused it before, or at, its first write.
NO_EFFECT: Final = (
    *("NOPERM", "READONLY", "OOM", "MISCONF", "LOADING", "MASTERDOWN", "MOVED", "ASK", "CLUSTERDOWN", "TRYAGAIN"),
    *("CROSSSLOT", "NOAUTH", "WRONGPASS", "NOREPLICAS", "BUSY", "DENIED", "NOSCRIPT"),
)
# The words of Redis 6.2 and 7.0, and of later ones and Valkey, for a command of a script that the user may not run.
NO_RIGHT: Final = ("can't run this command or subcommand", "ACL failure in script")


class EngineAway(SidecarError):
    """The engine cannot be reached, or did not answer in time; the message is one sentence."""


class EngineRefused(SidecarError):
    """The engine answered with an error that proves that nothing happened; the message says what to do."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class EngineInfo(NamedTuple):
    """The process at the other end: its run id, name and version, and the fields of INFO for `check`."""

    run: str
    version: str
    fields: dict[str, str]


@contextmanager
def no_answer_of_redis() -> Iterator[None]:
    """Raise EngineAway where an answer has another form than Redis gives it, as that of a proxy may."""
    try:
        yield
    except (ValueError, IndexError, TypeError, AttributeError) as error:
        raise EngineAway(f"The engine does not answer as Redis does ({error}); check fleet.url.") from None


class EngineConnection:
    """A connection that is opened by ``connect``. ``config`` has the address; the password is given apart.

    ``open_stream`` replaces the network in tests.
    """

    def __init__(
        self,
        config: FleetConfig,
        password: Secret,
        *,
        open_stream: Callable[[], Awaitable[trio.abc.Stream]] | None = None,
    ) -> None:
        self._config, self._password = config, password
        self._open_stream = open_stream or self._open
        self._parts = urlsplit(config.url)
        self._stream: trio.abc.Stream | None = None
        self._reader = hiredis.Reader()

    def another(self) -> "EngineConnection":
        """Return another connection to the same engine."""
        return EngineConnection(self._config, self._password, open_stream=self._open_stream)

    @property
    def address(self) -> str:
        """The address as messages show it."""
        if self._parts.scheme == "unix":
            return self._parts.path
        host = self._parts.hostname or ""
        return f"{f'[{host}]' if ':' in host else host}:{self._port}"

    @property
    def _port(self) -> int:
        return self._parts.port or 6379

    async def connect(self) -> EngineInfo:
        """Open the connection and return which process answers. Raises EngineAway or EngineRefused."""
        await self.aclose()
        try:
            with trio.fail_after(CONNECT_S):
                self._stream = await self._open_stream()
                self._reader = hiredis.Reader()
                if self._password:
                    user = [self._config.username] if self._config.username else []
                    self._refuse_error(await self._command("AUTH", *user, self._password.reveal()))
                if database := self._database():
                    self._refuse_error(await self._command("SELECT", database))
                return self._info(self._refuse_error(await self._command("INFO")))
        except (OSError, trio.TooSlowError, trio.BrokenResourceError, ssl.SSLError) as error:
            problem = self._not_reachable(error)
            await self.aclose()
            raise EngineAway(problem) from None
        except SidecarError:
            await self.aclose()
            raise

    async def _open(self) -> trio.abc.Stream:
        if self._parts.scheme == "unix":
            return await trio.open_unix_socket(self._parts.path)
        host = self._parts.hostname or ""
        context = self._tls_context() if self._parts.scheme == "rediss" else None
        stream = await trio.open_tcp_stream(host, self._port)
        if context is None:
            return stream
        secure = trio.SSLStream(stream, context, server_hostname=host, https_compatible=True)
        try:
            await secure.do_handshake()
        except BaseException:
            await trio.aclose_forcefully(stream)  # else each attempt of a wrong certificate would cost a descriptor
            raise
        return secure

    def _tls_context(self) -> ssl.SSLContext:
        ca_file = self._config.ca_file
        try:
            return ssl.create_default_context(cafile=ca_file or None)
        except OSError as error:  # SSLError is one: the file holds no certificate
            reason = "it holds no certificate" if isinstance(error, ssl.SSLError) else error.strerror
            raise EngineRefused(
                f"The certificates of the fleet's engine cannot be read from fleet.ca_file, {ca_file} ({reason}); name a "
                "file in PEM that the daemon may read."
            ) from None

    def _database(self) -> str:
        if self._parts.scheme == "unix":
            return parse_qs(self._parts.query).get("db", [""])[0]
        return self._parts.path.strip("/")

    async def time_us(self, timeout_s: float) -> int:
        """Return the engine's clock in microseconds."""
        reply = await self._within(timeout_s, "TIME")
        with no_answer_of_redis():
            seconds, microseconds = (part.decode() for part in reply)
            return int(seconds) * 1_000_000 + int(microseconds)

    async def run_script(
        self,
        digest: str,
        script: str,
        keys: Sequence[str],
        arguments: Sequence[str],
        *,
        replicas: int,
        timeout_s: float,
    ) -> Any:
        """Run the script and return its reply, once ``replicas`` have it. Raises EngineAway or EngineRefused."""
        command = ("EVALSHA", digest, str(len(keys)), *keys, *arguments)
        try:
            return await self._call(command, replicas, timeout_s)
        except EngineRefused as error:
            if error.code != "NOSCRIPT":  # the engine forgets scripts at a restart
                raise
        return await self._call(("EVAL", script, *command[2:]), replicas, timeout_s)

    async def _call(self, command: Sequence[str], replicas: int, timeout_s: float) -> Any:
        if not replicas:
            return await self._within(timeout_s, *command)
        # Both in one write: the answer may be used only if the replicas have it, too.
        wait = ("WAIT", str(replicas), str(int(timeout_s * WAIT_SHARE * 1000)))
        reply, *waited = await self._exchange(timeout_s, [command, wait])
        acknowledged = waited[0] if waited else 0
        if isinstance(acknowledged, hiredis.ReplyError):
            # The call itself may have had its effects, so this is not a refusal.
            await self.aclose()
            raise EngineAway(self._refusal(acknowledged)[1])
        if acknowledged < replicas:
            await self.aclose()
            raise EngineAway(self._too_few_replicas(acknowledged, replicas))
        return self._refuse_error(reply)

    async def _within(self, timeout_s: float, *command: str) -> Any:
        (reply,) = await self._exchange(timeout_s, [command])
        return self._refuse_error(reply)

    async def _exchange(self, timeout_s: float, commands: list[Sequence[str]]) -> list[Any]:
        """Return the replies to ``commands``: at least the first one, the others as far as they came in time."""
        replies: list[Any] = []
        try:
            with trio.fail_after(timeout_s):
                await self._send(commands, replies)
        except trio.TooSlowError as error:
            problem = self._not_reachable(error)
            await self.aclose()
            if not replies:
                raise EngineAway(problem) from None
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            problem = self._not_reachable(error)
            await self.aclose()
            raise EngineAway(problem) from None
        return replies

    async def _command(self, *command: str) -> Any:
        replies: list[Any] = []
        await self._send([command], replies)
        return replies[0]

    async def _send(self, commands: list[Sequence[str]], replies: list[Any]) -> None:
        """Send the commands and append each reply when it comes."""
        if self._stream is None:
            raise trio.ClosedResourceError("not connected")
        await self._stream.send_all(b"".join(map(_packed, commands)))
        while len(replies) < len(commands):
            try:
                reply = self._reader.gets()
            except hiredis.HiredisError as error:  # such as HTTP, from a load balancer without an engine behind it
                raise trio.BrokenResourceError(f"it does not answer as Redis does: {error}") from None
            if reply is not False:
                replies.append(reply)
                continue
            data = await self._stream.receive_some(65_536)
            if not data:
                raise trio.BrokenResourceError("the engine closed the connection")
            self._reader.feed(bytes(data))

    async def aclose(self) -> None:
        """Close the connection at once."""
        stream, self._stream = self._stream, None
        if stream is not None:
            await trio.aclose_forcefully(stream)

    # Sentences ---------------------------------------------------------------------------------------------------------

    def _info(self, reply: Any) -> EngineInfo:
        text = reply.decode("utf-8", "replace") if isinstance(reply, bytes) else ""
        pairs = (line.partition(":") for line in text.splitlines() if ":" in line)
        fields = {key: value.strip() for key, _, value in pairs}
        version = fields.get("valkey_version") or fields.get("redis_version", "")
        numbers = tuple(int(part) for part in fields.get("redis_version", "0").split(".")[:2] if part.isdecimal())
        if numbers < OLDEST:
            raise EngineRefused(
                f"The fleet's engine at {self.address} has version {version or 'unknown'}; use Redis 6.2 or later, or Valkey."
            )
        if fields.get("role") == "slave":
            raise EngineRefused(
                f"The fleet's engine at {self.address} is a replica and cannot be written; set fleet.url to the primary."
            )
        replicas = fields.get("connected_slaves", "")
        if replicas.isdecimal() and int(replicas) < self._config.replicas:
            # Found before a call: a call that no replica confirms may have had its effects, and costs seconds of silence.
            raise EngineAway(self._too_few_replicas(int(replicas), self._config.replicas))
        run = fields.get("run_id") or fields.get("master_replid", "")
        if not run:
            raise EngineRefused(
                f"The fleet's engine at {self.address} shows neither run_id nor master_replid in INFO, so a failover "
                "could not be noticed; use an engine that shows one of them."
            )
        return EngineInfo(run, version, fields)

    def _too_few_replicas(self, count: int, wanted: int) -> str:
        return (
            f"Only {count} of {wanted} replicas of the fleet's engine at {self.address} follow it in time, so "
            "its answers do not count; check its replication, or lower fleet.replicas."
        )

    def _not_reachable(self, error: BaseException) -> str:
        advice = "check it and fleet.url"
        cause = error.__cause__ if isinstance(error.__cause__, ssl.SSLError) else error
        if isinstance(error, trio.TooSlowError):
            # A server without TLS waits for the rest of what it takes for a command.
            tls = ", or does not speak TLS" if self._parts.scheme == "rediss" and self._stream is None else ""
            reason = f"it does not answer in time{tls}"
        elif isinstance(cause, ssl.SSLCertVerificationError):
            reason = f"its certificate is not accepted: {cause.verify_message}"
            advice = (
                "set fleet.ca_file to the authority that issued it, and use the name in the certificate in fleet.url"
            )
        elif isinstance(cause, ssl.SSLError):
            reason, advice = f"TLS fails: {cause.reason or cause}", "use redis:// if it does not speak TLS"
        else:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return f"The fleet's engine at {self.address} cannot be reached ({reason}); {advice}."

    def _refuse_error(self, reply: Any) -> Any:
        """Return the reply. Raises EngineRefused for an error without effect, EngineAway for any other error."""
        if not isinstance(reply, hiredis.ReplyError):
            return reply
        code, message = self._refusal(reply)
        if code not in NO_EFFECT:
            raise EngineAway(message)
        raise EngineRefused(message, code)

    def _refusal(self, error: hiredis.ReplyError) -> tuple[str, str]:
        """Return the code of an error of the engine, and the sentence for it."""
        # A server that does not know AUTH repeats its arguments, and with them the password.
        text = str(error).partition(", with args")[0]
        code = text.split(" ", 1)[0]
        # Inside a script a missing right has no code of its own, and what the script did before it stays done.
        right = any(words in text for words in NO_RIGHT)
        advice = {
            "WRONGPASS": "check fleet.username and fleet.password_file, and restart the daemon after a change",
            "NOAUTH": "it wants a password: set fleet.password_file, and restart the daemon",
            "NOPERM": "grant the user the rights in sidecar/fleet/README.md#rights",
            "READONLY": "it is a replica: set fleet.url to the primary",
            "OOM": "it is full: raise its maxmemory",
            "MISCONF": "it cannot save to its disk: check the engine",
            "MOVED": "it is a cluster: set fleet.url to the node that the error names",
            "ASK": "it is a cluster that moves this key: wait for the move",
            "DENIED": "it is in protected mode: give it a password or bind it to a private address",
        }.get("NOPERM" if right else code, "check the engine")
        return code, f"The fleet's engine at {self.address} refuses ({text}); {advice}."


def _packed(command: Sequence[str]) -> bytes:
    parts: tuple[Any, ...] = tuple(command)
    packed: bytes = hiredis.pack_command(parts)
    return packed

"""Build and run the SDKs' apps: one folder a language, with its lock file. What is built is kept in /var/tmp for the next run."""

import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
BUILT = Path(os.environ.get("PX_SDK_BUILDS", "/var/tmp/px-sdk"))


class CannotBuild(Exception):
    """A toolchain or a library that this machine cannot have."""


@dataclass(frozen=True)
class Sdk:
    """One SDK: its language, vendor and version, and what its calls can carry."""

    language: str
    vendor: str
    version: str
    setting: str
    gzip: bool = False
    category: bool = True
    message_ids: bool = True
    batch_times: bool = True  # an event in a batch keeps its own timestamp

    @property
    def name(self) -> str:
        return f"{self.vendor}-{self.language}"


SDKS = [
    Sdk("python", "segment", "2.4.0", 'Client(KEY, host="http://127.0.0.1:8321")', gzip=True),
    Sdk("python", "rudder", "2.1.9", 'Client(KEY, host="http://127.0.0.1:8321")', gzip=True),
    Sdk("node", "segment", "3.1.0", 'new Analytics({ writeKey, host: "http://127.0.0.1:8321" })'),
    Sdk("node", "rudder", "3.0.13", "new RudderAnalytics(KEY, { dataPlaneUrl, errorHandler })", gzip=True),
    Sdk("go", "segment", "3.3.0", "Config{Endpoint}", category=False),
    Sdk("go", "rudder", "4.2.3", "Config{DataPlaneUrl}", gzip=True, category=False),
    Sdk("java", "segment", "3.5.4", "builder(KEY).endpoint(…)"),
    Sdk("java", "rudder", "3.1.2", "builder(KEY).setDataPlaneUrl(…)", gzip=True),
    Sdk(
        "rust",
        "rudder",
        "2.0.1",
        "RudderAnalytics::load(KEY, URL)",
        category=False,
        message_ids=False,
        batch_times=False,
    ),
    Sdk("ruby", "rudder", "3.2.1", "new(write_key:, data_plane_url:, ssl: false)", gzip=True, category=False),
]
# What this kind of machine cannot have, and why.
_NO_PACKAGE = "cannot be reached from the machines of CI, and Debian has no package of the SDK"
ABSENT = {
    "segment-php": f"packagist.org {_NO_PACKAGE}",
    "segment-ruby": f"rubygems.org {_NO_PACKAGE}",
    "segment-dotnet": f"nuget.org {_NO_PACKAGE} or of .NET",
    "segment-csharp": f"nuget.org {_NO_PACKAGE} or of .NET",
}


def build(sdk: Sdk) -> list[str]:
    """Return the command that runs the SDK's app with a scenario. Raises CannotBuild."""
    return _BUILDERS[sdk.language](sdk)


def _needs(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            raise CannotBuild(f"{program} is not installed")


def _once(name: str, sources: list[Path], make: Callable[[Path], None]) -> Path:
    """Return a folder that ``make`` has filled; made again when a source changes. Other processes wait for the first."""
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    folder = BUILT / f"{name}-{digest}"
    BUILT.mkdir(parents=True, exist_ok=True)
    with (BUILT / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            making = folder.with_name(f"{folder.name}.new")
            shutil.rmtree(making, ignore_errors=True)
            making.mkdir()
            make(making)
            making.rename(folder)
    return folder


def _run(command: list[str], folder: Path, **environ: str) -> None:
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **environ}, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode:
        raise CannotBuild(f"{' '.join(command[:3])} failed: {(done.stderr or done.stdout).strip()[-400:]}")


def _python(sdk: Sdk) -> list[str]:
    lock = HERE / "python" / "requirements.txt"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "-r", str(lock), "--target"]
    packages = _once(f"python{sys.version_info.minor}", [lock], lambda folder: _run([*pip, str(folder)], HERE))
    return ["env", f"PYTHONPATH={packages}", sys.executable, str(HERE / "python" / "matrix.py")]


def _node(sdk: Sdk) -> list[str]:
    _needs("node", "npm")
    manifests = [HERE / "node" / "package.json", HERE / "node" / "package-lock.json"]
    app = HERE / "node" / "matrix.mjs"

    def make(folder: Path) -> None:
        for path in (*manifests, app):
            shutil.copy(path, folder)
        _run(["npm", "ci", "--no-audit", "--no-fund", "--silent"], folder)

    return ["node", str(_once("node", [*manifests, app], make) / "matrix.mjs")]


def _go(sdk: Sdk) -> list[str]:
    _needs("go")
    names = ["go.mod", "go.sum", "main.go", f"settings_{sdk.vendor}.go"]
    sources = [HERE / "go" / name for name in names]

    def make(folder: Path) -> None:
        for path in sources:
            text = path.read_text()
            if sdk.vendor == "rudder" and path.name == "main.go":
                text = text.replace("segmentio/analytics-go/v3", "rudderlabs/analytics-go/v4")
                text = text.replace("Timestamp: c.Timestamp", "OriginalTimestamp: c.Timestamp")
            (folder / path.name).write_text(text)
        _run(["go", "build", "-mod=mod", "-o", "app", "."], folder, GOFLAGS="-buildvcs=false", GONOSUMDB="*")

    return [str(_once(f"go-{sdk.vendor}", sources, make) / "app")]


def _java(sdk: Sdk) -> list[str]:
    _needs("javac", "mvn")
    pom, app = HERE / "java" / "pom.xml", HERE / "java" / "App.java"

    def fetch(folder: Path) -> None:
        copy = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies"
        _run(["mvn", "-q", "-B", "-f", str(pom), copy, f"-DoutputDirectory={folder}"], folder)

    jars = _once("java", [pom], fetch)
    other = {"segment": "rudder", "rudder": "segment"}[sdk.vendor]

    def make(folder: Path) -> None:
        text = re.sub(rf"^.*// {other}\n", "", app.read_text(), flags=re.MULTILINE)
        if sdk.vendor == "rudder":
            text = text.replace("com.segment.analytics", "com.rudderstack.sdk.java.analytics")
            text = re.sub(r"\bAnalytics\b", "RudderAnalytics", text)
        (folder / "App.java").write_text(text)
        _run(["javac", "-nowarn", "-cp", f"{jars}/*", "App.java"], folder)

    classes = _once(f"java-{sdk.vendor}", [pom, app], make)
    return ["java", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto", "-cp", f"{classes}:{jars}/*", "App"]


def _rust(sdk: Sdk) -> list[str]:
    _needs("cargo")
    folder = HERE / "rust"
    sources = [folder / name for name in ("Cargo.toml", "Cargo.lock", "app.rs")]

    def make(target: Path) -> None:
        # Compiled libraries stay from one version of the app to the next.
        _run(["cargo", "build", "-q", "--locked"], folder, CARGO_TARGET_DIR=str(BUILT / "rust-target"))
        shutil.copy(BUILT / "rust-target" / "debug" / "app", target)

    return [str(_once("rust", sources, make) / "app")]


def _ruby(sdk: Sdk) -> list[str]:
    _needs("ruby")
    app = str(HERE / "ruby" / "app.rb")
    # Where rubygems.org cannot be reached: a checkout of the SDK, at the tag of the locked version.
    if sources := os.environ.get("PX_SDK_SOURCES"):
        return ["ruby", "-I", f"{sources}/rudder-sdk-ruby/lib", app]
    _needs("bundle")
    manifests = [HERE / "ruby" / "Gemfile", HERE / "ruby" / "Gemfile.lock"]

    def make(folder: Path) -> None:
        for path in manifests:
            shutil.copy(path, folder)
        _run(["bundle", "install", "--quiet"], folder, BUNDLE_PATH="gems", BUNDLE_FROZEN="true", BUNDLE_RETRY="0",
             BUNDLE_SILENCE_ROOT_WARNING="true")  # fmt: skip

    folder = _once("ruby", manifests, make)
    return ["env", f"BUNDLE_GEMFILE={folder}/Gemfile", f"BUNDLE_PATH={folder}/gems", "bundle", "exec", "ruby", app]


_BUILDERS = {"python": _python, "node": _node, "go": _go, "java": _java, "rust": _rust, "ruby": _ruby}


class App:
    """A running app: made to make ``calls`` with clients that send to ``urls``, in batches of ``batch``."""

    def __init__(
        self,
        sdk: Sdk,
        folder: Path,
        urls: list[str],
        calls: list[dict[str, Any]],
        *,
        batch: int = 20,
        gzip: bool = False,
        threads: int = 1,
        key: str = "any",
        pause_s: float = 0.0,
        wait: bool = True,
        linger_s: float = 0.0,
    ) -> None:
        command = build(sdk)
        number = len(list(folder.glob("scenario-*")))
        scenario = {
            "sdk": sdk.vendor, "urls": urls, "calls": calls, "batch": batch, "gzip": gzip, "threads": threads,
            "key": key, "pause_s": pause_s, "wait": wait, "linger_s": linger_s,
        }  # fmt: skip
        path = folder / f"scenario-{number}.json"
        path.write_text(json.dumps(scenario))
        self.log = folder / f"app-{number}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, str(path)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True
            )

    def half_way(self) -> None:
        """Wait until it has made half of its calls."""
        assert self.process.stdout.readline() == "half\n", self.log.read_text()[-2000:]

    def result(self, timeout_s: float = 60) -> dict[str, Any] | None:
        """Wait for its end and return what it says; None, and its end by force, if it has not ended in time."""
        try:
            out, _ = self.process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.end()
            return None
        assert self.process.returncode == 0, self.log.read_text()[-2000:]
        return json.loads(out.splitlines()[-1])

    def end(self) -> None:
        """End it by force, if it runs."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


@dataclass
class Received:
    """A request of a recording server."""

    method: str
    path: str
    body: bytes
    encoding: str


class Recorder(ThreadingHTTPServer):
    """A server that records every request and gives each the same answer: PX, or another destination of an SDK."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(
        self, status: int = 200, body: bytes = b'{"success":true}', headers: dict[str, str] | None = None
    ) -> None:
        self.received: list[Received] = []
        self.answer = (status, body, headers or {})
        self.answer_after_s = 0.0
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed does not concern this server."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _handle(self) -> None:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        server: Recorder = self.server  # type: ignore[assignment]
        server.received.append(Received(self.command, self.path, body, self.headers.get("Content-Encoding", "")))
        time.sleep(server.answer_after_s)
        status, answer, headers = server.answer
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(answer)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST = do_PUT = do_DELETE = _handle

    def log_message(self, *arguments: Any) -> None:
        """Nothing: the tests look at what was received."""


@contextmanager
def recording(status: int = 200, body: bytes = b'{"success":true}', **headers: str) -> Iterator[Recorder]:
    """Serve a recorder in a thread for the length of the block."""
    with Recorder(status, body, {name.replace("_", "-"): value for name, value in headers.items()}) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()

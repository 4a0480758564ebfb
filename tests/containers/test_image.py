"""The image, built and run as a container runtime would (`.ci/run images`); prints its size, start time and memory."""

import json
import os
import re
import socket
import subprocess
import time
from contextlib import closing
from pathlib import Path

import pytest
from container_image import UID, Container, build, buildah, image_of, obstacle
from debian_roots import clean_root
from process_harness import is_ok, wait_until
from sdk_apps import recording

from sidecar.sandbox.server import free_ports

pytestmark = [pytest.mark.images, pytest.mark.timeout(600)]

MOST_BYTES = 150_000_000
GRACE_S = 30.0
REQUESTED_MIB = 96  # resources.requests.memory of the manifests


@pytest.fixture(scope="module")
def image():
    if reason := obstacle():
        pytest.skip(reason)
    base = "localhost/px-debian:trixie"
    image_of(clean_root("trixie"), base)
    return build(base)


@pytest.fixture(scope="module")
def image_root(image):
    """The files of the image, as a runtime mounts them."""
    container = buildah("from", "--pull-never", image)
    yield Path(buildah("mount", container))
    buildah("rm", container)


@pytest.fixture
def start(image_root, tmp_path):
    """Start a container; each has the same volumes."""
    containers = []

    def of(*arguments, **environ):
        log = tmp_path / "log"
        containers.append(
            Container(image_root, tmp_path / "state", tmp_path / "events", *arguments, log=log, **environ)
        )
        return containers[-1]

    yield of
    for container in containers:
        container.end()


def environ(px_url: str, **more: str) -> dict[str, str]:
    return {
        "PX_SIDECAR_PX_PROPERTY_KEY": "AP-XXXXXXXXXX-2",
        "PX_SIDECAR_PX_API_KEY": "key",
        "PX_SIDECAR_PX_BASE_URL": px_url,
        "PX_SIDECAR_LISTEN_UNIX": "/run/px-sidecar-events/events.sock",
        "PX_SIDECAR_LISTEN_HTTP": "",
        **more,
    }


def send(path: Path, count: int) -> None:
    """Send events as an app in another container would: through the mounted folder."""
    with closing(socket.socket(socket.AF_UNIX)) as connection:
        connection.connect(str(path / "events.sock"))
        for number in range(count):
            event = {"type": "track", "event": "x", "userId": f"u{number}", "messageId": f"m{number}"}
            connection.sendall(json.dumps(event).encode() + b"\n")
        with connection.makefile() as answers:
            for _ in range(count):
                assert json.loads(answers.readline())["success"]


def wait_until_ready(daemon) -> None:
    """Wait for the health check. The socket is there first; on a slow disk a client waits 5 s there, and is told ``busy``."""
    wait_until(lambda: daemon.exec("status").returncode == 0, 60, what="the health check")


def status_of(start, px_url: str) -> dict:
    """What the outbox holds, by a verb in a container of its own after the daemon has ended."""
    container = start("status", "--json", **environ(px_url))
    assert container.process.wait(30) == 69
    text = Path(container._log.name).read_text()
    return json.loads(text[text.rindex('{"version"') if '{"version"' in text else text.rindex("{\n") :])


def test_the_image_is_small_and_names_its_user(image):
    facts = json.loads(buildah("inspect", "--type", "image", image))["Docker"]
    config = facts["config"]
    assert config["User"] == f"{UID}:{UID}"
    assert config["Entrypoint"] == ["px-sidecar"]
    assert config["StopSignal"] == "SIGTERM"
    assert list(config["Volumes"]) == ["/var/lib/px-sidecar"]
    assert config["Healthcheck"]["Test"] == ["CMD", "px-sidecar", "status"]
    size = int(facts.get("size") or 0) or image_bytes(image)
    print(f"image: {size / 1e6:.0f} MB")
    assert size < MOST_BYTES


def image_bytes(image: str) -> int:
    container = buildah("from", "--pull-never", image)
    try:
        mounted = buildah("mount", container)
        return 1024 * int(
            subprocess.run(["du", "-sk", mounted], check=True, capture_output=True, text=True).stdout.split()[0]
        )
    finally:
        buildah("rm", container)


def test_the_image_has_no_shell_and_nothing_to_raise_rights_with(image_root):
    assert not [
        path
        for path in ("bin/sh", "usr/bin/bash", "usr/bin/apt-get", "usr/bin/dpkg", "usr/bin/pip")
        if (image_root / path).exists()
    ]
    risky = [
        path
        for path in image_root.rglob("*")
        if not path.is_symlink() and path.is_file() and path.stat().st_mode & 0o6000
    ]
    assert risky == []


def test_what_is_in_flight_is_settled_at_a_stop(image_root, start, tmp_path):
    """PX takes two seconds for each answer; SIGTERM comes meanwhile."""
    with recording(201, b"{}") as px:
        px.answer_after_s = 2.0
        began_s = time.monotonic()
        daemon = start("run", **environ(px.url))
        wait_until(lambda: (tmp_path / "events" / "events.sock").exists(), 30, what="the socket")
        started_s = time.monotonic() - began_s
        assert os.stat(tmp_path / "events" / "events.sock").st_mode & 0o777 == 0o660
        lines = Path(f"/proc/{daemon.pid}/status").read_text()
        assert re.search(rf"^Uid:\s+{UID}\s+{UID}\s+{UID}", lines, re.MULTILINE)
        assert re.search(r"^CapEff:\s+0+$", lines, re.MULTILINE)
        assert re.search(r"^NSpid:\s+\d+\s+1$", lines, re.MULTILINE), "it is PID 1"
        wait_until_ready(daemon)
        ready_s = time.monotonic() - began_s
        send(tmp_path / "events", 20)
        wait_until(lambda: len(px.received) == 20, what="20 requests in flight")
        # Not before: the socket is there before the daemon has loaded what it needs.
        kib = int(re.search(r"^VmRSS:\s+(\d+)", Path(f"/proc/{daemon.pid}/status").read_text(), re.MULTILINE)[1])
        assert daemon.stop(GRACE_S) == 0
    status = status_of(start, "http://127.0.0.1:9")
    assert (status["accepted"], status["delivered"], status["pending"], status["ambiguous"]) == (20, 20, 0, 0)
    print(f"image: a socket after {started_s:.1f} s, ready after {ready_s:.1f} s, {kib / 1024:.0f} MiB resident")
    assert kib < REQUESTED_MIB * 1024


def test_pending_events_survive_the_container(start, tmp_path):
    daemon = start("run", **environ("http://127.0.0.1:9"))
    wait_until(lambda: (tmp_path / "events" / "events.sock").exists(), 30, what="the socket")
    wait_until_ready(daemon)
    send(tmp_path / "events", 5)
    assert daemon.stop(GRACE_S) == 0
    with recording(201, b"{}") as px:
        daemon = start("run", **environ(px.url))
        wait_until(lambda: len(px.received) == 5, 30, what="the delivery")
        assert daemon.stop(GRACE_S) == 0


def test_without_a_key_the_container_ends_with_what_to_do(start, tmp_path):
    daemon = start("run", PX_SIDECAR_PX_PROPERTY_KEY="AP-XXXXXXXXXX-2")
    assert daemon.process.wait(30) == 78
    assert "api_key" in (tmp_path / "log").read_text()


def test_the_image_runs_dev(start, tmp_path):
    (port,) = free_ports(1)
    container = start("dev", "--listen", f"127.0.0.1:{port}")
    wait_until(lambda: is_ok(f"http://127.0.0.1:{port}/health"), 40, what="dev")
    event = json.dumps({"event": "Seen In Dev", "userId": "u1"})
    subprocess.run(
        ["curl", "-sS", "--fail", f"http://127.0.0.1:{port}/v1/track", "-d", event], check=True, capture_output=True
    )
    wait_until(lambda: "Seen In Dev" in (tmp_path / "log").read_text(), what="the line")
    os.kill(container.pid, 2)
    assert container.process.wait(GRACE_S) == 0

"""An OpenTelemetry Collector with a synced queue on disk, built by its own builder from the Go module proxy.

It is built once, into a cache folder; nothing of it is part of this repository. The builder and its manifest:
https://opentelemetry.io/docs/collector/extend/ocb/
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.rig import Rig

__all__ = ["Skipped", "build", "launch"]

# One release: of its modules below 1.0, of the others, and of the contributed ones.
RELEASE, STABLE, CONTRIB = "v0.165.0", "v1.71.0", "v0.165.1"
BUILDER = f"go.opentelemetry.io/collector/cmd/builder@{RELEASE}"
BUILD_TIMEOUT_S = 3600
MANIFEST = f"""dist: {{name: otelcol, output_path: out, version: {RELEASE[1:]}}}
receivers: [{{gomod: go.opentelemetry.io/collector/receiver/otlpreceiver {RELEASE}}}]
exporters: [{{gomod: go.opentelemetry.io/collector/exporter/otlphttpexporter {RELEASE}}}]
extensions: [{{gomod: github.com/open-telemetry/opentelemetry-collector-contrib/extension/storage/filestorage {CONTRIB}}}]
providers: [{{gomod: go.opentelemetry.io/collector/confmap/provider/fileprovider {STABLE}}}]
conf_resolver: {{default_uri_scheme: file}}
"""

# Where a default of the collector would only hinder it (10 requests at a time, 1,000 in the queue, 2 idle connections,
# gzip on loopback, giving up after 5 min), it gets what px-sidecar has.
CONFIG = """
extensions: {{file_storage: {{directory: {queue}, fsync: true}}}}
receivers: {{otlp: {{protocols: {{http: {{endpoint: "127.0.0.1:{port}"}}}}}}}}
exporters:
  otlp_http:
    logs_endpoint: http://127.0.0.1:{px_port}/v1/logs
    compression: none
    timeout: 30s
    keepalive: {{max_idle_conns: 128, max_idle_conns_per_host: 128}}
    sending_queue: {{storage: file_storage, num_consumers: 128, queue_size: 10000000}}
    retry_on_failure: {{initial_interval: 1s, max_interval: 5m, max_elapsed_time: 0}}
service:
  extensions: [file_storage]
  pipelines: {{logs: {{receivers: [otlp], exporters: [otlp_http]}}}}
  telemetry: {{metrics: {{level: none}}, logs: {{level: error}}}}
"""


class Skipped(Exception):
    """The collector cannot be built here; the text says why."""


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "px-sidecar-benchmarks"


def build(report: Callable[[str], None]) -> Path:
    """Return the program, built the first time. Raises Skipped with the reason if that is not possible."""
    program = cache_folder() / f"otelcol-{RELEASE[1:]}" / "otelcol"
    built_from = program.with_name("manifest.yaml")
    if program.exists() and built_from.exists() and built_from.read_text() == MANIFEST:
        return program
    if shutil.which("go") is None:
        raise Skipped("go is not installed; it builds the OpenTelemetry Collector. Install Go 1.25 or later.")
    report(f"building the collector {RELEASE} into {program.parent}; this takes minutes, once")
    program.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=program.parent) as folder:
        (Path(folder) / "manifest.yaml").write_text(MANIFEST)
        command = ["go", "run", BUILDER, "--config", "manifest.yaml"]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise Skipped(f"`{' '.join(command)}` did not end within {BUILD_TIMEOUT_S} s.") from None
        if done.returncode:
            said = (done.stdout + done.stderr).strip()[-800:]
            raise Skipped(f"the collector could not be built; `{' '.join(command)}` ended with: {said}")
        # The manifest comes last, so that the next run does not take half a build for the program.
        (Path(folder) / "out" / "otelcol").replace(program)
        (Path(folder) / "manifest.yaml").replace(built_from)
    return program


def launch(program: Path, rig: Rig, px_port: int, on: set[int] | None) -> subprocess.Popen[bytes]:
    """Start the collector at the rig's HTTP port, without waiting for it; it delivers to ``px_port``."""
    queue = rig.folder / "queue"
    queue.mkdir(exist_ok=True)
    path = rig.folder / "collector.yaml"
    path.write_text(CONFIG.format(queue=queue, port=rig.http_port, px_port=px_port))
    return rig.start_program([str(program), "--config", str(path)], on)

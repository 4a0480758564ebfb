"""Compose, Quadlet and Kubernetes: against their schemas, and in agreement with the image."""

import json
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")

FOLDER = Path(__file__).resolve().parents[2] / "systemd" / "containers"
CONTAINERFILE = (FOLDER / "Containerfile").read_text(encoding="utf-8")
VERSION = re.search(r'^version = "(.+)"$', (FOLDER.parents[1] / "pyproject.toml").read_text(), re.MULTILINE)[1]
UID = 8321
# podman-systemd.unit(5), the keys of [Container] that are used here.
QUADLET_KEYS = {
    "Image", "ContainerName", "ReadOnly", "DropCapability", "NoNewPrivileges", "Tmpfs", "Volume", "Secret", "Environment",
    "HealthCmd", "HealthInterval",
}  # fmt: skip
COMPOSE_KEYS = {
    "image", "read_only", "cap_drop", "security_opt", "tmpfs", "volumes", "environment", "secrets", "stop_grace_period",
    "restart", "group_add",
}  # fmt: skip


@cache
def rendered(name: str) -> list[dict[str, Any]]:
    """The objects of a kustomization as `kubectl apply -k` sends them; without kubectl, as they are in the files."""
    folder = FOLDER / "kubernetes" / name
    if kubectl := shutil.which("kubectl"):
        done = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return list(yaml.safe_load_all(done.stdout))
    listed = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    return [yaml.safe_load((folder / file).read_text()) for file in listed]


def pod(objects: list[dict[str, Any]]) -> dict[str, Any]:
    (spec,) = [item["spec"]["template"]["spec"] for item in objects if item["kind"] in ("DaemonSet", "StatefulSet")]
    return spec


def daemon(spec: dict[str, Any]) -> dict[str, Any]:
    containers = spec["containers"] + spec["initContainers"]
    (daemon_container,) = [container for container in containers if container["name"] == "px-sidecar"]
    return daemon_container


@pytest.mark.parametrize("name", ["base", "native-sidecar"])
@pytest.mark.parametrize("version", ["1.29", "1.37"])
def test_kubernetes_accepts_every_object(name, version):
    kubernetes_validate = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate is installed by .ci/run images"
    )
    for manifest in rendered(name):
        kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize("name", ["base", "native-sidecar"])
def test_the_daemon_in_a_pod_is_locked_down(name):
    spec = pod(rendered(name))
    container = daemon(spec)
    security = spec.get("securityContext", {}) | container["securityContext"]
    assert security["runAsNonRoot"] is True
    assert security["runAsUser"] == UID
    assert security["readOnlyRootFilesystem"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert "hostNetwork" not in spec
    assert "ports" not in container


@pytest.mark.parametrize("name", ["base", "native-sidecar"])
def test_a_pod_has_longer_to_stop_than_the_daemon_takes(name):
    """`deliver.stop_timeout` is 10 s; the same 30 s are in the unit, Compose and Quadlet."""
    assert pod(rendered(name))["terminationGracePeriodSeconds"] >= 30


@pytest.mark.parametrize("name", ["base", "native-sidecar"])
def test_every_path_that_the_daemon_writes_is_a_volume(name):
    spec = pod(rendered(name))
    mounts = {mount["mountPath"]: mount["name"] for mount in daemon(spec)["volumeMounts"] if not mount.get("readOnly")}
    assert {"/var/lib/px-sidecar", "/run/px-sidecar", "/tmp"} <= mounts.keys()
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    outbox = volumes.get(mounts["/var/lib/px-sidecar"])
    assert outbox is None or "hostPath" in outbox, "the outbox survives the pod: a claim or the node's disk"
    for path, name_of in mounts.items():
        assert name_of in volumes or path == "/var/lib/px-sidecar"


def test_apps_reach_the_events_socket_and_not_the_control_socket():
    spec = pod(rendered("base"))
    mounts = {mount["name"]: mount["mountPath"] for mount in daemon(spec)["volumeMounts"]}
    shared = {volume["name"]: volume["hostPath"]["path"] for volume in spec["volumes"] if "hostPath" in volume}
    assert shared == {"events": "/run/px-sidecar-events", "outbox": "/var/lib/px-sidecar"}
    assert mounts["run"] == "/run/px-sidecar", "where the control socket is"
    environ = {variable["name"]: variable["value"] for variable in daemon(spec)["env"]}
    assert environ["PX_SIDECAR_LISTEN_UNIX"] == f"{mounts['events']}/events.sock"
    assert environ["PX_SIDECAR_LISTEN_HTTP"] == "", "no TCP"


def test_a_native_sidecar_restarts_and_is_ready_before_the_app():
    container = daemon(pod(rendered("native-sidecar")))
    assert container["restartPolicy"] == "Always"
    assert container["startupProbe"]["exec"]["command"] == ["px-sidecar", "status"]


def test_quadlet_uses_documented_keys_and_the_same_settings():
    lines = (FOLDER / "px-sidecar.container").read_text().splitlines()
    start, end = lines.index("[Container]") + 1, lines.index("[Service]")
    keys = [line.split("=", 1) for line in lines[start:end] if line and not line.startswith("#")]
    assert {key for key, _ in keys} <= QUADLET_KEYS
    settings = dict(keys)
    assert settings["ReadOnly"] == settings["NoNewPrivileges"] == "true"
    assert settings["DropCapability"] == "ALL"
    assert "TimeoutStopSec=30s" in lines


def test_the_health_check_of_quadlet_needs_no_shell():
    """Podman passes a text to /bin/sh -c (podman-run(1), --health-cmd), so that each check failed."""
    (command,) = re.findall(r"^HealthCmd=(.+)$", (FOLDER / "px-sidecar.container").read_text(), re.MULTILINE)
    assert f"CMD {command}" in CONTAINERFILE
    assert isinstance(json.loads(command), list)


def test_compose_uses_documented_keys_and_the_same_settings():
    compose = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    for service in compose["services"].values():
        assert service.keys() <= COMPOSE_KEYS
    service = compose["services"]["px-sidecar"]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["stop_grace_period"] == "30s"
    assert {volume.split(":")[0] for volume in service["volumes"]} == set(compose["volumes"])


def test_every_manifest_names_this_version_and_the_image_its_user():
    text = "".join(path.read_text() for path in FOLDER.rglob("*") if path.suffix in (".yaml", ".container", ".md"))
    tags = re.findall(r"px-sidecar/px-sidecar:(\S+)|newTag: (\S+)|\?ref=v([^]]+)", text)
    assert {tag for pair in tags for tag in pair if tag} == {VERSION}
    assert f"USER {UID}:{UID}" in CONTAINERFILE
    assert "STOPSIGNAL SIGTERM" in CONTAINERFILE


@pytest.mark.parametrize(
    "name",
    [
        "compose.yaml",
        "px-sidecar.container",
        "kubernetes/base/config.toml",
        "kubernetes/native-sidecar/statefulset.yaml",
    ],
)
def test_every_configuration_that_ships_names_its_region(name):
    """Without one the daemon warns that it takes the one of the United States."""
    assert re.search(r"^region = |PX_SIDECAR_PX_REGION", (FOLDER / name).read_text(), re.MULTILINE)

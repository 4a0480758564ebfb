"""What `.ci/release` builds: the same bytes each time, and two distributions that share one file."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.whole, pytest.mark.timeout(400)]

ROOT = Path(__file__).resolve().parents[1]


def build(folder: Path, *steps: str, **environ: str) -> dict[str, str]:
    """Run steps of a release, and return the digest of each file that they wrote."""
    command = ["bash", "-c", 'umask "$0"; exec .ci/release "$@"', environ.pop("UMASK", "022"), *steps]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "DIST": str(folder), **environ}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    build(folder, "dist", "client")
    return folder


def test_wheels_and_sdists_are_the_same_bytes_twice(dist, tmp_path):
    first = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in dist.rglob("*") if path.is_file()}
    assert sorted(name.split("-")[0] for name in first) == [
        "px_sidecar",
        "px_sidecar",
        "px_sidecar_client",
        "px_sidecar_client",
    ]
    again = build(tmp_path / "again", "dist", "client", UMASK="077", TZ="Asia/Kolkata", PYTHONHASHSEED="7")
    assert first == again


def test_what_an_index_checks_is_right(dist):
    build(dist, "check")


class Environment:
    """A virtual environment that has px-sidecar's dependencies, but neither distribution."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        (site,) = folder.glob("lib/python3.*/site-packages")
        for path in map(Path, sys.path):
            if path.name == "site-packages":
                for entry in path.iterdir():
                    link = site / entry.name
                    # An editable installation of px-sidecar has the client there, too.
                    if entry.suffix != ".pth" and not entry.name.startswith("px_sidecar") and not link.exists():
                        link.symlink_to(entry)

    def pip(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "pip", "--python", str(self.bin / "python"), *arguments]
        subprocess.run(command, check=True, capture_output=True)

    def run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([str(self.bin / program), *arguments], cwd="/", capture_output=True, text=True)

    def has_client(self) -> bool:
        return self.run("python", "-c", "from px_sidecar_client import Client").returncode == 0


def wheel(dist: Path, name: str) -> str:
    (found,) = dist.glob(f"{name}/*.whl")
    return str(found)


def test_uninstalling_the_client_takes_the_file_of_both(dist, tmp_path):
    """pip removes a file with the first of its owners. The client's page says to install one of the two."""
    environment = Environment(tmp_path / "venv")
    environment.pip("install", "--no-deps", wheel(dist, "px-sidecar"), wheel(dist, "px-sidecar-client"))
    assert environment.has_client()
    environment.pip("uninstall", "-y", "px-sidecar-client")
    assert not environment.has_client()
    broken = environment.run("px-sidecar", "client")
    assert (broken.returncode, broken.stdout) == (1, "")
    assert broken.stderr.endswith("put it back with: pip install --force-reinstall --no-deps px-sidecar\n")
    assert environment.run("px-sidecar", "--version").returncode == 0, "the daemon needs no client"
    environment.pip("install", "--force-reinstall", "--no-deps", wheel(dist, "px-sidecar"))
    assert environment.has_client()


def test_uninstalling_the_daemon_takes_the_file_of_both(dist, tmp_path):
    environment = Environment(tmp_path / "venv")
    environment.pip("install", "--no-deps", wheel(dist, "px-sidecar-client"), wheel(dist, "px-sidecar"))
    environment.pip("uninstall", "-y", "px-sidecar")
    assert not environment.has_client()
    environment.pip("install", "--force-reinstall", "--no-deps", wheel(dist, "px-sidecar-client"))
    assert environment.has_client()


def test_the_client_alone_needs_nothing(dist, tmp_path):
    environment = Environment(tmp_path / "venv")
    environment.pip("install", wheel(dist, "px-sidecar-client"))
    done = environment.run("python", "-I", "-c", "import px_sidecar_client as client; print(client.Client.__name__)")
    assert done.stdout == "Client\n"

"""What `pip install` and `pipx` get: one wheel for every machine, with the package and nothing else."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.whole
def test_the_wheel_holds_the_package_and_nothing_compiled(tmp_path):
    """Builds with the build backend of pyproject.toml, which pip takes from PyPI."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, timeout=110)
    (wheel,) = tmp_path.iterdir()
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    inside = {name for name in names if ".dist-info/" not in name}
    git = ["git", "-c", "safe.directory=*", "ls-files", "sidecar"]
    tracked = set(subprocess.run(git, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split())
    assert {name.split("/")[0] for name in inside} == {"sidecar", "px_sidecar_client.py"}
    texts = {".py", ".typed", ".json", ".yml", ".toml", ".md", ".lua", ".html", ".css", ".svg", ".js", ".LICENSE"}
    assert {Path(name).suffix for name in inside} <= texts
    assert {name.replace("sidecar/client/px_", "px_") for name in tracked} <= inside
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)

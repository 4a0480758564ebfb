"""The lower bounds in pyproject.toml, as constraints for pip.

    .ci/lowest.py          print one `name==version` per dependency, extras and build backend included
    .ci/lowest.py --extras print the names of all extras, with commas
    .ci/lowest.py --check  exit 1 unless exactly these versions are installed beside this interpreter

A dependency without a lower bound is an error.
"""

import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

PYPROJECT = tomllib.loads(Path(__file__).resolve().parents[1].joinpath("pyproject.toml").read_text(encoding="utf-8"))


def lower_bound(requirement: Requirement) -> Version:
    """Return the version after `>=`. Raises ValueError if there is not exactly one."""
    bounds = [Version(part.version) for part in requirement.specifier if part.operator == ">="]
    if len(bounds) != 1:
        raise ValueError(f"{requirement} needs exactly one lower bound (>=)")
    return bounds[0]


def requirements() -> list[Requirement]:
    """Return every requirement of the project that applies to this interpreter."""
    project = PYPROJECT["project"]
    lines = [*project["dependencies"], *PYPROJECT["build-system"]["requires"]]
    for extra in project["optional-dependencies"].values():
        lines += extra
    found = [Requirement(line) for line in lines]
    return [
        requirement
        for requirement in found
        if canonicalize_name(requirement.name) != canonicalize_name(project["name"])
        and (requirement.marker is None or requirement.marker.evaluate())
    ]


def mismatches() -> list[str]:
    """Return one line for each installed version that is not the lower bound; the build backend is not installed."""
    wrong = []
    for requirement in requirements():
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            if requirement.name != "hatchling":
                wrong.append(f"{requirement.name} is not installed")
            continue
        if Version(installed) != lower_bound(requirement):
            wrong.append(f"{requirement.name} {installed} is installed instead of {lower_bound(requirement)}")
    return wrong


if __name__ == "__main__":
    if sys.argv[1:] == ["--check"]:
        sys.exit("\n".join(mismatches()) or 0)
    if sys.argv[1:] == ["--extras"]:
        print(*PYPROJECT["project"]["optional-dependencies"], sep=",")
        sys.exit()
    for requirement in requirements():
        print(f"{requirement.name}=={lower_bound(requirement)}")

"""Celery's and kombu's own tests: the source distributions of the pinned versions, from where pip looks."""

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECTS = ("celery", "kombu")
#: What is unpacked: the tests, their settings and the examples, not the packages, so that the installed ones are tested.
_KEPT = ("t/", "examples/", "setup.cfg", "pyproject.toml")
FETCH_SECONDS = 300


def pinned_versions() -> dict[str, str]:
    """Return the versions that constraints.txt pins."""
    text = (ROOT / "constraints.txt").read_text()
    return {name: re.findall(rf"^{name}==(\S+)$", text, re.MULTILINE)[0] for name in PROJECTS}


def fetch(directory: Path) -> dict[str, Path]:
    """Return where each project's tests are unpacked, downloading what is not there yet."""
    return {name: fetch_one(directory, name) for name in PROJECTS}


def fetch_one(directory: Path, name: str) -> Path:
    """Return where one project's tests and examples are unpacked, downloading what is not there yet."""
    version = pinned_versions()[name]
    unpacked = directory / f"{name}-{version}"
    if (unpacked / ".unpacked-with-examples").exists():
        return unpacked
    directory.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-binary", ":all:", "--dest", str(directory)]
    subprocess.run([*pip, *options, f"{name}=={version}"], check=True, timeout=FETCH_SECONDS, env=dict(os.environ))
    with tarfile.open(directory / f"{name}-{version}.tar.gz") as archive:
        prefix = f"{name}-{version}/"
        members = [one for one in archive.getmembers() if one.name.removeprefix(prefix).startswith(_KEPT)]
        archive.extractall(directory, members=members, filter="data")
    (unpacked / ".unpacked-with-examples").touch()
    return unpacked

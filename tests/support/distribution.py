"""What an installed distribution has and a source tree has not: the metadata in which others find its entry points."""

import shutil
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def write_entry_points(directory: Path) -> None:
    """Write it into a directory of the import path, from the project's own description."""
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    lines: list[str] = []
    for group, entries in groups.items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())]
    made = directory / "gpu_orchestrator_here-0.dist-info"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    (made / "METADATA").write_text("Metadata-Version: 2.1\nName: gpu-orchestrator-here\nVersion: 0\n")
    (made / "entry_points.txt").write_text("\n".join(lines) + "\n")

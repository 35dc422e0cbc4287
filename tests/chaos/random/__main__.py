"""``python -m tests.chaos.random``: one randomized run, its figures and its verdict; see ``make chaos``."""

import argparse
import json
import math
import random
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.chaos.random.run import Figures, Run
from tests.chaos.random.world import open_world
from tests.support.cluster import ROOT

RESULTS = ROOT / "bench" / "results" / "chaos.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and return 1 when anything did not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--database", choices=("mariadb", "sqlite"), default="mariadb")
    parser.add_argument("--rate", type=float, default=1.5, help="jobs submitted a second")
    parser.add_argument("--results", type=Path, default=RESULTS)
    chosen = parser.parse_args(arguments)
    seed = random.SystemRandom().randrange(1 << 31) if chosen.seed is None else chosen.seed
    say(f"seed {seed}, {chosen.seconds:.0f} s on {chosen.database}")
    home = Path(tempfile.mkdtemp(prefix="orch-chaos-"))
    figures = play(home, Figures(seed, chosen.seconds, chosen.database), rate=chosen.rate)
    report(figures, chosen.results)
    if figures.violations:
        say(f"FAILED with seed {seed}; logs, journals and dumps are in {home}")
        return 1
    shutil.rmtree(home, ignore_errors=True)
    say("clean")
    return 0


def play(home: Path, figures: Figures, *, rate: float) -> Figures:
    """Play a run in a directory and return its figures."""
    with open_world(home, database=figures.database) as world:
        world.start()
        run = Run(world, figures, say, per_second=rate)
        run.play()
        return run.figures


def summary(times: Sequence[float]) -> dict[str, float]:
    """Return how many times there are, and p50, p99 and the longest."""
    ordered = sorted(times)
    at = lambda share: ordered[max(0, math.ceil(share * len(ordered)) - 1)]  # noqa: E731
    return {"n": len(ordered), "p50": at(0.5), "p99": at(0.99), "max": ordered[-1]}


def report(figures: Figures, file: Path) -> None:
    """Print the figures and write them down."""
    document = dict(vars(figures))
    document["recovery"] = {kind: summary(times) for kind, times in sorted(figures.recovery.items())}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")
    say(f"jobs: {figures.states}; attempts {figures.attempts}, of them lost {figures.lost_attempts}")
    say(f"settled {figures.settle_seconds} s after the last fault; submits repeated: {figures.repeats}")
    say(f"ends of processes that no fault asked for: {figures.unplanned_ends or 'none'}")
    say(f"checked: {figures.checked}")
    for kind, times in document["recovery"].items():
        say(f"  {kind:22} x{figures.faults[kind]:<3} a probe ended after p50 {times['p50']}, max {times['max']} s")
    for violation in figures.violations:
        say(f"VIOLATION {violation}")


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""``make conformance``: run the suites on both transports, compare, and say which tests deviate.

Each piece is a pytest process with a redis-server of its own; ``-n`` of them run at once. What has run is kept, so an
interrupted run goes on where it stopped; ``--fresh`` starts anew. Tests that seem to deviate run again alone, on both
sides, before they count: a loaded machine is not a deviation.
"""

import argparse
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from tests.conformance import sources
from tests.conformance.outcomes import Comparison, compare, judge, load_deviations, read_outcomes
from tests.conformance.report import show, write
from tests.conformance.units import BASELINE_POOL, NO_POOL, POOLS, SUITES, Suite, Unit

HERE = Path(__file__).parent
ROOT = sources.ROOT
UNIT_SECONDS = 1800
CONFIRMATIONS = 2


class Run:
    """One invocation."""

    def __init__(self, work: Path, processes: int) -> None:
        self.sources = sources.fetch(work / "sources")
        self.results = work / "results" / _fingerprint()
        self.results.mkdir(parents=True, exist_ok=True)
        self._processes = processes

    def run(self, units: Iterable[Unit]) -> None:
        """Run the units that have not been run, several at once."""
        waiting = [unit for unit in dict.fromkeys(units) if not self._done(unit).exists()]
        with ThreadPoolExecutor(self._processes) as threads:
            for unit, code in zip(waiting, threads.map(self._run_one, waiting), strict=True):
                tests = read_outcomes(self._lines(unit))
                print(f"{unit.name}: {len(tests)} tests, pytest's exit code {code}", flush=True)

    def outcomes(self, units: Iterable[Unit]) -> dict[str, str]:
        """Return what the units' tests came to."""
        return {test: outcome for unit in units for test, outcome in read_outcomes(self._lines(unit)).items()}

    def forget(self, units: Iterable[Unit]) -> None:
        """Let units run again."""
        for unit in units:
            self._done(unit).unlink(missing_ok=True)

    def confirm(self, suite: Suite, pool: str, tests: Sequence[str], number: int) -> tuple[dict[str, str], ...]:
        """Run tests again, alone; return the outcomes of the baseline and of ours."""
        key = hashlib.sha256("\n".join(tests).encode()).hexdigest()[:8]
        again = [
            replace(unit, suite=f"{suite.name}-again{number}-{key}", tests=tuple(tests), shard=(1, 1))
            for unit in (_baseline(suite, pool)[0], suite.units("redis-streams", pool)[0])
        ]
        self.run(again)
        return tuple(self.outcomes([unit]) for unit in again)

    def _run_one(self, unit: Unit) -> int:
        self._lines(unit).unlink(missing_ok=True)
        options = [
            *("-p", "tests.conformance.plugin", "-p", "no:cacheprovider", "-p", "no:rerunfailures", "-q", "--color=no"),
            "--log-level=INFO",  # some of Celery's tests read what the worker logs
            *("--conformance-transport", unit.transport, "--conformance-pool", unit.pool),
            *("--conformance-shard", f"{unit.shard[0]}/{unit.shard[1]}"),
            *("--conformance-results", str(self._lines(unit)), *unit.flags),
        ]
        chosen = unit.tests or unit.files
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(self.sources[unit.project]), str(ROOT)])}
        with self._lines(unit).with_suffix(".log").open("wb") as log:
            process = subprocess.Popen(
                # The kernel ends it when this process ends, however that ends.
                ["setpriv", "--pdeathsig", "TERM", "--", sys.executable, "-m", "pytest", *options, *chosen],
                cwd=self.sources[unit.project],
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            code = _wait(process)
        self._done(unit).write_text(f"{code}\n")
        return code

    def _lines(self, unit: Unit) -> Path:
        return self.results / f"{unit.name}.jsonl"

    def _done(self, unit: Unit) -> Path:
        return self.results / f"{unit.name}.done"


def main(argv: Sequence[str] | None = None) -> int:
    """Run, report and judge; 0 when every deviation is listed."""
    asked = _arguments(argv)
    run = Run(asked.work, asked.processes)
    pairs = [
        (suite, pool)
        for suite in SUITES
        if not asked.suite or suite.name in asked.suite
        for pool in suite.pools
        if not asked.pool or pool in asked.pool
    ]
    units = [unit for suite, pool in pairs for unit in (*_baseline(suite, pool), *suite.units("redis-streams", pool))]
    if asked.fresh:
        run.forget(units)
    run.run(units)
    comparisons = [_settle(run, suite, pool) for suite, pool in pairs]
    faults = judge(comparisons, load_deviations(HERE / "deviations.toml"))
    show(comparisons, faults)
    if not (asked.suite or asked.pool):
        write(asked.output, sources.pinned_versions(), comparisons, faults)
    return 1 if faults else 0


def _settle(run: Run, suite: Suite, pool: str) -> Comparison:
    baseline = run.outcomes(_baseline(suite, pool))
    ours = run.outcomes(suite.units("redis-streams", pool))
    found = compare(suite.name, pool, baseline, ours)
    for number in range(1, CONFIRMATIONS + 1):
        if not found.deviating:
            break
        before, now = run.confirm(suite, pool, found.deviating, number)
        baseline, ours = baseline | before, ours | now
        found = compare(suite.name, pool, baseline, ours)
    return found


def _baseline(suite: Suite, pool: str) -> list[Unit]:
    return suite.units("redis", BASELINE_POOL.get(pool, pool))


def _fingerprint() -> str:
    """Return a name for what the results depend on: the pinned versions."""
    return hashlib.sha256((ROOT / "constraints.txt").read_bytes()).hexdigest()[:12]


def _wait(process: "subprocess.Popen[bytes]") -> int:
    try:
        return process.wait(UNIT_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        return process.wait(30)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", "--processes", type=int, default=2, help="how many suites run at once")
    parser.add_argument("--suite", action="append", choices=[suite.name for suite in SUITES], help="run this one")
    parser.add_argument("--pool", action="append", choices=[*POOLS, NO_POOL], help="run on this pool")
    parser.add_argument("--fresh", action="store_true", help="run again what has been run")
    parser.add_argument("--work", type=Path, default=ROOT / "build/conformance", help="where sources and results are")
    parser.add_argument("--output", type=Path, default=ROOT / "bench/results/conformance.json")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())

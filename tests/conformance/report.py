"""What a run says: on the screen, in ``bench/results/conformance.json``, and in the table of docs/celery.md."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.conformance.outcomes import Comparison
from tests.conformance.units import TRANSPORTS


def show(comparisons: Iterable[Comparison], faults: Sequence[str]) -> None:
    """Print how each suite went, which tests deviate, and what is wrong with that."""
    for one in comparisons:
        counts = ", ".join(f"{count} {meaning}" for meaning, count in sorted(one.counts.items()))
        print(f"{one.suite:10} {one.pool:8} {counts}")
        for test in one.deviating:
            print(f"           deviates: {test}")
        for test in one.failing:
            print(f"           fails on both: {test}")
    for fault in faults:
        print(fault)
    print("conformance: " + (f"{len(faults)} faults" if faults else "every deviation is listed"))


def write(path: Path, versions: Mapping[str, str], comparisons: Iterable[Comparison], faults: Sequence[str]) -> None:
    """Write the document that the table is made of."""
    document: dict[str, Any] = {
        "versions": versions,
        "transports": TRANSPORTS,
        "suites": [
            {
                "suite": one.suite,
                "pool": one.pool,
                "counts": one.counts,
                "deviating": one.deviating,
                "failing on both": one.failing,
            }
            for one in comparisons
        ],
        "faults": list(faults),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2) + "\n")


def table(document: Mapping[str, Any]) -> list[str]:
    """Return the rows of the table, in Markdown."""
    rows = []
    for one in document["suites"]:
        counts = one["counts"]
        both, deviate = counts.get("passed on both", 0), counts.get("deviates", 0)
        numbers = (
            sum(counts.values()),
            both + deviate,
            both + counts.get("passes here alone", 0),
            counts.get("fails on both", 0),
            counts.get("skipped on both", 0),
            deviate,
        )
        rows.append(f"| {one['suite']} | {one['pool']} | " + " | ".join(map(str, numbers)) + " |")
    return rows


if __name__ == "__main__":
    print("\n".join(table(json.loads(Path("bench/results/conformance.json").read_text()))))

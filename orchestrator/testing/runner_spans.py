"""What runners and guardians wrote about processes on GPUs, and what must hold of it.

Two kinds of files, both of JSON lines: dumps of runners (``runner_dump``), and guardians' journals.
"""

import itertools
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias

from orchestrator.domain.history import LeaseRow, RunnerSpan
from orchestrator.domain.job import LeaseMode
from orchestrator.testing.invariants import Violation

_Record: TypeAlias = tuple[str, dict[str, Any]]  # file and line, and what it says


def load_spans(paths: Iterable[Path]) -> list[RunnerSpan]:
    """Read files, or every ``*.jsonl`` below directories; a torn last line, of a writer that was killed, is left out.

    Raises:
        ValueError: Naming the file and line that is neither kind of record.
    """
    files = [file for path in paths for file in (sorted(path.rglob("*.jsonl*")) if path.is_dir() else [path])]
    records = [record for file in files for record in _records_of(file)]
    dumped = [(source, record) for source, record in records if "what" in record]
    journaled = [(source, record) for source, record in records if "op" in record]
    return [*_from_dumps(dumped), *_from_journals(journaled)]


def _records_of(file: Path) -> Iterator[_Record]:
    lines = file.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
            if number == len(lines) and not line.endswith(b"\n"):
                return
        if not isinstance(record, dict) or not record.keys() & {"what", "op"}:
            raise ValueError(f"{file}:{number}: neither a runner's line nor a guardian's")
        yield f"{file.name}:{number}", record


def _from_dumps(records: Sequence[_Record]) -> Iterator[RunnerSpan]:
    told: dict[tuple[Any, ...], dict[str, _Record]] = defaultdict(dict)
    for source, record in records:
        key = tuple(record[name] for name in ("boot", "pid", "ticks", "job", "attempt"))
        told[key][record["what"]] = (source, record)
    for lines in told.values():
        source, start = lines["start"]
        end = lines["end"][1] if "end" in lines else None
        yield RunnerSpan(
            source=source,
            boot=start["boot"],
            pid=start["pid"],
            token=start["token"],
            gpus=tuple(start["gpus"]),
            start=start["at"],
            end=end["at"] if end else None,
            start_wall=datetime.fromtimestamp(start["wall"], UTC),
            end_wall=datetime.fromtimestamp(end["wall"], UTC) if end else None,
            job_id=start["job"],
            attempt=start["attempt"],
            beside=tuple(lines["beside"][1]["others"]) if "beside" in lines else (),
        )


def _from_journals(records: Sequence[_Record]) -> Iterator[RunnerSpan]:
    """Return a span a mark, whichever files tell of it: a journal that is set aside says again what is still open."""
    begun: dict[str, _Record] = {}
    ended: dict[str, float] = {}
    for source, record in records:
        if record["op"] == "began":
            begun.setdefault(record["mark"], (source, record))
        elif record["op"] == "exit":
            ended[record["mark"]] = record["at"]
    for mark, (source, record) in begun.items():
        yield RunnerSpan(
            source=source,
            boot=record["boot_id"],
            pid=record["pid"],
            token=record["token"],
            gpus=tuple(record["gpus"]),
            start=record["at"],
            end=ended.get(mark),
            is_exclusive=record["exclusive"],
        )


def check_overlaps(spans: Sequence[RunnerSpan], leases: Mapping[int, LeaseRow]) -> Iterator[Violation]:
    """Yield wherever two processes were alive together on a GPU that one of them had for itself.

    What its guardian journals and what the same runner dumps are two views of one process, and are not compared.
    """
    by_gpu: dict[tuple[str, str, bool], list[RunnerSpan]] = defaultdict(list)
    for span in spans:
        for gpu in span.gpus:
            by_gpu[span.boot, gpu, span.job_id is None].append(span)
    for (_, gpu, _), uses in by_gpu.items():
        uses.sort(key=lambda span: (span.start, span.pid))
        alive: list[RunnerSpan] = []
        for span in uses:
            alive = [one for one in alive if (one.start if one.end is None else one.end) > span.start]
            for other in alive:
                if _has_it_alone(span, leases) or _has_it_alone(other, leases):
                    seen = f"process {span.pid} (token {span.token}) began while {other.pid} ({other.token}) ran"
                    yield Violation("runner-exclusive", f"gpu {gpu}", seen, f"{other.source} {span.source}")
            alive.append(span)
    yield from _check_seen(spans, leases)


def _check_seen(spans: Sequence[RunnerSpan], leases: Mapping[int, LeaseRow]) -> Iterator[Violation]:
    by_pid = {(span.boot, span.pid): span for span in spans if span.job_id is not None}
    for span, pid in itertools.chain.from_iterable(((span, pid) for pid in span.beside) for span in spans):
        other = by_pid.get((span.boot, pid))
        if _has_it_alone(span, leases) or (other is not None and _has_it_alone(other, leases)):
            seen = f"process {span.pid} (token {span.token}) found process {pid} alive on one of its GPUs"
            yield Violation("runner-exclusive", f"gpu {','.join(span.gpus)}", seen, span.source)


def _has_it_alone(span: RunnerSpan, leases: Mapping[int, LeaseRow]) -> bool:
    lease = leases.get(span.token)
    return lease.mode is LeaseMode.EXCLUSIVE if lease is not None and span.job_id is not None else span.is_exclusive


def check_tokens(
    spans: Iterable[RunnerSpan],
    leases: Mapping[int, LeaseRow],
    claimed: Mapping[tuple[str, int], int],
    *,
    skew: timedelta | None,
) -> Iterator[Violation]:
    """Yield runners that ran without the right to, or longer than it lasted.

    Args:
        spans: What runners told; those of journals carry the first token of a runner that may have had several.
        leases: By token; what is not here any more was pruned, and is not judged.
        claimed: (job id, attempt) -> the lease that it was claimed under.
        skew: Most by which the hosts' wall clocks and the database's may differ; None: instants are not compared.
    """
    for span in spans:
        if span.job_id is None or span.attempt is None:
            continue
        subject = f"job {span.job_id}"
        token = claimed.get((span.job_id, span.attempt))
        if token is not None and token != span.token:
            seen = f"attempt {span.attempt} ran under token {span.token}, and was claimed under {token}"
            yield Violation("runner-under-lease", subject, seen, span.source)
        lease = leases.get(span.token)
        if lease is None:
            continue
        if set(span.gpus) != set(lease.gpus):
            seen = f"saw GPUs {sorted(span.gpus)}; lease {lease.id} has {sorted(lease.gpus)}"
            yield Violation("runner-under-lease", subject, seen, span.source)
        if skew is not None and span.start_wall is not None:
            for seen in _untimely(span.start_wall, span.end_wall or span.start_wall, lease, skew):
                yield Violation("runner-under-lease", subject, seen, span.source)


def _untimely(began: datetime, last: datetime, lease: LeaseRow, skew: timedelta) -> Iterator[str]:
    if began < lease.granted_at - skew:
        yield f"began at {began.isoformat()}, before lease {lease.id} was granted"
    if lease.ended_at is not None and last > lease.ended_at + skew:
        yield f"was alive at {last.isoformat()}; lease {lease.id} had ended at {lease.ended_at.isoformat()}"

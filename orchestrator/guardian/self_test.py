"""The process that tests one GPU, so that a broken card can hang nobody else.

    python -m orchestrator.guardian.self_test PARENT GPU [SIMULATED]

Prints what it found to stdout, as one JSON object: ``{"verdict": …, "reason": …}``.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from orchestrator.gpus.self_test import check_gpu, check_simulated
from orchestrator.guardian.kernel import die_with


def main(arguments: list[str]) -> None:
    """Test the GPU."""
    parent, gpu, *simulated = arguments
    die_with(int(parent))
    outcome = check_simulated(Path(simulated[0]), gpu) if simulated else check_gpu(gpu)
    print(json.dumps(asdict(outcome)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])

"""What the operator holds jobs to is in force in commands and in tasks."""

import json
import os
import re
from pathlib import Path

from orchestrator.domain.job import JobState
from tests.support.cluster import Cluster

HERE = Path(__file__).parent
#: Prints the niceness of its process, and what the kernel says of its limits and rights.
TELL = ("sh", "-c", "nice; cat /proc/self/status /proc/self/limits")


def told(text: str) -> dict[str, str]:
    """Return what is looked at of what a job told."""
    found = re.findall(r"^(Umask|NoNewPrivs|Max open files|Max core file size):?\s+(\S+)", text, re.M)
    return {"nice": text.split(maxsplit=1)[0], **dict(found)}


def test_commands_and_tasks_are_held_to_what_the_operator_says(cluster: Cluster) -> None:
    """And so is what they start."""
    settings = {
        "runner_nice": 3,
        "runner_rlimits": json.dumps({"nofile": 512}),
        "runner_umask": "027",
        "runner_no_new_privileges": True,
    }
    cluster.worker("a", app="tasks_app", path=HERE, **settings)
    command, task = cluster.command(*TELL, gpus=1), cluster.task("t.told", *TELL)
    result = cluster.wait_for_state(task, JobState.SUCCEEDED).result
    cluster.wait_for_state(command, JobState.SUCCEEDED)

    held = {"nice": str(min(19, os.nice(0) + 3)), "Umask": "0027", "NoNewPrivs": "1"}
    held |= {"Max open files": "512", "Max core file size": "0"}
    assert told(cluster.output(command)) == held
    assert told(str(result)) == held

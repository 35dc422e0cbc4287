"""What pytest-celery's nodes rely on in a container holds for a process in its place."""

import sys
from pathlib import Path

import psutil

from orchestrator.testing.process_container import ProcessContainer
from tests.support.waiting import wait_for


def test_a_process_behaves_as_a_container(tmp_path: Path) -> None:
    """Logs outlive restarts, states are told, and what the process started ends with it."""
    program = "import subprocess, time; subprocess.Popen(['sleep', '600']); print('up', flush=True); time.sleep(600)"
    container = ProcessContainer([sys.executable, "-c", program], directory=tmp_path, name="one")
    assert container.status == "created"
    container.start()
    wait_for(lambda: "up" in container.logs_since_start(), within_seconds=30, describe="it is up")
    child = next(process for process in container.top() if process.pid != container.pid)
    container.pause()
    wait_for(lambda: container.status == "paused", within_seconds=30, describe="it is paused")
    container.unpause()
    wait_for(lambda: container.status == "running", within_seconds=30, describe="it goes on")
    first = container.pid
    container.restart()
    assert container.pid not in {0, first}
    wait_for(lambda: container.logs().count(b"up") == 2, within_seconds=30, describe="it is up again")
    assert "up\nup" not in container.logs_since_start()
    wait_for(
        lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE,
        within_seconds=30,
        describe="its child ended with it",
    )
    assert container.exec_run("python -c \"import os; print(os.environ['CONTAINER_PID'])\"") == (
        0,
        f"{container.pid}\n".encode(),
    )
    container.kill()
    assert (container.status, container.attrs["State"]["ExitCode"]) == ("exited", 137)


def test_a_host_name_is_filled_in_and_signals_have_all_their_names(tmp_path: Path) -> None:
    container = ProcessContainer([sys.executable, "-c", "input()", "%h"], directory=tmp_path, name="two")
    assert container.attrs["Config"]["Cmd"][-1] == container.attrs["Config"]["Hostname"] == container.id[:12]
    program = "import signal, time; signal.signal(15, lambda *_: print('asked', flush=True)); print('up', flush=True)\n"
    container = ProcessContainer(
        [sys.executable, "-c", f"{program}while True: time.sleep(1)"], directory=tmp_path, name="three"
    )
    container.start()
    wait_for(lambda: b"up" in container.logs(), within_seconds=30, describe="it is up")
    for count, name in enumerate(("SIGTERM", "TERM", "15", 15), start=1):
        container.kill(name)
        wait_for(lambda n=count: container.logs().count(b"asked") == n, within_seconds=30, describe=str(name))
    container.remove()

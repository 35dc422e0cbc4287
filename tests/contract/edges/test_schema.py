"""The schema's versions, and the servers that are refused."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from alembic import command
from sqlalchemy import create_engine, text

from orchestrator.errors import InvalidSettings, SchemaMismatch
from orchestrator.storage import engine as engine_module
from orchestrator.storage import schema
from orchestrator.storage.engine import refuse_server


def test_processes_that_upgrade_together_do_not_collide(database_url: str) -> None:
    """Api, beat and worker may start at once on an empty database."""
    with ThreadPoolExecutor(3) as pool:
        versions = set(pool.map(lambda _: schema.upgrade(database_url), range(3)))

    assert versions == {schema.head()} == {schema.check(database_url)}


def test_a_database_without_the_schema_is_told_how_to_get_it(database_url: str) -> None:
    """The error names what is there, what is needed and the command."""
    with pytest.raises(SchemaMismatch, match="orch db upgrade"):
        schema.check(database_url)


def test_a_table_that_somebody_changed_is_noticed(database_url: str) -> None:
    """The version alone does not prove the tables."""
    schema.upgrade(database_url)
    engine = create_engine(database_url)
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE orchestrator_events DROP COLUMN node"))
    engine.dispose()

    with pytest.raises(SchemaMismatch, match="node"):
        schema.check(database_url)


@pytest.mark.parametrize(
    ("version", "wsrep_on", "members"),
    [
        ("8.0.36", None, None),
        ("8.4.0-mysql", "OFF", "0"),
        ("10.5.23-MariaDB", "OFF", "0"),
        ("11.4.2-MariaDB-log", "ON", "3"),
        ("11.4.2-MariaDB-log", "1", "2"),
    ],
)
def test_a_server_that_cannot_keep_the_promises_is_refused(
    version: str, wsrep_on: str | None, members: str | None
) -> None:
    """MySQL, old MariaDB, and Galera with several members."""
    with pytest.raises(InvalidSettings):
        refuse_server(version, wsrep_on, members)


@pytest.mark.parametrize(
    ("version", "wsrep_on", "members"),
    [
        ("10.11.6-MariaDB-0+deb12u1", "OFF", "0"),
        ("5.5.5-10.11.6-MariaDB", None, None),
        ("11.4.2-MariaDB", "ON", "1"),
    ],
)
def test_a_single_mariadb_is_accepted(version: str, wsrep_on: str | None, members: str | None) -> None:
    """Also one that shows the compatibility prefix, and a Galera of one."""
    refuse_server(version, wsrep_on, members)


def test_the_server_is_looked_at_by_the_first_connection(mariadb_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the server says of itself reaches the rule, and a refusal reaches the caller."""
    seen: list[tuple[str | None, ...]] = []

    def refuse(*facts: str | None) -> None:
        seen.append(facts)
        raise InvalidSettings(["refused"])

    monkeypatch.setattr(engine_module, "refuse_server", refuse)
    database = engine_module.open_database(mariadb_url)

    for _ in range(2):
        with pytest.raises(InvalidSettings, match="refused"):
            database.read(lambda connection: connection.execute(text("SELECT 1")).scalar())

    database.close()
    version, _, members = seen[-1]
    assert len(seen) == 2
    assert "MariaDB" in str(version)
    assert int(members or 0) <= 1


def test_who_holds_a_lease_at_the_upgrade_keeps_it_without_its_host_looking_at_the_gpus(database_url: str) -> None:
    """The GPUs are in use by then: a host that cleared them would find their holder in the way."""
    at = "2026-01-02 03:04:05.000006"
    engine = create_engine(database_url)
    with engine.connect() as connection:
        command.upgrade(schema._config(connection), "0003")
        lease = {"id": 1, "node": "a", "mode": "exclusive", "cpus": 0, "host_memory_mib": 0, "state": "active"}
        lease |= {"renewals": 0, "granted_at": at, "heartbeat_at": at, "expires_at": at}
        holder = {"lease_id": 1, "token_hash": "t", "name": "shell", "tenant": "red", "holder": "ada", "ttl_s": 15}
        for table, row in (("orchestrator_leases", lease), ("orchestrator_lease_holders", holder)):
            names = ", ".join(row)
            values = ", ".join(f":{name}" for name in row)
            connection.execute(text(f"INSERT INTO {table} ({names}) VALUES ({values})"), row)
        connection.commit()

    schema.upgrade(database_url)

    with engine.connect() as connection:
        (ready_at,) = connection.execute(text("SELECT ready_at FROM orchestrator_lease_holders")).scalars()
    engine.dispose()
    assert str(ready_at) == at

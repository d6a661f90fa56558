"""Prefect's empty database: made once, copied into new folders, and no start fails because of it."""

import fcntl
import logging
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from deploy.prefect_database import copy_empty_database


class Migrations:
    """Creates two tables as Prefect does, in a write-ahead log that stays open; counts its runs."""

    def __init__(self, opened: ExitStack, *more: str) -> None:
        self.runs = 0
        self._opened, self._more = opened, more

    def __call__(self, database: Path) -> None:
        self.runs += 1
        connection = self._opened.enter_context(closing(sqlite3.connect(database)))
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE alembic_version (version_num)")
        connection.execute("CREATE TABLE configuration (key)")
        connection.execute("INSERT INTO alembic_version VALUES ('2f')")
        for statement in self._more:
            connection.execute(statement)
        connection.commit()


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def new(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder / "prefect.db"


def copied(cache: Path, database: Path, migrations: Migrations) -> bool:
    copy_empty_database(cache, database, lambda: None, migrations)
    return database.exists()


def revision(database: Path) -> str:
    with closing(sqlite3.connect(database)) as connection:
        (found,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        return str(found)


def test_the_database_is_made_once_and_each_copy_is_whole_without_its_log(
    cache: Path, tmp_path: Path, opened: ExitStack
) -> None:
    migrations = Migrations(opened)
    for name in ("a", "b"):
        database = new(tmp_path / name)
        assert copied(cache, database, migrations)
        assert list(database.parent.iterdir()) == [database]
        assert revision(database) == "2f"
    assert migrations.runs == 1


def test_a_database_that_exists_or_has_left_a_log_is_not_touched(
    cache: Path, tmp_path: Path, opened: ExitStack
) -> None:
    """SQLite would replay the log of the old database into the new one."""
    migrations = Migrations(opened)
    for name in ("prefect.db", "prefect.db-wal", "prefect.db-shm", "prefect.db-journal"):
        database = new(tmp_path / name)
        found = database.with_name(name)
        found.write_bytes(b"old")
        copied(cache, database, migrations)
        assert list(database.parent.iterdir()) == [found]
        assert found.read_bytes() == b"old"
    assert migrations.runs == 0


def test_a_database_with_the_rows_of_one_server_is_never_copied(cache: Path, tmp_path: Path, opened: ExitStack) -> None:
    own = Migrations(opened, "INSERT INTO configuration VALUES ('ENCRYPTION_KEY')")
    assert not copied(cache, new(tmp_path / "a"), own)
    assert list(cache.glob("*.db")) == []


@pytest.mark.parametrize("damage", [b"", b"rubbish", None], ids=["empty", "rubbish", "half"])
def test_a_damaged_database_in_the_cache_is_not_copied_and_is_made_again(
    damage: bytes | None, cache: Path, tmp_path: Path, opened: ExitStack
) -> None:
    migrations = Migrations(opened)
    copied(cache, new(tmp_path / "a"), migrations)
    (cached,) = cache.glob("*.db")
    content = cached.read_bytes()
    cached.write_bytes(content[: len(content) // 2] if damage is None else damage)
    database = new(tmp_path / "b")
    assert not copied(cache, database, migrations)
    assert list(database.parent.iterdir()) == []
    assert copied(cache, database, migrations)
    assert migrations.runs == 2


def test_a_failure_leaves_the_start_as_usual_with_a_debug_line(
    cache: Path, tmp_path: Path, opened: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "streamgru.stack")
    obstacle = tmp_path / "file"
    obstacle.touch()
    assert not copied(obstacle, new(tmp_path / "a"), Migrations(opened))
    assert not copied(cache, new(tmp_path / "b"), Migrations(opened, "nonsense"))
    assert [record.levelname for record in caplog.records] == ["DEBUG", "DEBUG"]
    assert [path.name for path in cache.iterdir()] == ["prefect-database.lock"]


def test_a_start_does_not_wait_while_another_process_makes_the_database(
    cache: Path, tmp_path: Path, opened: ExitStack
) -> None:
    migrations = Migrations(opened)
    cache.mkdir()
    with (cache / "prefect-database.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert not copied(cache, new(tmp_path / "a"), migrations)
    assert migrations.runs == 0
    shutil.rmtree(tmp_path / "a")
    assert copied(cache, new(tmp_path / "a"), migrations)

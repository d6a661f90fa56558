"""Prefect's empty database with all its tables, made once: a new server starts in half the CPU time.

Prefect creates its tables by running every migration of its history. Without the database in the cache, or with one
that fails the check, the server does that itself, as usual.

Run ``python -m deploy.prefect_database`` to make the database before the first start.
"""

import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Final

from deploy.service import COMMON_ENVIRONMENT
from deploy.terminal_text import say
from pipeline.errors import StreamgruError
from pipeline.file_lock import hold_lock
from pipeline.settings import load_settings

# The migrations take 5 s on an idle machine.
MIGRATE_TIMEOUT_S: Final = 120.0
# Distributions that decide how the tables are created.
MAKERS: Final = ("prefect", "sqlalchemy", "alembic")
# The only table with a row. Prefect writes the rows that belong to one server (encryption key, telemetry session) when
# the server runs; a database that has such rows must not be copied.
REVISION_TABLE: Final = "alembic_version"
# SQLite would replay an old journal into a new database, so a database is copied only if it has no journal.
JOURNALS: Final = ("-wal", "-shm", "-journal")

logger = logging.getLogger("streamgru.stack")

FAILURES: Final = (OSError, subprocess.SubprocessError, sqlite3.Error, ValueError, StreamgruError)

Migrate = Callable[[Path], None]


def migrate_prefect(database: Path) -> None:
    """Create Prefect's tables in ``database``, in a process without the user's ``PREFECT_`` variables.

    Raises:
        subprocess.SubprocessError: Prefect failed, or took longer than ``MIGRATE_TIMEOUT_S``.
        OSError: the process cannot be started.
    """
    ours = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
    ours |= COMMON_ENVIRONMENT
    ours["PREFECT_HOME"] = str(database.parent)
    # Named explicitly, so that no settings file of Prefect can name a user's database for the migration. The name is
    # relative, because a path may have characters that end a path in a URL.
    ours["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = f"sqlite+aiosqlite:///{database.name}"
    subprocess.run(
        (sys.executable, "-m", "prefect", "server", "database", "upgrade", "-y"),
        cwd=database.parent,
        env=ours,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
        timeout=MIGRATE_TIMEOUT_S,
    )


def copy_empty_database(
    cache: Path, database: Path, report: Callable[[], None], migrate: Migrate = migrate_prefect
) -> None:
    """Copy the empty database from the cache to ``database``, unless that exists; makes the cached one if necessary.

    No error is raised: without a copy the server creates its tables itself. The folder of ``database`` must exist.
    Several processes may call this function at once: the first one makes the cached database, and the other ones
    return without a copy.

    Args:
        cache: folder that all clones share.
        report: called before the cached database is made.
        migrate: creates the tables in a database at the given path.
    """
    # A link to a file that does not exist yet is the user's, too.
    if any(os.path.lexists(f"{database}{ending}") for ending in ("", *JOURNALS)):
        return
    partial = database.with_name(f"{database.name}.copying")
    try:
        cached = empty_database(cache, report, migrate)
        try:
            shutil.copyfile(cached, partial)
            _check(partial)
            partial.replace(database)
        except (sqlite3.Error, ValueError):
            cached.unlink(missing_ok=True)  # the next start makes it again
            raise
        finally:
            partial.unlink(missing_ok=True)
    except FAILURES as error:
        logger.debug("Prefect's server creates its tables itself, because no database could be copied: %s", error)


def empty_database(cache: Path, report: Callable[[], None], migrate: Migrate = migrate_prefect) -> Path:
    """The database in the cache; makes it if it does not exist.

    Raises:
        StreamgruError: another process makes it, or the cache cannot be written.
        OSError, subprocess.SubprocessError, sqlite3.Error, ValueError: it cannot be made, or has unexpected rows.
    """
    cached = cache / ("-".join(f"{name}-{version(name)}" for name in MAKERS) + ".db")
    if not cached.exists():
        with hold_lock(cache / "prefect-database.lock", "another process makes Prefect's empty database"):
            if not cached.exists():
                report()
                _make(cached, migrate)
    return cached


def _make(cached: Path, migrate: Migrate) -> None:
    with tempfile.TemporaryDirectory(dir=cached.parent, prefix="migrating-", ignore_cleanup_errors=True) as folder:
        migrated, made = Path(folder) / "prefect.db", Path(folder) / "made.db"
        migrate(migrated)
        with closing(sqlite3.connect(migrated)) as connection:
            # One file: it contains the pages that are still in the write-ahead log.
            connection.execute("VACUUM INTO ?", (str(made),))
        _check(made)
        made.replace(cached)


def _check(database: Path) -> None:
    """Raise ``ValueError`` or ``sqlite3.Error`` unless the database is intact and has no row except its revision."""
    with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
        (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise ValueError(f"the database is damaged: {found}")
        tables = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        with_rows = [name for name in tables if connection.execute(f'SELECT 1 FROM "{name}" LIMIT 1').fetchone()]
    if with_rows != [REVISION_TABLE]:
        raise ValueError(f"the empty database has rows in {', '.join(with_rows) or 'no table'}")


def main() -> None:
    """Make the database in the cache folder of the settings, or say why that failed; never exits with an error."""
    try:
        empty_database(load_settings().stack.cache_path, lambda: None)
    except FAILURES as error:
        say(f"Prefect's first start will be slower, because its database could not be prepared: {error}")


if __name__ == "__main__":
    main()

"""Finds the tables that a user names: files, patterns, members of zip archives, and folders of Parquet files."""

import glob
import gzip
import io
import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Final
from urllib.parse import unquote

from pipeline.errors import DataFileError

TEXT_SUFFIXES: Final = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz")
PARQUET_SUFFIXES: Final = (".parquet", ".pq")
ZIP_SUFFIX: Final = ".zip"
SUFFIXES: Final = (*TEXT_SUFFIXES, *PARQUET_SUFFIXES)
# Errors of the readers of archives; they raise the last five for damaged names, positions and lengths.
_DAMAGED: Final = (
    *(EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, gzip.BadGzipFile),
    *(ValueError, LookupError, struct.error, OverflowError, MemoryError),
)
# Text that marks a partition whose value is null in the folder names of a Hive dataset.
_HIVE_NULL: Final = "__HIVE_DEFAULT_PARTITION__"
_DELTA_LOG: Final = "_delta_log"
# Bytes that a compressed table may unpack to: some 100 million rows. The text and its columns are in memory at once.
# An archive of a few megabytes can hold gigabytes of zeros.
_MOST_UNPACKED_BYTES: Final = 4 * 1024**3


@dataclass(frozen=True)
class Source:
    """One table: a file, a member of a zip archive, or a file of a dataset in a folder.

    ``parts`` are the folders and the name without suffix; their end names a sensor. ``constants`` are columns that the
    folders of a dataset hold, such as ``station=a``.
    """

    name: str  # as messages show it
    path: Path
    parts: tuple[str, ...]
    suffix: str
    member: str | None = None
    constants: tuple[tuple[str, str | None], ...] = ()

    @property
    def is_text(self) -> bool:
        """Whether the table is CSV text, with lines and without types."""
        return self.suffix not in PARQUET_SUFFIXES

    def place(self, number: int) -> str:
        """The name of a line or row (from 1) in messages."""
        return f"{self.name}, {'line' if self.is_text else 'row'} {number}"

    def content(self) -> bytes:
        """The bytes of the table, uncompressed.

        Raises:
            DataFileError: the file cannot be read, or its compressed data is damaged.
        """
        with naming_file(self.name):
            if self.member is None:
                content = self.path.read_bytes()
            else:
                with zipfile.ZipFile(self.path) as archive, archive.open(self.member) as file:
                    content = self._unpacked(file)
            if self.suffix.endswith(".gz"):
                with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
                    content = self._unpacked(file)
        if not content:
            raise DataFileError(f"{self.name} is empty")
        return content

    def _unpacked(self, file: IO[bytes] | gzip.GzipFile) -> bytes:
        content = file.read(_MOST_UNPACKED_BYTES + 1)
        if len(content) > _MOST_UNPACKED_BYTES:
            raise DataFileError(
                f"{self.name} unpacks to more than {_MOST_UNPACKED_BYTES / 1024**3:g} GiB; unpack it, and split it "
                "into smaller files"
            )
        return content


@contextmanager
def naming_file(name: str) -> Iterator[None]:
    """Turn the errors of file systems and archives into a message with the file's name."""
    try:
        yield
    except _DAMAGED as error:
        raise DataFileError(f"{name} cannot be read: its compressed data is damaged or incomplete ({error})") from error
    except OSError as error:
        raise DataFileError(f"{name} cannot be read: {error.strerror or error}") from error
    except (RuntimeError, NotImplementedError) as error:  # an archive with a password or an unknown compression
        raise DataFileError(f"{name} cannot be read: {error}; unpack it first") from error


def find_sources(paths: Sequence[Path]) -> tuple[list[Source], list[str]]:
    """The tables that the paths name, in their order, and notes about members of archives that hold no table.

    Raises:
        DataFileError: a path does not exist, matches no file, is given twice, or has another format.
    """
    found: list[Source] = []
    notes: list[str] = []
    for path in paths:
        for each in _expanded(path):
            found += _sources_of(each, notes)
    seen: set[tuple[Path, str | None]] = set()
    for source in found:
        identity = (source.path.resolve(), source.member)
        if identity in seen:
            raise DataFileError(f"{source.name} is given twice; name each file once")
        seen.add(identity)
    return found, notes


def _expanded(path: Path) -> list[Path]:
    """The files that a pattern such as ``data/*.csv`` matches; the path itself if it is not a pattern."""
    try:
        if path.exists() or not glob.has_magic(str(path)):
            return [path]
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataFileError(f"{str(path)!r} is not the path of a file: {reason}") from error
    matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 - Path.glob takes no absolute patterns
    if not matches:
        raise DataFileError(f"no file matches the pattern {path}")
    return [Path(match) for match in matches]


def _sources_of(path: Path, notes: list[str]) -> list[Source]:
    with naming_file(str(path)):
        if not path.exists():
            raise DataFileError(f"there is no file {path}")
        if path.is_dir():
            return _dataset(path)
        if not path.is_file():
            raise DataFileError(f"{path} is not a file")
        if path.name.lower().endswith(ZIP_SUFFIX):
            return _members(path, notes)
    suffix = suffix_of(path.name)
    if suffix in PARQUET_SUFFIXES:
        _check_no_delta_table(path.parent)
    if suffix is None:
        suffixes = ", ".join((*SUFFIXES, ZIP_SUFFIX))
        raise DataFileError(f"{path}: neither CSV nor Parquet; its name should end in one of {suffixes}")
    return [Source(str(path), path, (*_folders(path), _stem(path.name, suffix)), suffix)]


def _dataset(folder: Path) -> list[Source]:
    """The Parquet files in a folder and its subfolders, which together are one table."""
    _check_no_delta_table(folder)
    for log in sorted(folder.rglob(_DELTA_LOG)):
        _check_no_delta_table(log.parent)
    files = sorted(each for each in folder.rglob("*") if suffix_of(each.name) in PARQUET_SUFFIXES and each.is_file())
    files = [each for each in files if not any(part[0] in "._" for part in each.relative_to(folder).parts)]
    if not files:
        raise DataFileError(
            f"{folder} is not a file, but a folder without Parquet files; give its files, such as '{folder}/**/*.csv'"
        )
    stem = _stem(folder.name, suffix_of(folder.name) or "") or folder.name
    parts = (*_folders(folder), stem)
    found = []
    for file in files:
        keys = [part.partition("=") for part in file.relative_to(folder).parts[:-1] if "=" in part]
        constants = tuple((unquote(key), None if value == _HIVE_NULL else unquote(value)) for key, _, value in keys)
        found.append(Source(str(file), file, parts, ".parquet", constants=constants))
    return found


def _check_no_delta_table(folder: Path) -> None:
    """Raise for a folder of a Delta table: its Parquet files also hold rows that were deleted or rewritten."""
    while "=" in folder.name:
        folder = folder.parent
    if (folder / _DELTA_LOG).is_dir():
        raise DataFileError(
            f"{folder} is a Delta table, and its Parquet files also hold deleted and rewritten rows. `streamgru "
            "backtest` and `streamgru retrain` without files read the history. For another table, export its newest "
            "version to Parquet, for example with DuckDB: COPY (SELECT * FROM delta_scan('TABLE')) TO 'table.parquet'"
        )


def _members(path: Path, notes: list[str]) -> list[Source]:
    """The tables in a zip archive."""
    with zipfile.ZipFile(path) as archive:
        names = [each.filename for each in archive.infolist() if not each.is_dir()]
    names = [name for name in names if not any(part[:1] == "." or part == "__MACOSX" for part in name.split("/"))]
    tables = [(name, suffix) for name in names if (suffix := suffix_of(name)) is not None]
    if others := [name for name in names if suffix_of(name) is None]:
        notes.append(f"{path.name}: members that are neither CSV nor Parquet are ignored: {', '.join(others)}")
    if not tables:
        raise DataFileError(f"{path}: the archive has no member whose name ends in one of {', '.join(SUFFIXES)}")
    if len({name for name, _ in tables}) < len(tables):
        raise DataFileError(f"{path}: the archive has two members of one name; unpack it first")
    archive_stem = path.name[: -len(ZIP_SUFFIX)]
    found = []
    for name, suffix in tables:
        member = PurePosixPath(name)
        parts = (*_folders(path), archive_stem, *member.parts[:-1], _stem(member.name, suffix))
        found.append(Source(f"{path}, member {name}", path, parts, suffix, name))
    return found


def _folders(path: Path) -> tuple[str, ...]:
    return path.resolve().parts[1:-1]


def suffix_of(name: str) -> str | None:
    """The suffix of a file that holds a table, in lower case; None for other files."""
    lower = name.lower()
    return max((suffix for suffix in SUFFIXES if lower.endswith(suffix)), key=len, default=None)


def _stem(name: str, suffix: str) -> str:
    return name[: -len(suffix)] if suffix and len(name) > len(suffix) else name

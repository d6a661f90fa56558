"""The settings file: TOML, in UTF-8 with or without a byte order mark, and the line of each setting in it."""

import codecs
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pipeline.errors import SettingsError

# A settings file has a few kilobytes. The limit keeps a wrongly named data file or device out of memory.
LARGEST_FILE_BYTES: Final = 1_048_576
# A line is found by parsing the lines up to it, so the search takes the square of the file's lines.
_MOST_SEARCHED_LINES: Final = 1_000
_WIDE_MARKS: Final = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(frozen=True)
class SettingsFile:
    """The text of a settings file, and its content as nested dictionaries."""

    path: Path
    text: str
    content: dict[str, Any]

    def has(self, setting: tuple[str, ...]) -> bool:
        """Whether the file has the setting, the section, or an unknown key at this place."""
        return _has(self.content, setting)

    def line(self, setting: tuple[str, ...]) -> int | None:
        """The line on which the setting or its section begins; None if the file is too long to search."""
        lines = self.text.split("\n")
        if len(lines) > _MOST_SEARCHED_LINES:
            return None
        first = 0  # lines that belong to earlier settings
        for end in range(1, len(lines) + 1):
            try:
                content = tomllib.loads("\n".join(lines[:end]))
            except ValueError:  # for example within a list of several lines
                continue
            if _has(content, setting):
                return first + 1
            first = end
        return None


def read_settings_file(path: Path) -> SettingsFile:
    """The content of a settings file.

    Raises:
        SettingsError: the file cannot be read, or is not TOML; names the line where there is one.
    """
    try:
        with path.open("rb") as stream:
            raw = stream.read(LARGEST_FILE_BYTES + 1)
    except OSError as error:
        raise SettingsError(f"settings file {path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # a null character in the name
        raise SettingsError(f"settings file {str(path)!r} cannot be read: {error}") from error
    if len(raw) > LARGEST_FILE_BYTES:
        raise SettingsError(
            f"settings file {path} is larger than {LARGEST_FILE_BYTES:,} bytes; name a TOML file with settings"
        )
    text = _text(path, raw)
    try:
        return SettingsFile(path, text, tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(
            f"settings file {path} is not valid TOML: {error}. A setting is a line such as horizon_steps = 24; text is "
            'in double quotes, a list in brackets: features = ["temperature", "humidity"]'
        ) from error
    except (ValueError, RecursionError) as error:
        raise SettingsError(
            f"settings file {path} is not valid TOML: it has a number of thousands of digits, or hundreds of nested "
            "lists"
        ) from error


def _text(path: Path, raw: bytes) -> str:
    if raw.startswith(_WIDE_MARKS):
        raise SettingsError(
            f"settings file {path} is not valid TOML: it is encoded in UTF-16 or UTF-32; save it as UTF-8"
        )
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise SettingsError(
            f"settings file {path} is not valid TOML: line {line} has the byte 0x{raw[error.start]:02X}, which is not "
            "UTF-8; save the file as UTF-8"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _has(content: Any, setting: tuple[str, ...]) -> bool:
    for key in setting:
        if not isinstance(content, dict) or key not in content:
            return False
        content = content[key]
    return True


def file_on(folder: Path) -> Path | None:
    """The file that stands where a folder, or a folder above it, should be; None without a file."""
    for path in (folder, *folder.parents):
        try:
            if path.is_dir():
                return None
            if path.exists():
                return path
        except (OSError, ValueError):  # not readable: the command that writes there says so
            return None
    return None

"""Decodes the bytes of a text file, in the encoding that the user names or the bytes show."""

import codecs
import re
from typing import Final

from pipeline.errors import DataFileError
from pipeline.files.guesses import Guesses

_BOMS: Final = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# The first bytes of files of another format, and the remedy.
_OTHER_FORMATS: Final = (
    (b"\x1f\x8b", "it is compressed by gzip; let its name end in .gz"),
    (b"PK\x03\x04", "it is a zip archive or a spreadsheet; let its name end in .zip, or save the spreadsheet as CSV"),
    (b"PAR1", "it is a Parquet file; let its name end in .parquet"),
    (b"SQLite format 3", "it is a database; export the table as CSV"),
    (b"\xd0\xcf\x11\xe0", "it is a spreadsheet; save it as CSV"),
)
_MARKUP: Final = (
    (re.compile(rb"\s*(\{|\[\s*[{\[])"), "JSON"),
    (re.compile(rb"\s*<(!doctype|html|\?xml)", re.IGNORECASE), "HTML or XML"),
)
_BOM: Final = "\ufeff".encode()
_SAMPLE_BYTES: Final = 4_096
# Share of NUL bytes at even or odd places from which text is UTF-16 without a byte order mark.
_UTF16_SHARE: Final = 0.3
_FIRST_BYTES: Final = bytes(range(0xC0, 0x100))  # of the characters beyond ASCII in UTF-8
_WORD_LETTERS: Final = 30  # of a word that a note shows, on either side of its first letter beyond ASCII


def utf8_text(content: bytes, encoding: str | None, name: str, guesses: Guesses) -> bytes:
    """The text of a file as UTF-8 without a byte order mark; lines end in a newline character.

    Raises:
        DataFileError: the bytes are not text, or not text in this encoding; names the line if known.
    """
    for head, remedy in _OTHER_FORMATS:
        if content.startswith(head):
            raise DataFileError(f"{name} is not a text file: {remedy}")
    if encoding is None:
        content = _recognised(content, name, guesses)
    else:
        try:
            content = content.decode(encoding).removeprefix("\ufeff").encode()
        except LookupError as error:
            raise DataFileError(
                f"--encoding {encoding}: Python knows no text encoding of this name; usual names are utf-8, utf-16, "
                "cp1252 and latin-1"
            ) from error
        except UnicodeDecodeError as error:
            raise _undecodable(content, error, name) from error
        except ValueError as error:
            raise DataFileError(f"{name} cannot be decoded as {encoding}: {error}") from error
    if b"\r" in content:
        content = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if (place := content.find(b"\0")) >= 0:
        raise DataFileError(
            f"{name}, line {_line(content, place)}: a NUL byte, which text cannot hold; the file is damaged or binary, "
            "or has another encoding: --encoding"
        )
    if not content.strip():
        raise DataFileError(f"{name} is empty")
    for beginning, form in _MARKUP:
        if beginning.match(content):
            raise DataFileError(f"{name} looks like {form}, not CSV; convert it to CSV or Parquet")
    return content


def _recognised(content: bytes, name: str, guesses: Guesses) -> bytes:
    if content.startswith(_BOM):
        content = content[len(_BOM) :]
    else:
        encoding = next((found for bom, found in _BOMS if content.startswith(bom)), None) or _utf16_without_bom(content)
        if encoding is not None:
            guesses.add(f"the encoding is {encoding}", "--encoding", encoding)
            try:
                return content.decode(encoding).removeprefix("\ufeff").encode()
            except UnicodeError as error:
                raise DataFileError(f"{name} looks like {encoding}, but is damaged: {error}") from error
    try:
        content.decode()
    except UnicodeDecodeError as error:
        broken = content.decode(errors="replace").count("\ufffd")
        valid = content.decode(errors="ignore").encode()
        if len(valid) - len(valid.translate(None, _FIRST_BYTES)) > broken or b"\0" in content:
            raise _undecodable(content, error, name) from error
        encoding = "cp1252"
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            encoding = "latin-1"
            text = content.decode(encoding)
        guesses.add(
            f"the encoding is {encoding}, in which the file has {_first_foreign_word(text)!r}", "--encoding", encoding
        )
        return text.encode()
    return content


def _first_foreign_word(text: str) -> str:
    """The letters around the first letter beyond ASCII."""
    found = re.search(r"[^\x00-\x7f\s]", text)
    if found is None:
        return ""
    place = found.start()
    before = re.split(r"\s", text[max(0, place - _WORD_LETTERS) : place])[-1]
    return before + text[place : place + _WORD_LETTERS].split()[0]


def _utf16_without_bom(content: bytes) -> str | None:
    sample = content[:_SAMPLE_BYTES]
    for place, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
        half, other = sample[place::2], sample[1 - place :: 2]
        if half.count(0) > _UTF16_SHARE * len(half) and not other.count(0):
            return encoding
    return None


def _undecodable(content: bytes, error: UnicodeDecodeError, name: str) -> DataFileError:
    byte = content[error.start : error.start + 1].hex()
    return DataFileError(
        f"{name}, line {_line(content, error.start)}: the byte 0x{byte} is not {error.encoding}; name the encoding of "
        "the file with --encoding, such as cp1252"
    )


def _line(content: bytes, place: int) -> int:
    before = content[:place]
    return 1 + before.count(b"\n") + before.count(b"\r") - before.count(b"\r\n")

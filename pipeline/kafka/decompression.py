"""Decompresses record batches piece by piece, and stops at a size limit.

kafka-python decompresses a batch at once: 64 KB of zstd become 2 GB in memory, and the process ends. Every reader of
this project uses ``decompress`` instead. It takes at most the limit, one piece and the compressed bytes.
"""

import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Final

import lz4.frame
import snappy
import zstandard

# By the lowest bits of the attributes of a batch.
CODECS: Final = {0: "uncompressed", 1: "gzip", 2: "snappy", 3: "lz4", 4: "zstd"}

_PIECE_BYTES: Final = 1 << 20  # of decompressed data; most batches fit into one piece
_GZIP_MAGIC: Final = b"\x1f\x8b"
_GZIP_HEADER: Final = 31  # zlib's name of the gzip format with the largest window
_XERIAL: Final = b"\x82SNAPPY\x00"  # begins snappy data in blocks, as the usual producers write them
_XERIAL_HEADER_BYTES: Final = 16


class TooLarge(Exception):
    """Data that decompresses to more than the limit; ``size`` is the size so far, or the size that the data claims."""

    def __init__(self, size: int) -> None:
        super().__init__(f"more than {size:,} bytes")
        self.size = size


class Damaged(Exception):
    """Data that does not decompress."""


def decompress(codec: int, data: bytes, limit: int) -> bytes:
    """The decompressed data.

    Raises:
        TooLarge: the data decompresses to more than ``limit`` bytes.
        Damaged: the data is cut short or otherwise invalid, or the codec is unknown.
    """
    if codec not in _PIECES:
        raise Damaged(f"the batch names compression codec {codec}, which does not exist")
    pieces = []
    size = 0
    try:
        for piece in _PIECES[codec](data, limit):
            size += len(piece)
            if size > limit:
                raise TooLarge(size)
            pieces.append(piece)
    # cramjam, which snappy uses, raises an exception of its own without a public base class.
    except (TooLarge, Damaged, MemoryError):
        raise
    except Exception as error:
        raise Damaged(f"the {CODECS[codec]} data is damaged: {error}") from error
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _gzip(data: bytes, _: int) -> Iterator[bytes]:
    while data:  # a gzip stream may consist of several members
        unpacker = zlib.decompressobj(_GZIP_HEADER)
        while not unpacker.eof:
            piece = unpacker.decompress(data, _PIECE_BYTES)
            data = unpacker.unconsumed_tail
            if not piece and not data and not unpacker.eof:
                raise Damaged("the gzip data is cut short")
            yield piece
        # Java's reader, and so brokers, ignore bytes after the last member.
        data = unpacker.unused_data if unpacker.unused_data.startswith(_GZIP_MAGIC) else b""


def _lz4(data: bytes, _: int) -> Iterator[bytes]:
    unpacker = lz4.frame.LZ4FrameDecompressor()
    while not unpacker.eof:
        piece = unpacker.decompress(data, max_length=_PIECE_BYTES)
        data = b""
        if not piece and not unpacker.eof and unpacker.needs_input:
            raise Damaged("the lz4 data is cut short")
        yield piece


def _zstd(data: bytes, _: int) -> Iterator[bytes]:
    # The reader does not notice data that is cut short; the records in it are then incomplete.
    reader = zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True)
    while piece := reader.read(_PIECE_BYTES):
        yield piece


def _snappy(data: bytes, limit: int) -> Iterator[bytes]:
    """Each block states its decompressed size, so a block that is too large is refused before it takes memory."""
    if not data.startswith(_XERIAL):
        yield _snappy_block(data, limit)
        return
    position, left = _XERIAL_HEADER_BYTES, limit
    while position < len(data):
        (size,) = struct.unpack_from(">i", data, position)
        position += 4
        if not 0 <= size <= len(data) - position:
            raise Damaged("the snappy data is cut short")
        block = _snappy_block(data[position : position + size], left)
        position += size
        left -= len(block)
        yield block


def _snappy_block(block: bytes, limit: int) -> bytes:
    size = shift = 0
    for byte in block[:5]:
        size |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    if size > limit:
        raise TooLarge(size)
    return bytes(snappy.decompress(block))


_PIECES: Final[dict[int, Callable[[bytes, int], Iterator[bytes]]]] = {1: _gzip, 2: _snappy, 3: _lz4, 4: _zstd}

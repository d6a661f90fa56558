"""Record batches built byte by byte, and sent as they are: producers that are hostile, faulty or of another make.

``RawBatch`` has every field of Kafka's record batch format 2. ``send_batch`` sends its bytes in a Produce request of
its own, because a client library would build the batch itself.
"""

import socket
import struct
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import crc32c
import lz4.frame
import snappy
import zstandard

NONE, GZIP, SNAPPY, LZ4, ZSTD = range(5)
CODECS: Final = {"none": NONE, "gzip": GZIP, "snappy": SNAPPY, "lz4": LZ4, "zstd": ZSTD}

_PRODUCE: Final = 0
_PRODUCE_VERSION: Final = 7
_TIMEOUT_S: Final = 120.0  # a broker reads a large batch before it answers
_NO_LEADER_YET: Final = (3, 6)  # error codes of a topic that was just created
_MOMENT_MS: Final = 1_700_000_000_000


@dataclass(frozen=True)
class RawBatch:
    """A record batch; ``records`` is compressed already."""

    records: bytes
    count: int
    codec: int = NONE
    base_offset: int = 0
    last_offset_delta: int | None = None  # None: count - 1
    magic: int = 2
    crc: int | None = None  # None: the right one

    def encode(self) -> bytes:
        last = self.count - 1 if self.last_offset_delta is None else self.last_offset_delta
        checked = struct.pack(">hiqqqhii", self.codec, last, _MOMENT_MS, _MOMENT_MS, -1, -1, -1, self.count)
        checked += self.records
        crc = crc32c.crc32c(checked) if self.crc is None else self.crc
        body = struct.pack(">ibI", 0, self.magic, crc) + checked
        return struct.pack(">qi", self.base_offset, len(body)) + body


def varint(number: int) -> bytes:
    """A zigzag varint."""
    left = (number << 1) ^ (number >> 63)
    found = bytearray()
    while left >= 0x80:
        found.append(left & 0x7F | 0x80)
        left >>= 7
    found.append(left)
    return bytes(found)


def record(delta: int, key: bytes | None, value: bytes | None) -> bytes:
    """An encoded record without headers, ``delta`` offsets after the first of its batch."""
    content = b"\x00" + varint(0) + varint(delta)
    for part in (key, value):
        content += varint(-1) if part is None else varint(len(part)) + part
    content += varint(0)
    return varint(len(content)) + content


def compress(codec: int, parts: Iterable[bytes]) -> bytes:
    """The parts as one compressed stream, without holding all of them in memory; snappy in blocks as Java writes."""
    return b"".join(_COMPRESSORS[codec](parts))


def _gzip(parts: Iterable[bytes]) -> Iterator[bytes]:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    yield from map(packer.compress, parts)
    yield packer.flush()


def _snappy(parts: Iterable[bytes]) -> Iterator[bytes]:
    yield b"\x82SNAPPY\x00" + struct.pack(">ii", 1, 1)
    for part in parts:
        block = snappy.compress(part)
        yield struct.pack(">i", len(block)) + block


def _lz4(parts: Iterable[bytes]) -> Iterator[bytes]:
    with lz4.frame.LZ4FrameCompressor(block_linked=False, block_size=lz4.frame.BLOCKSIZE_MAX4MB) as packer:
        yield packer.begin()
        yield from map(packer.compress, parts)
        yield packer.flush()


def _zstd(parts: Iterable[bytes]) -> Iterator[bytes]:
    packer = zstandard.ZstdCompressor(level=9).compressobj()
    yield from map(packer.compress, parts)
    yield packer.flush()


_COMPRESSORS: Final[dict[int, Callable[[Iterable[bytes]], Iterator[bytes]]]] = {
    NONE: lambda parts: iter(parts),
    GZIP: _gzip,
    SNAPPY: _snappy,
    LZ4: _lz4,
    ZSTD: _zstd,
}


def batch_of(codec: int, messages: Sequence[tuple[bytes | None, bytes | None]]) -> RawBatch:
    """A valid batch of keys and values."""
    encoded = (record(delta, key, value) for delta, (key, value) in enumerate(messages))
    return RawBatch(compress(codec, encoded), len(messages), codec)


def bomb(codec: int, unpacked_bytes: int, key: bytes, value: bytes, record_bytes: int = 1_000_000) -> RawBatch:
    """A valid batch of readings that are padded with spaces until the batch unpacks to some ``unpacked_bytes``."""
    count = max(1, unpacked_bytes // record_bytes)
    padded = value + b" " * (record_bytes - len(value))
    return RawBatch(compress(codec, (record(delta, key, padded) for delta in range(count))), count, codec)


def send_batch(address: str, topic: str, partition: int, batch: RawBatch) -> tuple[int, int]:
    """The broker's error code (0: appended) and the offset that it gave to the first record."""
    deadline = time.monotonic() + _TIMEOUT_S
    while True:
        found = _send_once(address, topic, partition, batch)
        if found[0] not in _NO_LEADER_YET or time.monotonic() > deadline:
            return found


def _send_once(address: str, topic: str, partition: int, batch: RawBatch) -> tuple[int, int]:
    host, _, port = address.rpartition(":")
    records = batch.encode()
    body = struct.pack(">hhi", -1, -1, round(_TIMEOUT_S * 1_000))  # no transactional id, acks=all
    body += struct.pack(">i", 1) + _text(topic) + struct.pack(">iii", 1, partition, len(records)) + records
    request = struct.pack(">hhi", _PRODUCE, _PRODUCE_VERSION, 1) + _text("raw") + body
    with socket.create_connection((host, int(port)), timeout=_TIMEOUT_S) as connection:
        connection.sendall(struct.pack(">i", len(request)) + request)
        (size,) = struct.unpack(">i", _receive(connection, 4))
        reply = _receive(connection, size)
    error, base_offset = struct.unpack_from(">hq", reply, 4 + 4 + 2 + len(topic.encode()) + 4 + 4)
    return error, base_offset


def _text(text: str) -> bytes:
    return struct.pack(">h", len(text.encode())) + text.encode()


def _receive(connection: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        part = connection.recv(size - len(found))
        if not part:
            raise ConnectionError("the broker closed the connection")
        found += part
    return found

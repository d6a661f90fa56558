"""Many byte strings in one buffer: the keys, values and headers of a micro-batch, without a Python object for each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class ByteStrings(Sequence[bytes]):
    """n byte strings; string i is ``data[starts[i]:ends[i]]``. Strings may overlap, and follow in any order.

    It is a sequence of ``bytes`` for code that needs few of them. Compiled code reads the arrays.
    """

    data: NDArray[np.uint8]  # writable, because numba compiles a function once more for an array that is not
    starts: NDArray[np.int64]  # (n,)
    ends: NDArray[np.int64]  # (n,)

    @classmethod
    def of(cls, strings: Sequence[bytes]) -> "ByteStrings":
        """The strings, copied into one buffer."""
        return cls.joined(bytearray().join(strings), np.fromiter(map(len, strings), np.int64, len(strings)))

    @classmethod
    def joined(cls, data: bytearray | NDArray[np.uint8], sizes: NDArray[np.int64]) -> "ByteStrings":
        """The strings with these sizes, which follow each other in ``data``."""
        ends = sizes.cumsum()
        return cls(np.frombuffer(data, np.uint8), ends - sizes, ends)

    @classmethod
    def repeated(cls, string: bytes, count: int) -> "ByteStrings":
        """The same string ``count`` times, stored once."""
        return cls(
            np.frombuffer(bytearray(string), np.uint8), np.zeros(count, np.int64), np.full(count, len(string), np.int64)
        )

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(n,) the length of each string."""
        return self.ends - self.starts

    def followed_by(self, others: "ByteStrings") -> "ByteStrings":
        """These strings, then ``others``, in a new buffer."""
        shift = len(self.data)
        return ByteStrings(
            np.concatenate([self.data, others.data]),
            np.concatenate([self.starts, others.starts + shift]),
            np.concatenate([self.ends, others.ends + shift]),
        )

    def take(self, places: NDArray[np.intp]) -> "ByteStrings":
        """The strings at ``places``, in that order; the buffer is shared."""
        return ByteStrings(self.data, self.starts[places], self.ends[places])

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, index: int) -> bytes: ...

    @overload
    def __getitem__(self, index: slice) -> "ByteStrings": ...

    def __getitem__(self, index: int | slice) -> "bytes | ByteStrings":
        if isinstance(index, slice):
            if index == slice(0, len(self.starts)):
                return self
            starts, ends = self.starts[index], self.ends[index]
            return ByteStrings(self.data, np.ascontiguousarray(starts), np.ascontiguousarray(ends))
        return self.data[self.starts[index] : self.ends[index]].tobytes()

    def __iter__(self) -> Iterator[bytes]:
        data = self.data.data
        return (bytes(data[start:end]) for start, end in zip(self.starts.tolist(), self.ends.tolist(), strict=True))

    def __eq__(self, other: object) -> bool:
        """Whether another sequence has the same strings in the same order."""
        return isinstance(other, Sequence) and len(self) == len(other) and list(self) == list(other)

"""The rule of ``acceptance.classify`` as a compiled loop over the readings of the stream.

The compiled function and its constants are in this file: numba compiles a cached function again if its own file
changes, and would miss a change in another file.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from .kernel import compiled

# Repeated from ``acceptance``; a test compares them.
ACCEPTED: Final = 0
DUPLICATE: Final = 1
LATE: Final = 2


@compiled
def classify(
    codes: NDArray[Any], timestamp_us: NDArray[Any], last_us: NDArray[Any], verdicts: NDArray[Any]
) -> tuple[int, int]:
    """The numbers of duplicates and of late readings among n readings. It fills ``verdicts`` (n,) int8.

    Args:
        codes: (n,) the sensor of each reading, in the order of offsets; timestamp_us: (n,).
        last_us: (S,) as in ``acceptance.classify``; set to the timestamps that the sensors accept last.
    """
    duplicates = late = 0
    for i in range(len(codes)):
        before_us = last_us[codes[i]]
        if timestamp_us[i] > before_us:
            last_us[codes[i]] = timestamp_us[i]
            verdicts[i] = ACCEPTED
        elif timestamp_us[i] == before_us:
            verdicts[i] = DUPLICATE
            duplicates += 1
        else:
            verdicts[i] = LATE
            late += 1
    return duplicates, late


def prepare() -> None:
    """Compile the loop, or load it from numba's cache."""
    none = np.empty(0, np.int64)
    classify(none, none, none, np.empty(0, np.int8))

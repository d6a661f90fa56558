"""The limit of sensors per partition: readings of further sensors are dead letters.

A sensor is *known* in a partition once one of its readings there is accepted; known sensors stay known. While a
partition has as many known sensors as ``forecaster.max_sensors_per_partition``, readings of other sensors are rejected.
So each rejection is a function of the partition's log: of the readings before it and of the limit.
"""

import re
from typing import Final

TOO_MANY_SENSORS: Final = "too-many-sensors"

_LIMIT: Final = re.compile(r"limit (\d+) ")


def limit_detail(limit: int, partition: int) -> str:
    """The detail of a dead letter with the reason ``TOO_MANY_SENSORS``."""
    return (
        f"too many sensors: limit {limit} of partition {partition} is reached, and this sensor is a new one. If it is "
        "a real sensor, raise forecaster.max_sensors_per_partition, restart the forecasters, and republish this letter"
    )


def limit_in(detail: str) -> int | None:
    """The limit in a ``limit_detail``; None for any other text."""
    found = _LIMIT.search(detail)
    return int(found[1]) if found else None

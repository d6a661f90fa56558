"""``python -m tests.chaos``: inject faults into forecasters for twenty minutes, then recompute every forecast.

The exit code is 0 if no forecast is missing, duplicated, out of order or different, and every planned fault happened.
"""

import argparse
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from tests.chaos.guards import GUARDS
from tests.chaos.harness import Harness
from tests.chaos.plan import Size
from tests.chaos.report import as_json, as_markdown, keep, shortfalls


def main() -> None:
    full = Size()
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--readings", type=int, default=full.readings, help="publish at least N readings", metavar="N")
    parser.add_argument("--sensors", type=int, default=full.sensors)
    parser.add_argument("--partitions", type=int, default=full.partitions)
    parser.add_argument("--kills", type=int, default=full.kills)
    parser.add_argument("--stalls", type=int, default=full.stalls)
    parser.add_argument("--broker-kills", type=int, default=full.broker_kills)
    parser.add_argument("--broker-stalls", type=int, default=full.broker_stalls)
    parser.add_argument("--promotions", type=int, default=full.promotions)
    parser.add_argument("--without", action="append", default=[], choices=sorted(GUARDS), help="remove a guard")
    parser.add_argument("--report", type=Path, metavar="FOLDER", help="add the run to its report.json and REPORT.md")
    parser.add_argument("--keep", action="store_true", help="keep logs and topics even if the run passes")
    given = parser.parse_args()
    size = replace(
        full,
        **{
            name: getattr(given, name)
            for name in (
                "readings",
                "sensors",
                "partitions",
                "kills",
                "stalls",
                "broker_kills",
                "broker_stalls",
                "promotions",
            )
        },
    )
    home = Path(tempfile.mkdtemp(prefix="streamgru-chaos-"))
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:7.1f} s  {text}", flush=True)

    result = None
    try:
        record = Harness(home, size, given.seed, without=tuple(given.without), say=say).run()
        result = as_json(record)
    finally:
        if given.keep or result is None or not result["passed"]:
            print(f"logs and topics are in {home}")
        else:
            shutil.rmtree(home, ignore_errors=True)
    if given.report is not None:
        keep(result, given.report)
    print(as_markdown([result]))
    for shortfall in shortfalls(record):
        print(f"failed: {shortfall}")
    sys.exit(0 if result["passed"] else 1)


if __name__ == "__main__":
    main()

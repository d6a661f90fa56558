"""``python -m tests.fuzz --seconds 180``: fuzz every target for 180 s. The exit code is 1 if a case failed."""

import argparse
import logging
import sys

from tests.fuzz.run import fuzz
from tests.fuzz.targets import TARGETS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--seconds", type=float, default=60.0, help="seconds per target (default: 60)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--target", choices=TARGETS, action="append", help="fuzz only this target; may be repeated")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)  # the product logs each broken record
    total = 0
    for name in options.target or TARGETS:
        cases, findings = fuzz(TARGETS[name], options.seed, options.seconds)
        print(
            f"{name}: {cases:,} cases in {options.seconds:g} s, seed {options.seed}: {len(findings)} findings",
            flush=True,
        )
        for finding in findings:
            print(f"case {finding.case}:\n{finding.error}")
        total += len(findings)
    return 1 if total else 0


if __name__ == "__main__":
    sys.exit(main())

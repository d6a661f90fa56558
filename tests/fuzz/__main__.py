"""``python -m tests.fuzz --seconds 180``: every target for so long; exits with 1 where anything was found."""

import argparse
import logging
import sys

from tests.fuzz.run import fuzz
from tests.fuzz.targets import TARGETS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--target", choices=TARGETS, action="append", help="only this; may be repeated")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)  # each broken record is logged, as it should be
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

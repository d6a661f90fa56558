"""An earlier commit of this project, as a side beside this tree."""

from pathlib import Path
from typing import Final

from tests.compatibility.sides import Failed, check_out

BASE: Final = "4baa7fc"  # the last commit that made a Python object of each record
ROOT: Final = Path(__file__).parents[2]


def earlier_tree() -> Path | None:
    """The files of ``BASE``; None if the repository does not have that commit."""
    try:
        return check_out(BASE, ROOT / ".streamgru" / "benchmarks")[1]
    except Failed:
        return None

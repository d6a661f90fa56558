"""Names for the sensors of files that have no column of sensor ids: unique, and as short as possible."""

from collections.abc import Sequence

from pipeline.errors import DataFileError
from pipeline.files.sources import Source


def sensor_names(sources: Sequence[Source], notes: list[str]) -> list[str]:
    """The sensor of each file: its name without suffix, with as many folders before it as are needed to differ.

    The files of one dataset in a folder have one name.

    Raises:
        DataFileError: the name of a file is not Unicode text.
    """
    by_stem: dict[str, list[tuple[str, ...]]] = {}
    suffixes: dict[tuple[str, ...], set[str]] = {}
    for source in sources:
        try:
            source.parts[-1].encode()
        except UnicodeEncodeError as error:
            raise DataFileError(
                f"the name of the file {source.name!r} is not UTF-8 and cannot be a sensor id; rename the file"
            ) from error
        places = by_stem.setdefault(source.parts[-1], [])
        if source.parts not in places:
            places.append(source.parts)
        suffixes.setdefault(source.parts, set()).add(source.suffix)
    lengths = {stem: _least_length(places) for stem, places in by_stem.items()}
    names = []
    for source in sources:
        name = "/".join(source.parts[-lengths[source.parts[-1]] :])
        # Files such as a.csv and a.csv.gz in one folder.
        names.append(name + source.suffix if len(suffixes[source.parts]) > 1 else name)
    for stem, places in by_stem.items():
        found = list(dict.fromkeys(n for n, source in zip(names, sources, strict=True) if source.parts[-1] == stem))
        if len(found) > 1:
            some = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
            notes.append(f"{max(len(places), len(found))} files are called {stem}; their sensors are {some}")
    return names


def _least_length(places: Sequence[tuple[str, ...]]) -> int:
    """The least number of parts at the end of each path that tells all paths apart."""
    longest = max(map(len, places))
    return next(n for n in range(1, longest + 1) if len({parts[-n:] for parts in places}) == len(places))

"""Sensor ids as codes: each distinct id once, in ``names``, and an index into these for each reading."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.intp]  # (n,) indices in a list of distinct names


def distinct(sensors: Sequence[str]) -> tuple[list[str], Codes]:
    """The distinct sensors by first appearance, and the code of each one in ``sensors``."""
    code_of: dict[str, int] = {}
    codes = np.fromiter((code_of.setdefault(sensor, len(code_of)) for sensor in sensors), np.intp, len(sensors))
    return list(code_of), codes


def join_names(parts: Sequence[tuple[list[str], Codes]]) -> tuple[list[str], Codes]:
    """The distinct names of all parts, and the codes of the parts one after another."""
    code_of: dict[str, int] = {}
    joined = []
    for names, codes in parts:
        of_part = np.fromiter((code_of.setdefault(name, len(code_of)) for name in names), np.intp, len(names))
        joined.append(of_part[codes])
    return list(code_of), np.concatenate([np.empty(0, np.intp), *joined])


def only_used(names: list[str], codes: Codes) -> tuple[list[str], Codes]:
    """Only the names with a code, in the same order."""
    is_used = np.zeros(len(names), np.bool_)
    is_used[codes] = True
    if is_used.all():
        return names, codes
    renumbered = np.cumsum(is_used) - 1
    return [names[code] for code in np.flatnonzero(is_used).tolist()], renumbered[codes]


def by_appearance(names: list[str], codes: Codes) -> tuple[list[str], Codes]:
    """Only the names with a code, in the order of their first codes."""
    if not len(codes):
        return [], codes
    used, firsts = np.unique(codes, return_index=True)
    order = used[np.argsort(firsts)]
    renumbered = np.empty(len(names), np.intp)
    renumbered[order] = np.arange(len(order))
    return [names[code] for code in order.tolist()], renumbered[codes]

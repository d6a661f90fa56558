"""Counts with their noun, in the singular or plural."""


def plural(noun: str, count: int) -> str:
    """The noun as it follows the count: ``sensor`` after 1, ``sensors`` after other counts."""
    return noun if count == 1 else f"{noun}s"


def counted(count: int, noun: str) -> str:
    """The count with its noun: ``1 sensor``, ``1,200 sensors``."""
    return f"{count:,} {plural(noun, count)}"

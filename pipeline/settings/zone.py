"""Time zones in the settings."""

from typing import Annotated
from zoneinfo import ZoneInfo

from pydantic import AfterValidator


def check_zone(name: str | None) -> str | None:
    """The name of a time zone.

    Raises:
        ValueError: there is no such zone.
    """
    if name is not None:
        try:
            ZoneInfo(name)
        except (OSError, ValueError) as error:  # ZoneInfoNotFoundError is a KeyError
            raise ValueError(f"{name!r} is not a time zone; use a name such as Europe/Berlin") from error
        except KeyError:
            raise ValueError(f"{name!r} is not a time zone; use a name such as Europe/Berlin") from None
    return name


ZoneName = Annotated[str | None, AfterValidator(check_zone)]

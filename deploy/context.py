"""The object that ``@click.pass_obj`` gives to every command."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.settings import Settings  # an import at run time would double the time of `--help`


@dataclass(frozen=True)
class Context:
    """The options given before the command, and the settings, read on first use."""

    load: "Callable[[], Settings]"
    verbose: bool = False

    @cached_property
    def settings(self) -> "Settings":
        """The settings of this command.

        Raises:
            SettingsError: the file or a variable is invalid.
        """
        return self.load()

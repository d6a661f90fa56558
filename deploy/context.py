"""What every command is handed: ``@click.pass_obj`` gives it a ``Context``."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.settings import Settings  # half of what `--help` would otherwise wait for


@dataclass(frozen=True)
class Context:
    """The options given before the command, and the settings they lead to, read on first use."""

    load: "Callable[[], Settings]"
    verbose: bool = False

    @cached_property
    def settings(self) -> "Settings":
        """The settings that hold for this command.

        Raises:
            SettingsError: the file or a variable is not valid.
        """
        return self.load()

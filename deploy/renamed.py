"""Old names of commands: they still work, are not in the help, and print the new name on stderr."""

from collections.abc import Mapping
from typing import Any

import click

from deploy.terminal_text import say


class RenamingGroup(click.Group):
    """A group whose commands also work under an old name.

    Args:
        renamed: old name -> present name of a command.
    """

    def __init__(self, *arguments: Any, renamed: Mapping[str, str] | None = None, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._renamed = renamed or {}

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the first argument names, by its present or old name."""
        old, *rest = args
        new = self._renamed.get(old)
        if new is None:
            return super().resolve_command(ctx, args)
        say(f"`{ctx.command_path} {old}` is now `{ctx.command_path} {new}`", err=True)
        return super().resolve_command(ctx, [new, *rest])

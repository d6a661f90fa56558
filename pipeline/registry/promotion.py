"""Promotion: an alias moves to another version if forecasters can use that version."""

from dataclasses import dataclass

from pipeline.errors import ModelUnusable
from pipeline.registry.promotion_log import Mover, record_move, record_refusal, this_user
from pipeline.registry.versions import CHAMPION, Registry
from pipeline.settings import Settings


@dataclass(frozen=True)
class Promotion:
    """An alias and its version; ``previous`` is the version that it named before, if any."""

    version: int
    alias: str
    previous: int | None

    @property
    def changed(self) -> bool:
        """Whether the alias has moved."""
        return self.version != self.previous

    @property
    def undo(self) -> str | None:
        """The command that gives the alias back to its previous version; None without a previous version."""
        if not self.changed or self.previous is None:
            return None
        option = "" if self.alias == CHAMPION else f" --alias {self.alias}"
        return f"streamgru promote {self.previous}{option}"


def promote(settings: Settings, version: int, alias: str = CHAMPION, mover: Mover | None = None) -> Promotion:
    """Move an alias to a version that exists, loads and fits the settings; running forecasters follow ``champion``.

    The tags of both versions name the mover and the reason, also after a refusal. The default mover is the user of this
    process.

    Raises:
        ModelMissing: the version does not exist.
        ModelUnusable: its artefact is damaged, or does not fit the settings; the alias does not move.
        RegistryUnreachable: MLflow does not answer.
    """
    registry = Registry(settings)
    registry.version(version)  # raises if only a local copy of it exists
    mover = mover or Mover(this_user())
    try:
        registry.load(version, settings.home / "models")
    except ModelUnusable as error:
        record_refusal(registry, alias, version, error, mover)
        raise
    previous = registry.resolve(alias)
    if previous != version:
        registry.set_alias(alias, version)
        record_move(registry, alias, version, previous, mover)
    return Promotion(version, alias, previous)

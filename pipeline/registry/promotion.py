"""Promotion: letting an alias name another version, after a look at whether the forecasters could use it."""

from dataclasses import dataclass

from pipeline.registry.versions import CHAMPION, Registry
from pipeline.settings import Settings


@dataclass(frozen=True)
class Promotion:
    """An alias and the version it names now; ``previous`` is the one it named before, if any."""

    version: int
    alias: str
    previous: int | None

    @property
    def changed(self) -> bool:
        """Whether the alias named another version before, or none."""
        return self.version != self.previous


def promote(settings: Settings, version: int, alias: str = CHAMPION) -> Promotion:
    """Move an alias to a version that exists, loads and fits the settings; running forecasters follow ``champion``.

    Raises:
        ModelMissing: there is no such version.
        ModelUnusable: its artefact is damaged, or was made for other settings; the alias stays where it is.
        RegistryUnreachable: MLflow does not answer.
    """
    registry = Registry(settings)
    registry.version(version)  # a copy from an earlier download does not make it exist
    registry.load(version, settings.home / "models")
    previous = registry.resolve(alias)
    if previous != version:
        registry.set_alias(alias, version)
    return Promotion(version, alias, previous)

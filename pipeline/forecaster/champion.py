"""Follows the champion: a thread looks up the alias and loads what it names, so that the stream never waits for it.

Whatever goes wrong there (MLflow away, alias deleted, an artefact that is damaged or does not fit) is said once per
cause and leaves the forecaster with the model it has.
"""

import json
import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from model.artefact import ArtefactError, load_artefact
from model.forecaster import Forecaster
from pipeline.errors import ModelMissing, ModelUnusable, RegistryError
from pipeline.registry.versions import CHAMPION, Registry, settings_differences
from pipeline.settings import Settings

logger = logging.getLogger("streamgru.champion")

# A forecaster that has a model to serve with looks up the alias when its states are restored, or after so long.
LONGEST_RESTORE_S: Final = 15.0
FIRST_WAIT_S: Final = 0.2  # how long a forecaster without a model waits before it looks whether it must stop
_POINTER: Final = "champion.json"


@dataclass(frozen=True)
class Candidate:
    """A model version, loaded and found to fit the settings."""

    version: int
    forecaster: Forecaster


class ChampionSource(Protocol):
    """Where the champion comes from. Called by one thread, except ``last_served``, which comes first."""

    def resolve(self) -> int | None:
        """The version that is champion now; none where there is none. Raises ``RegistryError``."""

    def load(self, version: int) -> Forecaster:
        """The model of a version. Raises ``RegistryError``; what fits no settings is ``ModelUnusable``."""

    def last_served(self) -> Candidate | None:
        """The champion that served last, from what is at hand without asking anybody."""

    def save_last_served(self, version: int) -> None:
        """Note which version serves from now on."""

    def clear_last_served(self) -> None:
        """Take the note back: the next start asks for the champion before it serves."""


class RegistryChampion:
    """The champion of the model registry, with copies of what it served under HOME/models."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._registry = Registry(settings)
        self._folder = settings.home / "models"
        self._pointer = self._folder / settings.model_name / _POINTER
        self._copies: dict[int, Path] = {}

    def resolve(self) -> int | None:
        """The version that the alias names now.

        Raises:
            RegistryError: also where that is another model than the one loaded under its number.
        """
        found = self._registry.alias_target(CHAMPION)
        if found is None:
            return None
        copy = self._copies.get(found.version)
        if copy is not None and copy.name != found.copy:
            raise RegistryError(
                f"version {found.version} of {self._settings.model_name} in the registry is another model than the one "
                "loaded under that number, and states do not tell the two apart: the model was deleted and made anew, "
                "or MLflow was set up anew. Retrain until the number is a new one, or set another model_name"
            )
        return found.version

    def load(self, version: int) -> Forecaster:
        """The model of a version, from the copy where it was fetched before."""
        copy = self._registry.load_copy(version, self._folder)
        self._copies[version] = copy.folder
        return copy.forecaster

    def last_served(self) -> Candidate | None:
        """The version of the note, if its copy is still there, whole, and fits the settings."""
        try:
            note = json.loads(self._pointer.read_text(encoding="utf-8"))
            version, copy = int(note["version"]), self._pointer.parent / str(note["copy"])
            forecaster = load_artefact(copy)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, ArtefactError) as error:
            logger.warning("the model noted in %s cannot be used, so the registry is asked: %s", self._pointer, error)
            return None
        differences = settings_differences(forecaster.config, self._settings)
        if differences:
            logger.warning(
                "version %d, which served last, does not fit the settings any more: %s", version, "; ".join(differences)
            )
            return None
        self._copies[version] = copy
        return Candidate(version, forecaster)

    def save_last_served(self, version: int) -> None:
        """Write the note, whole or not at all: a restart serves this version before it has asked MLflow."""
        copy = self._copies.get(version)
        if copy is None:
            return
        try:
            self._pointer.parent.mkdir(parents=True, exist_ok=True)
            partial = self._pointer.with_suffix(f".{os.getpid()}")
            partial.write_text(json.dumps({"version": version, "copy": copy.name}), encoding="utf-8")
            partial.replace(self._pointer)
        except OSError as error:
            logger.warning("cannot note in %s that version %d serves: %s", self._pointer, version, error)

    def clear_last_served(self) -> None:
        """Remove the note; one that cannot be removed stays."""
        with suppress(OSError):
            self._pointer.unlink()


class ChampionWatcher:
    """A thread that keeps ``candidate`` at the champion, as far as there is one that can serve.

    Args:
        poll_s: seconds between two look-ups.
    """

    def __init__(self, source: ChampionSource, poll_s: float) -> None:
        self._source = source
        self._poll_s = poll_s
        self._candidate: Candidate | None = None
        self._unusable: int | None = None  # a version that cannot serve is not loaded again until the alias has moved
        self._last_trouble: str | None = None
        self._failure: BaseException | None = None
        self._changed = threading.Event()
        self._closed = threading.Event()
        self._may_poll = threading.Event()
        self._thread = threading.Thread(target=self._run, name="champion", daemon=True)

    def start(self, serving: Candidate | None = None) -> None:
        """Begin to look. Where ``serving`` serves already, ``allow_polls`` is waited for first, though not for long."""
        self._candidate = serving
        if serving is None:
            self._may_poll.set()
        self._thread.start()

    def first(self, is_stopping: Callable[[], bool]) -> Candidate | None:
        """Begin to look; the model to serve first, None if the forecaster must stop before there is one."""
        champion = self._source.last_served()
        self.start(champion)
        if champion is not None:
            logger.info("beginning with version %d, which served last; asking the registry", champion.version)
        while champion is None and not is_stopping():
            champion = self.wait(FIRST_WAIT_S)
        return champion

    def allow_polls(self) -> None:
        """The states are restored: importing MLflow's client, which takes a core for seconds, delays them no more."""
        self._may_poll.set()

    def close(self) -> None:
        """Stop looking; a look-up under way is left to end by itself."""
        self._closed.set()
        self._may_poll.set()

    def candidate(self) -> Candidate | None:
        """What is to serve; none as long as no version was found that can."""
        if self._failure is not None:
            raise self._failure
        return self._candidate

    def wait(self, timeout_s: float) -> Candidate | None:
        """``candidate``, waiting for the first one up to ``timeout_s``."""
        self._changed.wait(timeout_s)
        return self.candidate()

    def _run(self) -> None:
        try:
            self._may_poll.wait(LONGEST_RESTORE_S)
            while not self._closed.is_set():
                self._poll()
                self._closed.wait(self._poll_s)
        except BaseException as error:
            self._failure = error  # raised again where the candidate is asked for
            self._changed.set()
            raise

    def _poll(self) -> None:
        staying = f"version {self._candidate.version} goes on serving" if self._candidate else "waiting for one"
        try:
            version = self._source.resolve()
            if version is None:
                self._log_once(
                    "there is no champion: train one with `streamgru retrain`, or `streamgru promote`", staying
                )
                return
            if self._candidate is not None and version == self._candidate.version:
                self._unusable = None
                self._log_once(None)
                return
            if version == self._unusable:
                return
            self._load(version, staying)
        except RegistryError as error:
            self._log_once(str(error), staying)

    def _load(self, version: int, staying: str) -> None:
        try:
            forecaster = self._source.load(version)
        except (ModelUnusable, ModelMissing) as error:
            self._unusable = version
            self._log_once(f"version {version} is champion and cannot serve: {error}", staying)
            return
        self._unusable = None
        self._log_once(None)
        self._candidate = Candidate(version, forecaster)
        self._changed.set()

    def _log_once(self, trouble: str | None, staying: str = "") -> None:
        """Say each trouble once, not at every look-up, and when it is over."""
        if trouble != self._last_trouble:
            if trouble is not None:
                logger.error("%s; %s", trouble, staying)
            elif self._last_trouble is not None:
                logger.warning("the champion can be followed again")
        self._last_trouble = trouble

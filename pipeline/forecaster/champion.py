"""Follows the champion: a thread polls its alias and loads the model version that it names, while the loop runs.

If that fails (MLflow unreachable, alias deleted, artefact damaged or made for other settings), the error is logged once
and the forecaster keeps the model that it has.
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
from pipeline.remarks.attributes import attributes_difference
from pipeline.remarks.bounds import bounds_difference
from pipeline.remarks.calendar import calendar_difference
from pipeline.settings import Settings

logger = logging.getLogger("streamgru.champion")

# seconds; a forecaster that starts with a model polls the alias once its states are restored, or after this time
LONGEST_RESTORE_S: Final = 15.0
FIRST_WAIT_S: Final = 0.2  # seconds between checks for a stop while a forecaster waits for its first model
_POINTER: Final = "champion.json"


@dataclass(frozen=True)
class Candidate:
    """A loaded model version that fits the settings."""

    version: int
    forecaster: Forecaster


class ChampionSource(Protocol):
    """A source of champions. The watcher's thread calls ``resolve`` and ``load``; the loop calls the other methods."""

    def resolve(self) -> int | None:
        """The version that is champion now; None without a champion. Raises ``RegistryError``."""

    def load(self, version: int) -> Forecaster:
        """The model of a version. Raises ``RegistryError``, or ``ModelUnusable`` if it does not fit the settings."""

    def last_served(self) -> Candidate | None:
        """The version that served last, from a local copy."""

    def save_last_served(self, version: int) -> None:
        """Record the version that serves from now on."""

    def clear_last_served(self) -> None:
        """Delete the record: the next start waits for the champion before it serves."""


class RegistryChampion:
    """The champion of the model registry, with local copies of its models in HOME/models."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._registry = Registry(settings)
        self._folder = settings.home / "models"
        self._pointer = self._folder / settings.model_name / _POINTER
        self._copies: dict[int, Path] = {}

    def resolve(self) -> int | None:
        """The version that the alias names now; None without the alias.

        Raises:
            RegistryError: MLflow failed, or the version's model is not the one loaded earlier under this number.
        """
        found = self._registry.alias_target(CHAMPION)
        if found is None:
            return None
        copy = self._copies.get(found.version)
        if copy is not None and copy.name != found.copy:
            raise RegistryError(
                f"version {found.version} of {self._settings.model_name} in the registry is not the model that was "
                "loaded under this number: the registered model was deleted and recreated, or MLflow was set up again. "
                "State records name only the number. Retrain until the number is a new one, or set another model_name"
            )
        return found.version

    def load(self, version: int) -> Forecaster:
        """The model of a version, from the local copy if there is one."""
        copy = self._registry.load_copy(version, self._folder)
        self._copies[version] = copy.folder
        self._compare_with_settings(version, copy.forecaster)
        return copy.forecaster

    def last_served(self) -> Candidate | None:
        """The recorded version, if its local copy is intact and fits the settings."""
        try:
            note = json.loads(self._pointer.read_text(encoding="utf-8"))
            version, copy = int(note["version"]), self._pointer.parent / str(note["copy"])
            forecaster = load_artefact(copy)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, ArtefactError) as error:
            logger.warning("the model that %s names cannot be used; waiting for MLflow: %s", self._pointer, error)
            return None
        differences = settings_differences(forecaster.config, self._settings)
        if differences:
            logger.warning(
                "version %d, which served last, no longer fits the settings: %s", version, "; ".join(differences)
            )
            return None
        self._copies[version] = copy
        self._compare_with_settings(version, forecaster)
        return Candidate(version, forecaster)

    def _compare_with_settings(self, version: int, forecaster: Forecaster) -> None:
        """Log differences to the settings: the bounds, days and attributes in force are the model's."""
        for compare in (bounds_difference, calendar_difference, attributes_difference):
            if difference := compare(forecaster.config, self._settings):
                logger.warning("version %d %s", version, difference)

    def save_last_served(self, version: int) -> None:
        """Record the version in a file, atomically: a restart serves it before MLflow has answered."""
        copy = self._copies.get(version)
        if copy is None:
            return
        try:
            self._pointer.parent.mkdir(parents=True, exist_ok=True)
            partial = self._pointer.with_suffix(f".{os.getpid()}")
            partial.write_text(json.dumps({"version": version, "copy": copy.name}), encoding="utf-8")
            partial.replace(self._pointer)
        except OSError as error:
            logger.warning("cannot record in %s that version %d serves: %s", self._pointer, version, error)

    def clear_last_served(self) -> None:
        """Delete the record; an error is ignored."""
        with suppress(OSError):
            self._pointer.unlink()


class ChampionWatcher:
    """A thread that keeps ``candidate`` at the newest champion that can serve.

    Args:
        poll_s: seconds between two polls of the alias.
    """

    def __init__(self, source: ChampionSource, poll_s: float) -> None:
        self._source = source
        self._poll_s = poll_s
        self._candidate: Candidate | None = None
        self._unusable: int | None = None  # a version that cannot serve; not loaded again until the alias moves
        self._last_trouble: str | None = None
        self._failure: BaseException | None = None
        self._changed = threading.Event()
        self._closed = threading.Event()
        self._may_poll = threading.Event()
        self._thread = threading.Thread(target=self._run, name="champion", daemon=True)

    def start(self, serving: Candidate | None = None) -> None:
        """Start the polls: at once, or if a model serves already, after ``allow_polls`` or ``LONGEST_RESTORE_S``."""
        self._candidate = serving
        if serving is None:
            self._may_poll.set()
        self._thread.start()

    def first(self, is_stopping: Callable[[], bool]) -> Candidate | None:
        """Start the polls. Return the model to serve first; None if the forecaster must stop before there is one."""
        champion = self._source.last_served()
        self.start(champion)
        if champion is not None:
            logger.info("starting with version %d, which served last; looking up the champion", champion.version)
        while champion is None and not is_stopping():
            champion = self.wait(FIRST_WAIT_S)
        return champion

    def allow_polls(self) -> None:
        """Allow polls once the states are restored: the import of MLflow's client takes a core for seconds."""
        self._may_poll.set()

    def close(self) -> None:
        """Stop the polls, without waiting for one in progress."""
        self._closed.set()
        self._may_poll.set()

    def candidate(self) -> Candidate | None:
        """The model to serve; None if no champion could be loaded yet. Raises the error that ended the thread."""
        if self._failure is not None:
            raise self._failure
        return self._candidate

    def wait(self, timeout_s: float) -> Candidate | None:
        """``candidate``, after a wait of at most ``timeout_s`` for the first one."""
        self._changed.wait(timeout_s)
        return self.candidate()

    def _run(self) -> None:
        try:
            self._may_poll.wait(LONGEST_RESTORE_S)
            while not self._closed.is_set():
                self._poll()
                self._closed.wait(self._poll_s)
        except BaseException as error:
            self._failure = error  # `candidate` raises the error in the loop's thread
            self._changed.set()
            raise

    def _poll(self) -> None:
        try:
            version = self._source.resolve()
            if version is None:
                self._log_once("there is no champion: use `streamgru retrain` to train one, or `streamgru promote`")
            elif self._candidate is not None and version == self._candidate.version:
                self._unusable = None
                self._log_once(None)
            elif version != self._unusable:
                self._load(version)
        except RegistryError as error:
            self._log_once(str(error))

    def _load(self, version: int) -> None:
        try:
            forecaster = self._source.load(version)
        except (ModelUnusable, ModelMissing) as error:
            self._unusable = version
            self._log_once(f"version {version} is the champion and cannot serve: {error}")
            return
        self._unusable = None
        self._log_once(None)
        self._candidate = Candidate(version, forecaster)
        self._changed.set()

    def _log_once(self, trouble: str | None) -> None:
        """Log each error when it first occurs, and its end."""
        if trouble is not None and trouble != self._last_trouble:
            fallback = f"version {self._candidate.version} goes on serving" if self._candidate else "waiting for one"
            logger.error("%s; %s", trouble, fallback)
        elif trouble is None and self._last_trouble is not None:
            logger.warning("following the champion works again")
        self._last_trouble = trouble

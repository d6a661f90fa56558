"""The registered model: its versions, their aliases and artefacts. ``registry.training_run`` makes the versions."""

import hashlib
import logging
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pipeline.errors import ModelUnusable, RegistryError, RegistryUnreachable
from pipeline.registry.mlflow_session import MlflowSession, is_missing, mlflow_error
from pipeline.settings import Settings

if TYPE_CHECKING:  # torch takes seconds to import, and listing versions needs none of it
    from model.config import ModelConfig
    from model.forecaster import Forecaster

logger = logging.getLogger("streamgru.registry")

CHAMPION: Final = "champion"
CHALLENGER: Final = "challenger"
ARTEFACT: Final = "forecaster"  # the artefact's name in the logged model, as pyfunc_model.py expects it
SCORE_PREFIX: Final = "score."  # of the tags of a version that `streamgru models` shows as its metrics
VALIDATE_UNTIL: Final = "validate_until"  # tag of a version: readings before this took part in training or choosing it
# A download that another process has not finished after this long was killed, and its leavings can go.
STALE_DOWNLOAD_S: Final = 3_600


@dataclass(frozen=True)
class ModelInfo:
    """A version in the registry."""

    version: int
    aliases: tuple[str, ...]
    metrics: dict[str, float]
    tags: dict[str, str]
    created: datetime
    run_id: str | None = None


@dataclass(frozen=True)
class AliasTarget:
    """What an alias names."""

    version: int
    copy: str  # the name of a copy's folder, ``copy_name``


@dataclass(frozen=True)
class LocalCopy:
    """A version's artefact on this disk, loaded."""

    folder: Path
    forecaster: "Forecaster"


class Registry:
    """The versions of one registered model, ``settings.model_name``, in the MLflow at ``settings.mlflow_tracking_uri``.

    Every method raises ``RegistryUnreachable`` within seconds where MLflow does not answer, and ``RegistryError`` where
    it refuses. May be used from several threads.

    Args:
        patient: wait for a busy server, and ask again, rather than answer within seconds.
    """

    def __init__(self, settings: Settings, *, patient: bool = False) -> None:
        self._settings = settings
        self._name = settings.model_name
        self._session = MlflowSession(settings.mlflow_tracking_uri, settings.model_name, patient)

    def resolve(self, alias: str) -> int | None:
        """The version that an alias names; none where there is no such alias, or no model yet."""
        target = self.alias_target(alias)
        return None if target is None else target.version

    def alias_target(self, alias: str) -> AliasTarget | None:
        """As ``resolve``, with what tells the version from another of the same number."""
        with self._session.client(f"looking up alias {alias}") as client:
            try:
                found = client.get_model_version_by_alias(self._name, alias)
            except mlflow_error() as error:
                if is_missing(error):
                    return None
                raise
        return AliasTarget(int(found.version), copy_name(int(found.version), found.source))

    def versions(self) -> list[ModelInfo]:
        """All versions, newest first."""
        found: list[Any] = []
        token = None
        with self._session.client("listing the versions") as client:
            try:
                aliases = client.get_registered_model(self._name).aliases
            except mlflow_error() as error:
                if is_missing(error):
                    return []
                raise
            while True:
                page = client.search_model_versions(f"name = '{self._name}'", page_token=token)
                found.extend(page)
                token = page.token
                if not token:
                    break
        return sorted((_info(version, aliases) for version in found), key=lambda info: -info.version)

    def version(self, version: int) -> ModelInfo:
        """One version.

        Raises:
            ModelMissing: there is no such version.
        """
        found = self._model_version(version)
        return _info(found, dict.fromkeys(found.aliases, version))

    def set_alias(self, alias: str, version: int) -> None:
        """Let an alias name a version; forecasters follow ``champion`` by themselves.

        Raises:
            ModelMissing: there is no such version.
        """
        with self._session.client(f"setting alias {alias}", version) as client:
            client.set_registered_model_alias(self._name, alias, str(version))

    def tag(self, version: int, tags: Mapping[str, str]) -> None:
        """Add tags to a version, which MLflow's page of it shows."""
        with self._session.client(f"tagging version {version}", version) as client:
            for key, value in tags.items():
                client.set_model_version_tag(self._name, str(version), key, value)

    def load(self, version: int, into: Path) -> "Forecaster":
        """The forecaster of a version that fits the settings, on the CPU. The rest is as for ``load_copy``."""
        return self.load_copy(version, into).forecaster

    def load_copy(self, version: int, into: Path) -> LocalCopy:
        """The forecaster of a version that fits the settings, from a copy below ``into``, which is fetched once.

        A copy appears there whole and checked, or not at all, also when this process is killed; one damaged later is
        fetched again. Where MLflow does not answer, the copy fetched before is used. Copies are told apart by what
        MLflow calls the version's source, since an MLflow set up anew counts its versions from 1 again.

        Raises:
            ModelMissing: there is no such version.
            ModelUnusable: its artefact is damaged, or was made for other features, targets, cadence, horizon or
                quantiles.
            RegistryUnreachable: MLflow does not answer, or its store of artefacts is away, and there is no copy.
            RegistryError: no copy can be kept below ``into``.
        """
        copies = into / self._name
        try:
            copy = self._copy(version, copies)
        except OSError as error:
            raise RegistryError(
                f"cannot keep a copy of {self._name} version {version} in {copies}: {error}; see to the space and the "
                "permissions there"
            ) from error
        differences = settings_differences(copy.forecaster.config, self._settings)
        if differences:
            raise ModelUnusable(
                f"{self._name} version {version} does not fit the settings: {'; '.join(differences)}. "
                "Retrain with these settings (`streamgru retrain`), or promote a version that fits (`streamgru models`)"
            )
        return copy

    def _copy(self, version: int, copies: Path) -> LocalCopy:
        """The copy of a version, fetched if there is none that is whole."""
        try:
            source: str = self._model_version(version).source
        except RegistryUnreachable:
            earlier = sorted(copies.glob(f"{version}-*"), key=lambda folder: folder.stat().st_mtime)
            copy = _intact_copy(earlier[-1]) if earlier else None
            if copy is None:
                raise
            logger.warning("MLflow does not answer; using the copy of version %d in %s", version, copy.folder)
            return copy
        target = copies / copy_name(version, source)
        return _intact_copy(target) or self._fetch(version, target)

    def _fetch(self, version: int, target: Path) -> LocalCopy:
        """Download a version and let it appear at ``target``, in place of what is damaged there."""
        from model.artefact import ArtefactError, load_artefact

        copies = target.parent
        copies.mkdir(parents=True, exist_ok=True)
        _remove_stale(copies)
        with tempfile.TemporaryDirectory(dir=copies, prefix=".partial-", ignore_cleanup_errors=True) as staging:
            fetched = self._download(version, Path(staging))
            try:
                forecaster = load_artefact(fetched)
            except ArtefactError as error:
                raise ModelUnusable(
                    f"{self._name} version {version} cannot be loaded: {error}; promote another version"
                ) from error
            if target.is_dir() and _intact_copy(target) is None:
                shutil.rmtree(target)
            try:
                fetched.rename(target)
            except OSError:
                if not target.is_dir():  # unless another process was quicker
                    raise
        return LocalCopy(target, forecaster)

    def _model_version(self, version: int) -> Any:
        with self._session.client(f"looking up version {version}", version) as client:
            return client.get_model_version(self._name, str(version))

    def _download(self, version: int, staging: Path) -> Path:
        """Download into a folder and return where in it the artefact lies.

        MLflow tells a file that failed to arrive by words alone, so what the version lacks is asked for beforehand, and
        a failure after that counts as passing: it must not make a good version look unfit.
        """
        nothing = f"{self._name} version {version} holds no forecaster of streamgru; promote another version"
        with self._session.client(f"downloading version {version}", version, patient=True):
            import mlflow.artifacts

            uri = f"models:/{self._name}/{version}/artifacts/{ARTEFACT}"
            try:
                if not mlflow.artifacts.list_artifacts(artifact_uri=uri):
                    # A store that is not there, such as a disk that is not mounted, is listed as an empty one.
                    if not mlflow.artifacts.list_artifacts(artifact_uri=f"models:/{self._name}/{version}"):
                        raise RegistryUnreachable(
                            f"MLflow at {self._settings.mlflow_tracking_uri} knows {self._name} version {version} and "
                            "shows none of its files; look at the place where that server keeps artifacts. If they are "
                            "gone for good, promote another version, or take the alias away on MLflow's page"
                        )
                    raise ModelUnusable(nothing)
                mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(staging))
            except (mlflow_error(), OSError) as error:
                if isinstance(error, mlflow_error()) and is_missing(error):
                    raise ModelUnusable(f"{nothing} ({error})") from error
                cause = " ".join(str(error).split())  # MLflow writes a line for each file
                raise RegistryUnreachable(
                    f"{self._name} version {version} could not be downloaded from MLflow at "
                    f"{self._settings.mlflow_tracking_uri} to {staging.parent}: {cause}; look at that server and at "
                    "the space on this disk"
                ) from error
        found = [note.parent for note in staging.rglob("config.json")]
        if len(found) != 1:
            raise ModelUnusable(nothing)
        return found[0]


def copy_name(version: int, source: str) -> str:
    """How the folder of a version's copy is called; ``source`` is what MLflow calls where the version came from."""
    return f"{version}-{hashlib.sha256(source.encode()).hexdigest()[:12]}"


def settings_differences(config: "ModelConfig", settings: Settings) -> list[str]:
    """What keeps a model from serving these settings, one sentence each."""
    from model.artefact import config_differences

    return config_differences(
        config,
        features=settings.features,
        targets=settings.targets,
        cadence_us=settings.cadence_us,
        horizon_steps=settings.horizon_steps,
        quantiles=settings.quantiles,
        max_gap_steps=settings.max_gap_steps,
    )


def _intact_copy(folder: Path) -> LocalCopy | None:
    """The copy in a folder; none where there is no folder, or what it holds is damaged, which is said."""
    from model.artefact import ArtefactError, load_artefact

    if not folder.is_dir():
        return None
    try:
        return LocalCopy(folder, load_artefact(folder))
    except ArtefactError as error:
        logger.warning("the copy in %s is damaged and has to be fetched again: %s", folder, error)
        return None


def _info(version: Any, aliases: Mapping[str, Any]) -> ModelInfo:
    tags = dict(version.tags)
    return ModelInfo(
        version=int(version.version),
        aliases=tuple(sorted(alias for alias, target in aliases.items() if int(target) == int(version.version))),
        metrics={
            key.removeprefix(SCORE_PREFIX): float(value) for key, value in tags.items() if key.startswith(SCORE_PREFIX)
        },
        tags={key: value for key, value in tags.items() if not key.startswith(SCORE_PREFIX)},
        created=datetime.fromtimestamp(version.creation_timestamp / 1_000, UTC),
        run_id=version.run_id or None,
    )


def _remove_stale(copies: Path) -> None:
    for partial in copies.glob(".partial-*"):
        if time.time() - partial.stat().st_mtime > STALE_DOWNLOAD_S:
            shutil.rmtree(partial, ignore_errors=True)

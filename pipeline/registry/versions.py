"""The registered model: its versions, their aliases and artefacts. ``registry.training_run`` creates versions."""

import hashlib
import logging
import math
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from pipeline.errors import ModelUnusable, RegistryError, RegistryUnreachable
from pipeline.registry.mlflow_session import MlflowSession, is_missing, is_unreachable, mlflow_error
from pipeline.settings import Settings
from pipeline.text.visible_text import visible

if TYPE_CHECKING:  # torch takes seconds to import, and listing versions does not need it
    from model.config import ModelConfig
    from model.forecaster import Forecaster

logger = logging.getLogger("streamgru.registry")

CHAMPION: Final = "champion"
CHALLENGER: Final = "challenger"
ARTEFACT: Final = "forecaster"  # the artefact's name in the logged model, as pyfunc_model.py expects it
SCORE_PREFIX: Final = "score."  # prefix of a version's tags that `streamgru models` shows as its metrics
VALIDATE_UNTIL: Final = "validate_until"  # tag, ISO 8601: end of the readings for training and selection
# A partial download of this age belongs to a killed process, and is deleted.
STALE_DOWNLOAD_S: Final = 3_600
# Every version of a retraining has one of these tags; versions of other tools and people have none.
_OWN_TAGS: Final = ("gate.", "history.version", VALIDATE_UNTIL)
# Versions without our tags whose artefacts are looked up for a list; each takes a request or two.
_MOST_INSPECTED: Final = 20


@dataclass(frozen=True)
class ModelInfo:
    """A version in the registry."""

    version: int
    aliases: tuple[str, ...]
    metrics: dict[str, float]
    tags: dict[str, str]
    created: datetime
    run_id: str | None = None
    trouble: str = ""  # why the version cannot serve, if it was registered without this project


@dataclass(frozen=True)
class AliasTarget:
    """The version that an alias names."""

    version: int
    copy: str  # folder name of a local copy, from ``copy_name``


@dataclass(frozen=True)
class LocalCopy:
    """A version's artefact in a local folder, loaded."""

    folder: Path
    forecaster: "Forecaster"


class Registry:
    """The versions of one registered model, ``settings.model_name``, in the MLflow at ``settings.mlflow_tracking_uri``.

    Every method raises ``RegistryUnreachable`` within seconds if MLflow does not answer, and ``RegistryError`` if it
    refuses. Thread-safe.

    Args:
        patient: wait and retry for a busy server instead of failing within seconds.
    """

    def __init__(self, settings: Settings, *, patient: bool = False) -> None:
        self._settings = settings
        self._name = settings.model_name
        self._session = MlflowSession(settings.mlflow_tracking_uri, settings.model_name, patient)

    def resolve(self, alias: str) -> int | None:
        """The version that an alias names; None if the alias or the model does not exist."""
        target = self.alias_target(alias)
        return None if target is None else target.version

    def alias_target(self, alias: str) -> AliasTarget | None:
        """As ``resolve``, with a folder name that differs for versions of equal number from another MLflow store."""
        with self._session.client(f"looking up alias {alias}") as client:
            try:
                found = client.get_model_version_by_alias(self._name, alias)
            except mlflow_error() as error:
                if is_missing(error):
                    return None
                raise
        return AliasTarget(int(found.version), copy_name(int(found.version), found.source or ""))

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
                page = client.search_model_versions(f"name = {_quoted(self._name)}", page_token=token)
                found.extend(page)
                token = page.token
                if not token:
                    break
        infos = sorted((_info(version, aliases) for version in found), key=lambda info: -info.version)
        foreign = [info.version for info in infos if not _is_own(info)][:_MOST_INSPECTED]
        trouble = {version: self._trouble(version) for version in foreign}
        return [replace(info, trouble=trouble.get(info.version, "")) for info in infos]

    def version(self, version: int) -> ModelInfo:
        """One version.

        Raises:
            ModelMissing: the version does not exist.
        """
        found = self._model_version(version)
        return _info(found, dict.fromkeys(found.aliases or (), version))

    def _trouble(self, version: int) -> str:
        """Why a version without our tags cannot serve, by the list of its files; empty if a forecaster is there."""
        try:
            self._check_files(version)
        except RegistryError as error:
            return f"not made by streamgru: {error}"
        return ""

    def set_alias(self, alias: str, version: int) -> None:
        """Move an alias to a version; running forecasters follow ``champion``.

        Raises:
            ModelMissing: the version does not exist.
        """
        with self._session.client(f"setting alias {alias}", version) as client:
            client.set_registered_model_alias(self._name, alias, str(version))

    def tag(self, version: int, tags: Mapping[str, str]) -> None:
        """Add tags to a version; its page in MLflow shows them."""
        with self._session.client(f"tagging version {version}", version) as client:
            for key, value in tags.items():
                client.set_model_version_tag(self._name, str(version), key, visible(value))

    def describe(self, version: int, description: str) -> None:
        """Set the description of a version, Markdown that its page in MLflow shows."""
        with self._session.client(f"describing version {version}", version) as client:
            client.update_model_version(self._name, str(version), description)

    def load(self, version: int, into: Path) -> "Forecaster":
        """The forecaster of a version that fits the settings, on the CPU; otherwise as ``load_copy``."""
        return self.load_copy(version, into).forecaster

    def load_copy(self, version: int, into: Path) -> LocalCopy:
        """The forecaster of a version that fits the settings, from a local copy in ``into``, downloaded once.

        A copy appears in ``into`` complete and verified, or not at all, even if this process is killed. A damaged copy
        is downloaded again. If MLflow does not answer, an earlier copy is used. The folder name of a copy contains a
        hash of the version's source, because a new MLflow store numbers its versions from 1 again.

        Raises:
            ModelMissing: the version does not exist.
            ModelUnusable: its artefact is damaged, or was made for other features, targets, cadence, horizon or
                quantiles.
            RegistryUnreachable: MLflow or its artefact store does not answer, and there is no local copy.
            RegistryError: a copy cannot be written to ``into``.
        """
        copies = into / self._name
        try:
            copy = self._copy(version, copies)
        except OSError as error:
            raise RegistryError(
                f"cannot keep a copy of {self._name} version {version} in {copies}: {error}; check the free space and "
                "the permissions there"
            ) from error
        differences = settings_differences(copy.forecaster.config, self._settings)
        if differences:
            raise ModelUnusable(
                f"{self._name} version {version} does not fit the settings: {'; '.join(differences)}. "
                "Retrain with these settings (`streamgru retrain`), or promote a version that fits (`streamgru models`)"
            )
        return copy

    def _copy(self, version: int, copies: Path) -> LocalCopy:
        """The local copy of a version, downloaded if it is missing or damaged."""
        try:
            source: str = self._model_version(version).source or ""
        except RegistryUnreachable:
            earlier = sorted(copies.glob(f"{version}-*"), key=lambda folder: folder.stat().st_mtime)
            copy = _intact_copy(earlier[-1]) if earlier else None
            if copy is None:
                raise
            logger.warning("MLflow does not answer; using the local copy of version %d in %s", version, copy.folder)
            return copy
        target = copies / copy_name(version, source)
        return _intact_copy(target) or self._fetch(version, target)

    def _fetch(self, version: int, target: Path) -> LocalCopy:
        """Download a version, verify it, and move it to ``target``; replaces a damaged copy there."""
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
                if not target.is_dir():  # another process may have been faster
                    raise
        return LocalCopy(target, forecaster)

    def _model_version(self, version: int) -> Any:
        with self._session.client(f"looking up version {version}", version) as client:
            return client.get_model_version(self._name, str(version))

    def _check_files(self, version: int) -> str:
        """Check that MLflow lists the files of a version's forecaster; return their URI.

        MLflow reports a file that it failed to transfer only in text. So missing files are looked up first, and an
        error after that counts as temporary: it must not make a good version unusable.
        """
        uri = f"models:/{self._name}/{version}/artifacts/{ARTEFACT}"
        with self._transfer(version):
            import mlflow.artifacts

            if mlflow.artifacts.list_artifacts(artifact_uri=uri):
                return uri
            # MLflow lists a missing store, such as a disk that is not mounted, as an empty one.
            if mlflow.artifacts.list_artifacts(artifact_uri=f"models:/{self._name}/{version}"):
                raise ModelUnusable(self._unusable(version))
            if not _is_own(self.version(version)):
                raise ModelUnusable(f"{self._unusable(version)} (MLflow lists no files at its source)")
            raise RegistryUnreachable(
                f"MLflow at {self._settings.mlflow_tracking_uri} has {self._name} version {version} but "
                "lists none of its files; check that server's artifact store. If the files are lost, "
                "promote another version, or delete the alias on MLflow's page"
            )

    def _download(self, version: int, staging: Path) -> Path:
        """Download into ``staging``, and return the artefact's folder in it."""
        uri = self._check_files(version)
        with self._transfer(version, staging):
            import mlflow.artifacts

            mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(staging))
        found = [note.parent for note in staging.rglob("config.json")]
        if len(found) != 1:
            raise ModelUnusable(self._unusable(version))
        return found[0]

    def _unusable(self, version: int) -> str:
        return f"{self._name} version {version} holds no forecaster of streamgru; promote another version"

    def _is_permanent(self, version: int, error: Exception) -> bool:
        """Whether a version's files cannot be read later either; a good version must not be given up too early."""
        if isinstance(error, mlflow_error()):
            # MLflow does not know the kind of store that another tool named as the source.
            return is_missing(error) or not (is_unreachable(error) or _is_own(self.version(version)))
        return not isinstance(error, OSError)  # for example the package for a cloud's store is not installed

    @contextmanager
    def _transfer(self, version: int, staging: Path | None = None) -> Iterator[None]:
        """Convert the errors of MLflow's access to a version's files, which depend on the source of the version."""
        with self._session.client(f"downloading version {version}", version, patient=True):
            try:
                yield
            except RegistryError:
                raise
            except Exception as error:
                cause = " ".join(str(error).split())  # MLflow writes a line per file
                if self._is_permanent(version, error):
                    raise ModelUnusable(f"{self._unusable(version)} ({cause})") from error
                to = f" to {staging.parent}" if staging else ""
                raise RegistryUnreachable(
                    f"{self._name} version {version} could not be downloaded from MLflow at "
                    f"{self._settings.mlflow_tracking_uri}{to}: {cause}; check that server and the "
                    "free space on this disk"
                ) from error


def version_url(settings: Settings, version: int) -> str:
    """The address of a version's page in MLflow."""
    name = quote(settings.model_name, safe="")
    return f"{settings.mlflow_tracking_uri.rstrip('/')}/#/models/{name}/versions/{version}"


def copy_name(version: int, source: str) -> str:
    """The folder name of a version's local copy; ``source`` is the version's source in MLflow."""
    return f"{version}-{hashlib.sha256(source.encode()).hexdigest()[:12]}"


def settings_differences(config: "ModelConfig", settings: Settings) -> list[str]:
    """A sentence for each setting that the model does not fit; empty if it can serve."""
    from model.artefact import config_differences
    from model.artefact_size import size_faults

    faults = [
        f"with these settings the model is too large: {fault}" for fault in size_faults(config, settings.adaptation)
    ]
    return faults + config_differences(
        config,
        features=settings.features,
        targets=settings.targets,
        cadence_us=settings.cadence_us,
        horizon_steps=settings.horizon_steps,
        quantiles=settings.quantiles,
        max_gap_steps=settings.max_gap_steps,
        outlook_covariates=settings.outlooks.covariates,
    )


def _intact_copy(folder: Path) -> LocalCopy | None:
    """The copy in a folder; None if the folder does not exist, or, with a warning, if the copy is damaged."""
    from model.artefact import ArtefactError, load_artefact

    if not folder.is_dir():
        return None
    try:
        return LocalCopy(folder, load_artefact(folder))
    except ArtefactError as error:
        logger.warning("the local copy in %s is damaged and must be downloaded again: %s", folder, error)
        return None


def _quoted(name: str) -> str:
    """The name in quotes that do not end in it, for a filter of MLflow, which has no escapes."""
    return f'"{name}"' if "'" in name else f"'{name}'"


def _is_own(info: ModelInfo) -> bool:
    """Whether a retraining registered the version, by its tags."""
    return bool(info.metrics) or any(tag.startswith(_OWN_TAGS) for tag in info.tags)


def _scores(tags: Mapping[str, str]) -> dict[str, float]:
    """The tags that are scores: other people may set any value under the same prefix."""
    found = {}
    for key, value in tags.items():
        with suppress(ValueError):
            if key.startswith(SCORE_PREFIX) and math.isfinite(float(value)):
                found[key.removeprefix(SCORE_PREFIX)] = float(value)
    return found


def _info(version: Any, aliases: Mapping[str, Any]) -> ModelInfo:
    tags = dict(version.tags or {})
    metrics = _scores(tags)
    return ModelInfo(
        version=int(version.version),
        aliases=tuple(sorted(alias for alias, target in aliases.items() if int(target) == int(version.version))),
        metrics=metrics,
        tags={key: value for key, value in tags.items() if key not in {f"{SCORE_PREFIX}{name}" for name in metrics}},
        created=datetime.fromtimestamp((version.creation_timestamp or 0) / 1_000, UTC),
        run_id=version.run_id or None,
    )


def _remove_stale(copies: Path) -> None:
    for partial in copies.glob(".partial-*"):
        if time.time() - partial.stat().st_mtime > STALE_DOWNLOAD_S:
            shutil.rmtree(partial, ignore_errors=True)

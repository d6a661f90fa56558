"""Logs remarks about the readings of a retraining: their cadence, bounds, days, outlooks and attributes."""

from collections.abc import Mapping
from typing import Final

from prefect import get_run_logger

from model.sequences import Sequences
from pipeline.registry.versions import CHALLENGER, Registry
from pipeline.remarks.bounds import bounds_findings, facts_as_text
from pipeline.remarks.data import data_remarks
from pipeline.settings import Settings
from pipeline.windows import cadence_warning

BOUNDS_FACTS: Final = "bounds_facts"  # tag of a version: the facts about bounds that its retraining found


def log_data_remarks(sequences: Sequences, settings: Settings, registry: Registry) -> Mapping[str, str]:
    """Log the remarks; return the tags for the version of this retraining.

    A remark about bounds is logged if its fact differs from the tag of the last retraining. Its version has the alias
    ``challenger``, also if the gate declined it.
    """
    log = get_run_logger()
    if warning := cadence_warning(sequences):
        log.warning("%s", warning)
    findings = bounds_findings(sequences, settings)
    last = registry.resolve(CHALLENGER) if findings else None
    known = "" if last is None else registry.version(last).tags.get(BOUNDS_FACTS, "")
    for remark in data_remarks(sequences, settings, findings, known):
        log.info("%s", remark)
    return {BOUNDS_FACTS: facts_as_text(findings)} if findings else {}

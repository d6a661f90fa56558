"""The names of the public interface in today's code, in the form of ``golden/names.json``."""

import dataclasses
import inspect
from collections.abc import Iterator
from typing import Any

import click

from deploy.cli import streamgru
from deploy.processes import ProcessRecord
from flows.ingest import ingest
from flows.monitor import monitor
from flows.promote import promote
from flows.retrain import retrain
from model.experts import experts_of
from model.metrics import METRICS, Interval
from model.training import EpochReport, TrainingOptions
from pipeline.audit.delivery import DeliveryCounts
from pipeline.audit.verify import AuditResult
from pipeline.dead_letter_form import REASONS
from pipeline.forecaster.counters import Counters
from pipeline.forecaster.health import health_report
from pipeline.forecaster.stuck_detection import ForecasterState, Heartbeat
from pipeline.messages import json_schemas
from pipeline.registry.training_set import TrainingSet
from pipeline.registry.versions import ModelInfo
from pipeline.settings import Settings


def names() -> dict[str, Any]:
    """Kind of name -> list of names, or an object whose values must not change either (defaults, parameters)."""
    schemas = json_schemas()
    return {
        "settings": dict(_flat(Settings().model_dump(mode="json"))),
        "commands": dict(_commands(streamgru, ())),
        "flows": {
            flow.name: list(inspect.signature(flow.fn).parameters) for flow in (ingest, retrain, monitor, promote)
        },
        "counts in --stats": list(Counters().content()),
        "answer of /healthz": ["state", *health_report(Heartbeat(), None, Counters())],
        "states in /healthz": [state.value for state in ForecasterState],
        "reasons of dead letters": list(REASONS),
        "experts in a forecast": {level: list(experts_of(level)) for level in ("off", "light", "full")},
        "fields of a reading": _properties(schemas["reading"], schemas["$defs"]),
        "fields of a forecast": _properties(schemas["forecast"], schemas["$defs"]),
        "verify --json": _fields(AuditResult),
        "verify --json, audit": _fields(DeliveryCounts),
        "models --json": _fields(ModelInfo),
        "scores": list(METRICS),
        "scores.json, intervals": _fields(Interval),
        "scores.json and checkpoints, epochs": _fields(EpochReport),
        "MLflow, parameters of a run": _fields(TrainingOptions),
        "MLflow, data set of a run": _fields(TrainingSet),
        "HOME/run/SERVICE.json": _fields(ProcessRecord),
    }


def _fields(of: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(of)]


def _flat(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def options_of(command: click.Command) -> list[str]:
    """The options of a command, hidden ones included, and ARGUMENT for each argument."""
    found: list[str] = []
    for parameter in command.params:
        is_option = isinstance(parameter, click.Option)
        found += [*parameter.opts, *parameter.secondary_opts] if is_option else ["ARGUMENT"]
    return found


def find_command(path: str) -> click.Command | None:
    """The command that click runs for ``path``, for example "dlq list"; None if it is unknown."""
    command: click.Command = streamgru
    for name in path.split():
        assert isinstance(command, click.Group)
        try:
            _, found, _ = command.resolve_command(click.Context(command), [name])
        except click.UsageError:
            return None
        assert found is not None
        command = found
    return command


def _commands(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[str, list[str]]]:
    yield " ".join(path), options_of(command)
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from _commands(below, (*path, name))


def _properties(schema: dict[str, Any], definitions: dict[str, Any]) -> list[str]:
    """Dotted names of an object's properties, nested objects included."""
    found: list[str] = []
    definition = definitions[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    for name, below in definition.get("properties", {}).items():
        found.append(name)
        found += [f"{name}.{inner}" for inner in _properties(below, definitions)]
    return found

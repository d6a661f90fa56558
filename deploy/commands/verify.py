"""``streamgru verify`` and ``explain``: the forecasts held against the readings they follow."""

import json
import math
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pipeline.audit.explain import Explanation
    from pipeline.audit.verify import AuditResult, LoadModel, Span
    from pipeline.settings import Settings


def moment_us(text: str) -> int:
    """Microseconds since the epoch of a time as readings have it: ISO 8601 with a zone, or epoch milliseconds.

    Raises:
        BadParameter: it is neither, or outside the years that a reading can be of.
    """
    from pipeline.messages import EARLIEST_TIMESTAMP_US, LATEST_TIMESTAMP_US

    found = _moment_us(text)
    if found is None:
        raise click.BadParameter(
            f"{text!r} is no time with a zone, such as 2016-03-01T08:00:00Z, nor epoch milliseconds"
        )
    if not EARLIEST_TIMESTAMP_US <= found < LATEST_TIMESTAMP_US:
        raise click.BadParameter(
            f"{text} lies outside the years 1900 to 2199; a number is taken as milliseconds since 1970"
        )
    return found


def _moment_us(text: str) -> int | None:
    from pipeline.messages import microseconds

    with suppress(ValueError):
        if text.lstrip("-").isdigit():
            return int(text) * 1_000
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is not None:
            return microseconds(moment)
    return None


@click.command()
@click.option("--since", type=moment_us, metavar="TIME", help="Audit readings that were sent at this time or later.")
@click.option("--until", type=moment_us, metavar="TIME", help="Audit readings that were sent before this time.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
@click.pass_context
def verify(ctx: click.Context, since: int | None, until: int | None, as_json: bool) -> None:
    """Hold every forecast and every sensor's last state against the readings; exit code 1 if anything is wrong.

    Reads the topics as any consumer does, recomputes every forecast from its state's first reading on with the model
    version that it names, and counts. By default from the first reading on (where forecaster.start is "latest": from
    the first one that was forecast) up to what the forecasters have committed. Where the settings that shape forecasts
    were changed, it begins with the first reading that was forecast under the present ones; where retention has deleted
    readings or forecasts, with the first one that still has both.
    """
    from pipeline.audit.verify import verify as audit

    settings = ctx.obj.settings
    verdict = audit(settings, _loader(settings), _span(settings, since, until))
    if as_json:
        click.echo(json.dumps(asdict(verdict) | {"faults": verdict.faults}, indent=2))
    else:
        _print(verdict, settings)
    if verdict.faults:
        ctx.exit(1)


def _span(settings: "Settings", since: int | None, until: int | None) -> "Span":
    from pipeline.audit.verify import Span
    from pipeline.kafka.topic_reader import offsets_at

    topic = settings.kafka.topics.readings
    starts = {} if since is None else offsets_at(settings, topic, since)
    return Span(starts, {} if until is None else offsets_at(settings, topic, until))


def _loader(settings: "Settings") -> "LoadModel":
    from pipeline.forecaster.champion import RegistryChampion

    return RegistryChampion(settings).load


def _print(verdict: "AuditResult", settings: "Settings") -> None:
    counts = verdict.audit
    notes = {
        "accepted": f"of {counts.readings:,} readings; {counts.duplicates:,} duplicates, {counts.late:,} late, "
        f"{counts.rejected:,} rejected" + (f", {counts.held:,} held" if counts.held else ""),
        "forecasts": _versions(verdict),
        "different": f"of {verdict.recomputed:,} recomputed; the largest difference is "
        f"{verdict.largest_difference:.1e} of the sensor's scale",
        "states different": f"of {verdict.states:,}",
    }
    for name, count in {"accepted": counts.accepted, "forecasts": counts.forecasts, **verdict.fault_counts}.items():
        click.echo(f"{name:<21}{count:>12,}  {notes.get(name, '')}".rstrip())
    if verdict.foreign:
        by_print = ", ".join(f"{count:,} of {fingerprint}" for fingerprint, count in sorted(verdict.foreign.items()))
        click.echo(
            f"{sum(verdict.foreign.values()):,} forecasts were made under other settings than the present ones "
            f"({settings.fingerprint}) and not audited: {by_print}"
        )
    if verdict.rebuilt:
        click.echo(f"{verdict.rebuilt:,} times a state was replayed from the readings for the version that made it")
    if verdict.out_of_reach:
        click.echo(
            f"{verdict.out_of_reach:,} forecasts could not be recomputed: the readings that their states began with "
            "have been deleted"
        )
    if verdict.readings_out_of_reach or verdict.forecasts_out_of_reach or verdict.letters_out_of_reach:
        click.echo(
            f"{verdict.readings_out_of_reach:,} readings, {verdict.forecasts_out_of_reach:,} forecasts and "
            f"{verdict.letters_out_of_reach:,} rejected records were out of reach: retention has deleted what they are "
            "held against, or may have"
        )
    if verdict.waiting:
        click.echo(f"{verdict.waiting:,} readings behind these were not audited")
    for fault, count in verdict.faults.items():
        places = "; ".join(verdict.examples.get(fault, []))
        click.echo(f"error: {fault}: {count:,}, such as {places}", err=True)
    if not verdict.faults and not counts.accepted:
        click.echo(f"no accepted reading was audited: {_reason_for_none(verdict)}")
    elif not verdict.faults:
        click.echo("every accepted reading has one forecast, in order, and each is what the readings make of it")


def _reason_for_none(verdict: "AuditResult") -> str:
    if verdict.foreign:
        return "all forecasts were made under other settings than these"
    if verdict.readings_out_of_reach:
        return "retention has deleted what they are held against"
    return "the forecasters have committed none in this span"


def _versions(verdict: "AuditResult") -> str:
    return ", ".join(f"{count:,} of version {version}" for version, count in sorted(verdict.versions.items()))


@click.command()
@click.argument("sensor")
@click.argument("timestamp", type=moment_us)
@click.pass_context
def explain(ctx: click.Context, sensor: str, timestamp: int) -> None:
    """Show what one forecast of SENSOR, the one issued at TIMESTAMP, was made of, and recompute it.

    TIMESTAMP is the reading's: ISO 8601 with a zone, or epoch milliseconds. The exit code is 1 if the recomputed
    forecast differs, or was made under other settings than the present ones and cannot be recomputed.
    """
    from pipeline.audit.explain import explain as take_apart

    settings = ctx.obj.settings
    explanations = take_apart(settings, _loader(settings), sensor, timestamp)
    for explanation in explanations:
        _print_explanation(settings, explanation)
    if len(explanations) > 1:
        click.echo(f"error: the reading has {len(explanations)} forecasts instead of one", err=True)
    if len(explanations) > 1 or not all(explanation.is_equal for explanation in explanations):
        ctx.exit(1)


def _print_explanation(settings: "Settings", explanation: "Explanation") -> None:
    from model.experts import experts_of
    from pipeline.messages import iso_timestamp, microseconds

    forecast = explanation.forecast
    values = ", ".join(
        f"{feature} {'missing' if math.isnan(value) else f'{value:g}'}" for feature, value in explanation.values.items()
    )
    source = forecast.input
    click.echo(f"forecast   of {forecast.sensor_id}, issued at {iso_timestamp(microseconds(forecast.issued_at))}")
    click.echo(f"reading    {source.topic}, partition {source.partition}, offset {source.offset}: {values}")
    click.echo(f"model      {forecast.model.name}, version {forecast.model.version}; settings {forecast.settings}")
    click.echo(
        f"state      {forecast.state.steps:,} steps since {iso_timestamp(explanation.begun_us)} (offset "
        f"{forecast.state.origin}): {explanation.accepted:,} readings, {explanation.missing_steps:,} skipped points; "
        f"{'warm' if forecast.state.warm else 'not warm yet'}"
    )
    if forecast.weights:
        for target, weights in forecast.weights.items():
            click.echo(f"weights    of {target}: {_shares(weights)}")
    if not explanation.has_same_weights:
        experts = experts_of(settings.adaptation.level)
        for target, shares in zip(settings.targets, explanation.weights.tolist(), strict=True):
            mixed = _shares(dict(zip(experts, shares, strict=False)))  # of none, where nothing is mixed
            click.echo(f"  recomputed, of {target}: {mixed or 'none'}")
    for target, published, recomputed in zip(
        settings.targets, explanation.published, explanation.recomputed, strict=True
    ):
        for level, row, again in zip(settings.quantiles, published, recomputed, strict=True):
            click.echo(f"{target} at {level:g}")
            click.echo(f"  published   {_numbers(row.tolist())}")
            click.echo(f"  recomputed  {_numbers(again.tolist())}")
    word = "equal" if explanation.is_equal else "DIFFERENT"
    beside = "" if explanation.has_same_weights else ", and the weights differ"
    click.echo(f"{word}: the largest difference is {explanation.difference:.1e} of the sensor's scale{beside}")


def _shares(weights: dict[str, float]) -> str:
    return ", ".join(f"{expert} {weight:.3f}" for expert, weight in weights.items())


def _numbers(values: list[float]) -> str:
    return " ".join(f"{value:.7g}" for value in values)

"""``streamgru verify`` and ``explain``: forecasts compared with the forecasts recomputed from readings."""

import math
import re
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

import click

from deploy.loading import loading
from deploy.terminal_text import say, say_lines
from pipeline.text.json_text import json_text
from pipeline.text.plural import counted

if TYPE_CHECKING:
    from pipeline.audit.explain import Explanation
    from pipeline.audit.verify import AuditResult, LoadModel, Span
    from pipeline.settings import Settings


_MILLISECONDS: Final = re.compile(r"-?[0-9]{1,18}")


def moment_us(text: str) -> int:
    """Microseconds since the epoch of a time as in readings: ISO 8601 with a zone, or epoch milliseconds.

    Raises:
        BadParameter: the text is neither, or no reading can have this time.
    """
    from pipeline.iso_times import iso_microseconds
    from pipeline.messages import EARLIEST_TIMESTAMP_US, LATEST_TIMESTAMP_US

    found = int(text) * 1_000 if _MILLISECONDS.fullmatch(text) else iso_microseconds(text)
    if found is None:
        raise click.BadParameter(
            f"{text!r} is neither a time with a zone, such as 2016-03-01T08:00:00Z, nor epoch milliseconds"
        )
    if not EARLIEST_TIMESTAMP_US <= found < LATEST_TIMESTAMP_US:
        raise click.BadParameter(
            f"{text} lies outside the years 1900 to 2199; a number is taken as milliseconds since 1970"
        )
    return found


@click.command()
@click.option("--since", type=moment_us, metavar="TIME", help="Audit readings sent at this time or later.")
@click.option("--until", type=moment_us, metavar="TIME", help="Audit readings sent before this time.")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
@click.pass_context
def verify(ctx: click.Context, since: int | None, until: int | None, as_json: bool) -> None:
    """Check every forecast, and every sensor's last state, against the readings; exit code 1 if anything is wrong.

    The audit reads the topics as any consumer does. It recomputes every forecast with the model version that the
    forecast names, from the first reading of its state on, and counts differences. It checks that each accepted reading
    has one forecast, and each rejected record one dead letter.

    Without --since the audit begins at the first reading, or, if forecaster.start is "latest", at the first one with a
    forecast. After a change of settings that shape forecasts it begins at the first forecast under the present
    settings. If retention deleted readings or forecasts, it begins where both are left. Without --until it ends at the
    offsets that the forecasters have committed.
    """
    with loading():
        from pipeline.audit.verify import verify as audit

    settings = ctx.obj.settings
    verdict = audit(settings, _loader(settings), _span(settings, since, until))
    if as_json:
        say_lines(json_text(asdict(verdict) | {"faults": verdict.faults}))
    else:
        _print(verdict, settings)
    if verdict.faults:
        ctx.exit(1)


def _span(settings: "Settings", since: int | None, until: int | None) -> "Span":
    from pipeline.audit.verify import Span
    from pipeline.kafka.topic_reader import offsets_at

    topic = settings.kafka.topics.readings
    return Span(*({} if time is None else offsets_at(settings, topic, time) for time in (since, until)))


def _loader(settings: "Settings") -> "LoadModel":
    from pipeline.forecaster.champion import RegistryChampion

    return RegistryChampion(settings).load


def _print(verdict: "AuditResult", settings: "Settings") -> None:
    counts = verdict.audit
    notes = {
        "accepted": f"of {counted(counts.readings, 'reading')}; {counted(counts.duplicates, 'duplicate')}, "
        f"{counts.late:,} late, {counts.rejected:,} rejected" + (f", {counts.held:,} buffered" if counts.held else ""),
        "forecasts": ", ".join(
            f"{count:,} of version {version}" for version, count in sorted(verdict.versions.items())
        ),
        "different": f"of {verdict.recomputed:,} recomputed; the largest difference is "
        f"{verdict.largest_difference:.1e} of the sensor's scale",
        "states different": f"of {verdict.states:,}",
    }
    for name, count in {"accepted": counts.accepted, "forecasts": counts.forecasts, **verdict.fault_counts}.items():
        say(f"{name:<21}{count:>12,}  {notes.get(name, '')}".rstrip())
    if verdict.foreign:
        by_print = ", ".join(f"{count:,} under {fingerprint}" for fingerprint, count in sorted(verdict.foreign.items()))
        say(
            f"forecasts made under other settings than the present ones ({settings.fingerprint}), not audited: "
            f"{by_print}"
        )
    for note, count in {
        "states rebuilt from readings without a change of the model version": verdict.rebuilt,
        "forecasts not recomputed, because retention deleted the first readings of their states": verdict.out_of_reach,
        "readings not audited, because retention deleted forecasts": verdict.readings_out_of_reach,
        "forecasts not audited, because retention deleted readings": verdict.forecasts_out_of_reach,
        "rejected records not audited, because retention deleted dead letters": verdict.letters_out_of_reach,
        "readings that decode now, rejected because they have dead letters": verdict.rejected_then,
        "later readings, not audited": verdict.waiting,
        "outlooks, which have no forecasts of their own": verdict.outlooks,
    }.items():
        if count:
            say(f"{note}: {count:,}")
    if verdict.implausible_times:
        say(f"readings with implausible times on the whole topic: {_by_sensor(verdict)}")
    for fault, count in verdict.faults.items():
        places = "; ".join(verdict.examples.get(fault, []))
        say(f"error: {fault}: {count:,}, such as {places}", err=True)
    if not verdict.faults and not counts.accepted:
        reason = (
            "all forecasts were made under other settings than the present ones"
            if verdict.foreign
            else "retention deleted their counterparts"
            if verdict.readings_out_of_reach
            else "the forecasters have committed none in this span"
        )
        say(f"no accepted reading was audited: {reason}")
    elif not verdict.faults:
        say("every accepted reading has one forecast, in order, and each equals the recomputed one")


def _by_sensor(verdict: "AuditResult") -> str:
    named = verdict.implausible_times
    total = verdict.reasons.get("implausible-time", 0)
    by_sensor = ", ".join(f"sensor {sensor} {count:,}" for sensor, count in named.items())
    others = total - sum(named.values())
    return f"{total:,} ({by_sensor}{f', other sensors {others:,}' if others else ''})"


@click.command()
@click.argument("sensor")
@click.argument("timestamp", type=moment_us)
@click.pass_context
def explain(ctx: click.Context, sensor: str, timestamp: int) -> None:
    """Show the reading, model and state behind one forecast of SENSOR, and recompute it.

    TIMESTAMP is the time of the reading: ISO 8601 with a zone, or epoch milliseconds. The exit code is 1 if the
    recomputed forecast differs, or if it cannot be recomputed because it was made under other settings.
    """
    with loading():
        from pipeline.audit.explain import explain as take_apart

    settings = ctx.obj.settings
    explanations = take_apart(settings, _loader(settings), sensor, timestamp)
    for explanation in explanations:
        _print_explanation(settings, explanation)
    if len(explanations) > 1:
        say(f"error: the reading has {len(explanations)} forecasts instead of one", err=True)
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
    say(f"forecast   of {forecast.sensor_id}, issued at {iso_timestamp(microseconds(forecast.issued_at))}")
    say(f"reading    {source.topic}, partition {source.partition}, offset {source.offset}: {values}")
    say(f"model      {forecast.model.name}, version {forecast.model.version}; settings {forecast.settings}")
    say(
        f"state      {forecast.state.steps:,} steps since {iso_timestamp(explanation.begun_us)} (offset "
        f"{forecast.state.origin}): {explanation.accepted:,} readings, {explanation.missing_steps:,} missing steps; "
        f"{'warm' if forecast.state.warm else 'not warm yet'}"
    )
    if explanation.has_outlooks:
        outlook = explanation.outlook
        about = "none"
        if outlook is not None:
            order = "before" if outlook.age_steps >= 0 else "after"
            about = (
                f"of {outlook.name}, issued at {iso_timestamp(outlook.issued_us)} ({abs(outlook.age_steps):g} cadences "
                f"{order} the time of the reading), offset {outlook.offset}"
            )
        say(f"outlook    {about}")
    for target, weights in (forecast.weights or {}).items():
        say(f"weights    of {target}: {_shares(weights)}")
    if not explanation.has_same_weights:
        experts = experts_of(settings.adaptation.level)
        for target, shares in zip(settings.targets, explanation.weights.tolist(), strict=True):
            mixed = _shares(dict(zip(experts, shares, strict=False)))  # empty if the level mixes no experts
            say(f"  recomputed, of {target}: {mixed or 'none'}")
    for target, published, recomputed in zip(
        settings.targets, explanation.published, explanation.recomputed, strict=True
    ):
        for level, row, again in zip(settings.quantiles, published, recomputed, strict=True):
            say(f"{target} at {level:g}")
            say(f"  published   {_numbers(row.tolist())}")
            say(f"  recomputed  {_numbers(again.tolist())}")
    word = "equal" if explanation.is_equal else "DIFFERENT"
    beside = "" if explanation.has_same_weights else ", and the weights differ"
    say(f"{word}: the largest difference is {explanation.difference:.1e} of the sensor's scale{beside}")


def _shares(weights: dict[str, float]) -> str:
    return ", ".join(f"{expert} {weight:.3f}" for expert, weight in weights.items())


def _numbers(values: list[float]) -> str:
    return " ".join(f"{value:.7g}" for value in values)

"""The model card: a description of a version, from the facts of its retraining, as Markdown for MLflow's page."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from model.metrics import Interval, Scores, skill
from model.score_intervals import Resampled, interval, resample
from model.sequences import Sequences
from model.training import TrainingOptions, TrainingResult
from pipeline.evaluation.evaluate import Evaluation
from pipeline.evaluation.gate import Decision
from pipeline.messages import iso_timestamp
from pipeline.registry.training_set import TrainingSet
from pipeline.registry.versions import CHALLENGER, CHAMPION
from pipeline.text.markdown_text import markdown_image, markdown_link, markdown_table, mlflow_markdown
from pipeline.text.plural import counted, plural

# Folders of the run's artifacts.
PLOTS: Final = "plots"
PREVIEWS: Final = "plots/previews"
CARD_FILE: Final = "model_card.md"
# MLflow keeps descriptions in a column of this many characters; some databases refuse longer ones.
LONGEST_DESCRIPTION: Final = 5_000
# Names in a list and characters of a name; the first pair that fits is used.
_SHORTENINGS: Final = ((100, 200), (40, 60), (20, 40), (12, 40), (8, 24), (3, 12))
_SHOWN_STEPS: Final = 6  # rows of the table by horizon step
_FEW_SENSORS: Final = 10  # with fewer sensors, resampling them gives rough intervals
# The other plots are beside these two.
_PLOTS: Final = (
    ("Error, coverage and calibration by steps ahead", "scores.png"),
    ("Forecasts and readings of the worst, the median and the best sensor", "forecasts.png"),
)


@dataclass(frozen=True)
class CardFacts:
    """The facts of a retraining about its version."""

    done: Evaluation  # the model's scores have the name CHALLENGER
    decision: Decision
    training_set: TrainingSet
    trained: Sequences
    late: str  # a sentence about late readings; empty without late readings
    options: TrainingOptions
    result: TrainingResult
    started_from: int | None  # version whose weights the training started from
    champion: int | None  # version that the model was compared with, if any
    run_id: str
    run_url: str


@dataclass(frozen=True)
class ModelCard:
    """A complete card, and the part of it that MLflow keeps as description."""

    complete: str
    description: str


def model_card(facts: CardFacts) -> ModelCard:
    """The card of a version.

    Where the description is too long, its lists and names are shortened, and then sections are left out from its end.
    Its last line names the file with the complete card.
    """
    derived = _derive(facts)
    complete = "\n\n".join(_sections(derived, _Lister(None, None)))
    for names, width in _SHORTENINGS:
        sections = _sections(derived, _Lister(names, width))
        text = "\n\n".join([*sections, _reference(facts, "The complete card")])
        if len(text) <= LONGEST_DESCRIPTION:
            return ModelCard(complete, text)
    note = _reference(facts, "This card is cut, because MLflow limits descriptions. The complete card")
    while sections and len(text) > LONGEST_DESCRIPTION:
        sections.pop()
        text = "\n\n".join([*sections, note])
    return ModelCard(complete, text)


@dataclass(frozen=True)
class _Derived:
    """The facts with figures that take a while to work out."""

    facts: CardFacts
    ranges: list[tuple[float, float] | None]  # of each feature's values in the training part; None without a value
    scores: str  # a section
    by_step: str  # a section
    worst_sensors: list[tuple[str, list[str]]]  # name and cells
    better_steps: dict[str, list[int]]
    intervals: list[Interval]


def _derive(facts: CardFacts) -> _Derived:
    trained, config = facts.trained, facts.done.config
    is_seen = trained.timestamp_us < facts.done.split.train_end_us
    ranges: list[tuple[float, float] | None] = []
    for column in trained.columns(config.features):
        low = float(np.fmin.reduce(trained.values[:, column], where=is_seen, initial=np.inf))
        high = float(np.fmax.reduce(trained.values[:, column], where=is_seen, initial=-np.inf))
        ranges.append((low, high) if low <= high else None)
    resampled = resample(facts.done.scores, "pinball")
    return _Derived(
        facts,
        ranges,
        _scores(facts, resampled),
        _by_step(facts, resampled),
        _worst_cells(facts.done.model_scores),
        _better_steps(facts.done),
        facts.done.model_scores.intervals(),
    )


@dataclass(frozen=True)
class _Lister:
    """Writes names of users, as many and as long as the card has room for."""

    names: int | None
    width: int | None

    def name(self, text: object) -> str:
        return mlflow_markdown(text, self.width)

    def list(self, names: Sequence[object], write: Callable[[int], str] | None = None) -> str:
        """The names with commas between them; ``write`` gives the text of each by its number."""
        shown = range(len(names))[: self.names]
        texts = [write(number) if write else self.name(names[number]) for number in shown]
        more = len(names) - len(texts)
        return ", ".join(texts) + (f" and {more:,} more" if more else "")


def _sections(derived: _Derived, lister: _Lister) -> list[str]:
    """The sections in order of importance, because a long card loses its end."""
    facts = derived.facts
    return [
        _summary(facts, lister),
        derived.scores,
        derived.by_step,
        _limits(derived, lister),
        _training_data(facts, lister),
        _worst_sensors(derived, lister),
        _training(facts),
        _plots(facts),
    ]


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table with gaps, which MLflow's page leaves out: between columns and below."""
    return f"{markdown_table(header, rows, gap='&emsp;')}\n\n&nbsp;"


def _summary(facts: CardFacts, lister: _Lister) -> str:
    config = facts.done.config
    cadence_s = config.cadence_us / 1_000_000
    last = _duration(config.horizon_steps * cadence_s)
    ahead = f"1 to {config.horizon_steps} steps" if config.horizon_steps > 1 else "1 step"
    span = f"{_duration(cadence_s)} to {last}" if config.horizon_steps > 1 else last
    bounds = [f"{name}: {each}" for name, each in zip(config.targets, config.bounds, strict=False) if each.are_set]
    within = f" No forecast leaves these bounds: {lister.list(bounds)}." if bounds else ""
    calendar = lister.list([each.name for each in config.calendar])
    ahead_of = f" It knows these days ahead: {calendar}." if config.calendar else ""
    attributes = lister.list([each.name for each in config.attributes])
    known = f" It knows these attributes of sensors: {attributes}." if config.attributes else ""
    verdict, _, reason = facts.decision.reason.partition(": ")
    return (
        f"Forecasts **{lister.list(config.targets)}** of a sensor {ahead} ahead ({span}), as quantiles "
        f"{', '.join(map(str, config.quantiles))}. It steps once for each reading of {lister.list(config.features)}, "
        f"about every {_duration(cadence_s)}.{within}{ahead_of}{known}\n\n**{mlflow_markdown(verdict).capitalize()}** "
        f"by the gate: {mlflow_markdown(reason)}."
    )


def _scores(facts: CardFacts, resampled: Mapping[str, Resampled] | None) -> str:
    done = facts.done
    ours = done.model_scores
    labelled = int((ours.count.sum(axis=(1, 2)) > 0).sum())
    first, last = done.split.validation_end_us, int(done.sequences.timestamp_us.max())
    text = (
        f"### Scores\n\nOn readings that training did not use: {iso_timestamp(first)} to {iso_timestamp(last)}, "
        f"{int(ours.n.sum()):,} values of {labelled:,} sensors. Errors are in units of each sensor's scale, its usual "
        "difference from one season to the next."
    )
    if resampled is None:
        text += " There is no interval, because only one sensor has scores."
    else:
        text += f" Brackets hold the 95 % interval over resampled sensors{_warning(labelled)}."
    rows = []
    for name, score in done.scores.items():
        pinball = f"{score.mean('pinball'):.4g}"
        lower = ""
        if resampled is not None:
            pinball += f" {_bracket(interval(resampled[name].overall))}"
        if name != done.name and score.mean("pinball"):
            # Adding 0.0 turns -0.0 into 0.0.
            lower = f"{round(100.0 * skill(ours, score, 'pinball'), 1) + 0.0:.1f}"
            if resampled is not None and resampled[name].overall.all():
                share = 100.0 * (1.0 - resampled[done.name].overall / resampled[name].overall)
                lower += f" {_bracket(interval(share), '.1f')}"
        cells = [pinball, f"{score.mean('mae'):.4g}", f"{score.mean('coverage'):.1%}", lower]
        rows.append([_name(facts, name), *cells])
    header = [
        "forecast",
        "pinball loss",
        "MAE",
        f"in the {ours.nominal_coverage:.0%} interval",
        "this version: % lower",
    ]
    return f"{text}\n\n{_table(header, rows)}"


def _by_step(facts: CardFacts, resampled: Mapping[str, Resampled] | None) -> str:
    done = facts.done
    pinball = {name: score.pooled("pinball") for name, score in done.scores.items()}
    mae, coverage = done.model_scores.pooled("mae"), done.model_scores.pooled("coverage")
    rows = []
    for step in _shown_steps(done.config.horizon_steps):
        ours = f"{pinball[done.name][step]:.4g}"
        if resampled is not None:
            ours += f" {_bracket(interval(resampled[done.name].by_step[:, step]))}"
        rival = min((name for name in pinball if name != done.name), key=lambda name: pinball[name][step])
        theirs = f"{pinball[rival][step]:.4g} ({_name(facts, rival)})"
        rows.append([str(step + 1), ours, theirs, f"{mae[step]:.4g}", f"{coverage[step]:.1%}"])
    header = ["steps ahead", "pinball loss", "best other forecast", "MAE", "in the interval"]
    return _table(header, rows)


def _worst_cells(scores: Scores) -> list[tuple[str, list[str]]]:
    mae = dict(zip(scores.sensors, scores.by_sensor("mae"), strict=True))
    coverage = dict(zip(scores.sensors, scores.by_sensor("coverage"), strict=True))
    return [
        (sensor, [f"{loss:.4g}", f"{mae[sensor]:.4g}", f"{coverage[sensor]:.1%}"])
        for sensor, loss in scores.worst_sensors()
    ]


def _worst_sensors(derived: _Derived, lister: _Lister) -> str:
    rows = [[lister.name(sensor), *cells] for sensor, cells in derived.worst_sensors]
    return "### Worst sensors\n\n" + _table(["sensor", "pinball loss", "MAE", "in the interval"], rows)


def _training_data(facts: CardFacts, lister: _Lister) -> str:
    made_on, split, moments = facts.training_set, facts.done.split, facts.trained.timestamp_us
    offsets = sorted(made_on.next_offsets.items(), key=lambda item: int(item[0]))
    lines = [
        (
            f"{counted(made_on.readings, 'reading')} of {counted(made_on.sensors, 'sensor')}, "
            f"{iso_timestamp(int(moments.min()))} to {iso_timestamp(int(moments.max()))}, at version "
            f"{made_on.version} of the history table {lister.name(made_on.table)}"
        ),
        f"Topic {lister.name(made_on.topic)}, up to but not including these offsets: "
        + lister.list(offsets, lambda number: f"partition {offsets[number][0]}: {offsets[number][1]}"),
        (
            f"Weights were trained until {iso_timestamp(split.train_end_us)}, and chosen until "
            f"{iso_timestamp(split.validation_end_us)}"
        ),
        f"Sensors: {lister.list(facts.trained.sensors)}",
    ]
    return _bullets("### Training data", [*lines, *([mlflow_markdown(facts.late)] if facts.late else [])])


def _training(facts: CardFacts) -> str:
    config, options, epochs = facts.done.config, facts.options, facts.result.epochs
    adaptation = facts.done.adaptation
    weights = "random weights" if facts.started_from is None else f"the weights of version {facts.started_from}"
    lines = [
        (
            f"Preset {options.preset}, {config.num_layers} layers of {config.hidden_size} units, seed {options.seed}, "
            f"from {weights}"
        ),
    ]
    if epochs:
        best = min(epochs, key=lambda epoch: epoch.validation_loss)
        lines.append(
            f"{counted(len(epochs), 'epoch')} in {epochs[-1].seconds:.0f} s on "
            f"{mlflow_markdown(facts.result.device)}; epoch {best.epoch} was kept (validation loss "
            f"{best.validation_loss:.4g})"
        )
    lines.append(
        f"Scored as the stream forecasts: adaptation {adaptation.level}, intervals "
        f"{'calibrated' if adaptation.calibrated else 'not calibrated'}"
    )
    return _bullets("### Training", lines)


def _limits(derived: _Derived, lister: _Lister) -> str:
    """Uses that the model is not for; each line follows from the configuration, the data or the scores."""
    facts = derived.facts
    done = facts.done
    config, cadence = done.config, _duration(done.config.cadence_us / 1_000_000)
    lines = [
        f"Readings much more or less often than every {cadence}",
        (
            f"More than {counted(config.horizon_steps, 'step')} ahead, targets other than "
            f"{lister.list(config.targets)}, or other quantiles: the model has no output for them"
        ),
        "Other features, or values in another unit. Training saw "
        + lister.list(config.features, lambda number: _range(derived, lister, number)),
        (
            f"Sensors other than the {len(config.sensors):,} of the training data: the model serves them as unknown, "
            "and no score here is about them"
        ),
        (
            f"The first {config.warmup_steps} steps of a sensor, and the same after a gap of more than "
            f"{config.max_gap_steps} steps: the state starts from zero, and forecasts are marked as not warm"
        ),
    ]
    for name, steps in derived.better_steps.items():
        listed = lister.list([number + 1 for number in steps])
        lines.append(f"{plural('Step', len(steps))} {listed} ahead: {_name(facts, name)} has the lower pinball loss")
    lines += [
        f"Decisions that need exactly {covered.nominal:.0%} in the interval: it held {covered.overall:.1%} of the "
        f"values, and {covered.worst:.1%} at the sensors where it is most wrong"
        for covered in derived.intervals[:1]
    ]
    return _bullets("### Not for", lines)


def _plots(facts: CardFacts) -> str:
    images = []
    for words, name in _PLOTS:
        # Relative to the page, so that the address is right behind any host name or prefix.
        address = f"get-artifact?run_uuid={facts.run_id}&path="
        # MLflow's page shows images in their own size, so the whole plots would not fit.
        images.append(markdown_image(words, f"{address}{PREVIEWS}/{name}", f"{address}{PLOTS}/{name}"))
    return "### Plots\n\n" + "\n\n".join(images)


def _reference(facts: CardFacts, card: str) -> str:
    return f"{card} is the file {CARD_FILE.replace('_', chr(92) + '_')} of {markdown_link('the run', facts.run_url)}."


def _better_steps(done: Evaluation) -> dict[str, list[int]]:
    """Name of a baseline -> the steps (from 0) at which it has the lowest loss of all forecasts."""
    found: dict[str, list[int]] = {}
    pinball = {name: score.pooled("pinball") for name, score in done.scores.items() if name != CHAMPION}
    for step in range(done.config.horizon_steps):
        known = {name: losses[step] for name, losses in pinball.items() if np.isfinite(losses[step])}
        best = min(known, key=known.__getitem__, default=done.name)
        if best != done.name:
            found.setdefault(best, []).append(step)
    return found


def _range(derived: _Derived, lister: _Lister, number: int) -> str:
    """A feature with its smallest and largest value in the training part."""
    name, bounds = lister.name(derived.facts.done.config.features[number]), derived.ranges[number]
    return f"{name} without a value" if bounds is None else f"{name} from {bounds[0]:.6g} to {bounds[1]:.6g}"


def _name(facts: CardFacts, name: str) -> str:
    if name == CHALLENGER:
        return "this version"
    return f"version {facts.champion}, the champion" if name == CHAMPION else mlflow_markdown(name)


def _warning(sensors: int) -> str:
    return f"; with {sensors} sensors it is rough" if sensors < _FEW_SENSORS else ""


def _bracket(bounds: tuple[float, float], form: str = ".3g") -> str:
    low, high = bounds
    return f"[{low:{form}}, {high:{form}}]"


def _shown_steps(horizon: int) -> list[int]:
    """Some steps (from 0) of the horizon, evenly spread, with the first and the last."""
    return sorted({round(step) for step in np.linspace(0, horizon - 1, min(horizon, _SHOWN_STEPS))})


def _duration(seconds: float) -> str:
    """A duration in the largest unit that gives a whole number: ``24 h``, ``90 s``."""
    for unit, fewest, name in ((86_400, 2, "days"), (3_600, 1, "h"), (60, 1, "min")):
        if seconds % unit == 0 and seconds >= fewest * unit:
            return f"{seconds / unit:g} {name}"
    return f"{seconds:g} s"


def _bullets(heading: str, lines: Sequence[str]) -> str:
    return "\n".join([f"{heading}\n", *(f"- {line}." for line in lines)])

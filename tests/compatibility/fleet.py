"""``python -m tests.compatibility.fleet --base REV``: roll a live fleet from an earlier commit to this tree, and back.

The earlier commit starts the local stack, trains and registers a model, and runs three forecasters. While readings keep
arriving, some of them out of order, each forecaster is replaced by one of this tree. When the group has members of both
commits, this tree retrains and promotes, so that forecasters of the earlier commit serve a model that this tree wrote.
At the end each forecaster is replaced by one of the earlier commit.

The run passes if every reading has exactly one forecast, ``streamgru verify`` of both commits recomputes all forecasts,
no state was rebuilt, no dead letter was written, and both commits wrote the same fields and headers. Only this tree
writes the names in ``golden.NEW_HEADERS``, ``golden.NEW_POSITION_FIELDS`` and ``golden.NEW_EXPERTS``.

If the earlier commit has another ``model.experts.RULE``, each side must rebuild the other's states from the readings.
Then ``verify`` of each commit recomputes its own forecasts and counts the other's as made with other settings; a state
that starts cold is still a fault.

Both commits are driven by their command lines alone, so renames inside the code have no effect here.
"""

import argparse
import csv
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from tests.compatibility.evidence import Topics, count_faults, forecast_faults, form_faults, log_faults, paths
from tests.compatibility.golden import NAMES_FILE
from tests.compatibility.live import LivePublisher, history
from tests.compatibility.sides import COMMAND_S, REPOSITORY, Failed, Forecaster, Side, check_out
from tests.ports import free_ports

FORECASTERS: Final = ("one", "two", "three")
PARTITIONS: Final = 6
GROUP: Final = "streamgru-forecaster"
MODEL: Final = "upgrade"
READY_S: Final = 120.0
CAUGHT_UP_S: Final = 60.0
NEARLY: Final = 100  # readings, about one second of the stream
POLL_S: Final = 0.2
STATE_AUDIT: Final = Path("pipeline", "audit", "state_audit.py")  # of a tree

SETTINGS: Final = """
home = "{home}"
model_name = "{model}"
features = ["value", "other"]
targets = ["value"]
horizon_steps = 4
grace_steps = 3.0
[kafka]
partitions = {partitions}
[forecaster]
poll_alias_s = 0.5
[training]
hidden_size = 16
epochs = 2
budget_s = 5
validation_fraction = 0.2
test_fraction = 0.2
[stack]
kafka_port = {kafka}
mlflow_port = {mlflow}
prefect_port = {prefect}
"""

# Forecasts with all versions in one process without either commit's code, because a registered model brings its own.
PYFUNC: Final = """
import sys, mlflow, pandas as pd
moments = pd.date_range("2024-01-01", periods=30, freq="h", tz="UTC").astype(str)
frame = pd.DataFrame({"sensor_id": "x", "timestamp": moments, "value": range(30), "other": 1.0})
for model in sys.argv[1:]:
    made = mlflow.pyfunc.load_model(model).predict(frame)
    assert list(made)[:5] == ["sensor_id", "issued_at", "target", "step", "timestamp"], list(made)
    assert len(made) and made.notna().all(axis=None)
"""


class Upgrade:
    """One run, in a folder of its own."""

    def __init__(self, folder: Path, base: tuple[str, Path, str]) -> None:
        kafka, mlflow, prefect, *health = free_ports(3 + len(FORECASTERS))
        self._servers, self._mlflow = f"127.0.0.1:{kafka}", f"http://127.0.0.1:{mlflow}"
        settings = folder / "settings.toml"
        settings.write_text(
            SETTINGS.format(
                home=folder / "home", model=MODEL, partitions=PARTITIONS, kafka=kafka, mlflow=mlflow, prefect=prefect
            ),
            encoding="utf-8",
        )
        self._logs = folder / "logs"
        self._logs.mkdir()
        self._folder = folder
        self.base = Side(*base, settings, self._logs)
        self.today = Side("today", REPOSITORY, sys.executable, settings, self._logs)
        self._fleet = [Forecaster(name, port, folder) for name, port in zip(FORECASTERS, health, strict=True)]
        self._topics = Topics(self._servers, GROUP, PARTITIONS)
        self._counts: dict[str, list[dict[str, Any]]] = {}  # side -> content of --stats of each forecaster
        self._health: dict[str, set[str]] = {}  # side -> names in answers of /healthz
        self._faults: list[str] = []
        self._began = time.monotonic()
        # Whether each side rebuilds the other's states.
        self._other_rule = rule_of(self.base.tree) != rule_of(self.today.tree)
        # The two sides' kernels differ in the last bits of a number. An early `verify` tolerates that in forecasts, but
        # not in the adaptation of the last states.
        self._base_compares_bits = "def _differences(" not in (self.base.tree / STATE_AUDIT).read_text()

    def run(self) -> list[str]:
        """Roll forward and back, then stop the stack; return the faults, empty if the run passed."""
        publisher = None
        try:
            self._prepare()
            for each in self._fleet:
                each.start(self.base)
            self._wait(lambda: all(each.serves() for each in self._fleet), READY_S, "all forecasters serve")
            self._wait(lambda: self._topics.behind() == 0, CAUGHT_UP_S, "the history was forecast")
            publisher = LivePublisher(self._servers, "readings")
            publisher.start()
            self._say("three forecasters serve; publishing live readings")
            self._roll(self._fleet[0], self.today)
            self._retrain(self.today)
            for each in self._fleet[1:]:
                self._roll(each, self.today)
            for each in self._fleet:
                self._roll(each, self.base)
            publisher.finish()
            self._wait(lambda: self._topics.behind() == 0, CAUGHT_UP_S, "all readings were forecast")
            for each in self._fleet:
                self._stop(each)
            self._check(publisher)
        finally:
            if publisher is not None:
                publisher.abandon()
            for each in self._fleet:
                each.kill()
            self.today.run("down", check=False)
        return self._faults

    # --- steps --------------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Start the stack, publish a history and train a champion, all with the earlier commit."""
        self.base.run("up")
        self.base.run("topics", "create")
        file = self._folder / "history.csv"
        with file.open("w", newline="") as text:
            rows = csv.writer(text)
            rows.writerow(("sensor", "timestamp", "value", "other"))
            rows.writerows(history())
        self._say(f"the stack of {self.base.name} is up")
        self.base.run("replay", str(file), "--sensor-column", "sensor")
        self._retrain(self.base)

    def _retrain(self, side: Side) -> None:
        """Register a new version and make it champion. Wait until all running forecasters serve it."""
        side.run("ingest")
        side.run("retrain")
        newest = json.loads(side.run("models", "--json"))[0]
        version = newest["version"]
        if "champion" not in newest["aliases"]:
            side.run("promote", str(version))
        running = [each for each in self._fleet if each.process is not None]
        self._wait(
            lambda: all(each.health().get("model_version") == version for each in running),
            READY_S,
            f"all forecasters serve version {version}",
        )
        self._say(f"version {version} of {side.name} is champion; {len(running)} forecasters serve it")

    def _roll(self, each: Forecaster, side: Side) -> None:
        before = self._stop(each)
        each.start(side)
        self._wait(each.serves, READY_S, f"forecaster {each.name} of {side.name} serves")
        self._wait(lambda: self._topics.behind() < NEARLY, CAUGHT_UP_S, "nearly all readings were forecast")
        self._say(f"forecaster {each.name}: {before.name} → {side.name}")

    def _stop(self, each: Forecaster) -> Side:
        side = each.side
        assert side is not None
        self._health.setdefault(side.name, set()).update(paths(each.health()))
        code, counts = each.stop()
        if code != 0:
            self._add_faults([f"forecaster {each.name} of {side.name} ended with exit code {code}"])
        self._counts.setdefault(side.name, []).append(counts)
        return side

    # --- evidence -----------------------------------------------------------------------------------------------------

    def _check(self, publisher: LivePublisher) -> None:
        forecasts = [json.loads(record.value) for record in self._topics.read("forecasts")]
        expected = [(sensor, moment) for sensor, moment, *_ in history()] + publisher.sent
        versions = Counter(forecast["model"]["version"] for forecast in forecasts)
        self._say(
            f"{len(forecasts):,} forecasts of {len(expected):,} readings, by version {dict(sorted(versions.items()))}"
        )
        self._add_faults(forecast_faults(forecasts, expected))
        self._add_faults(form_faults(self._topics, other_rule=self._other_rule))
        self._add_faults(count_faults(self._counts, other_rule=self._other_rule))
        self._add_faults(log_faults(self._logs, other_rule=self._other_rule))
        if self._other_rule and not any(one["rebuilt_sensors"] for ones in self._counts.values() for one in ones):
            self._add_faults(["the rules of adaptation differ, and no state was rebuilt"])
        self._say(
            ", ".join(
                f"{sum(one[name] for ones in self._counts.values() for one in ones):,} {name}"
                for name in ("restored_sensors", "rebuilt_sensors", "swaps", "aborted")
            )
        )
        if len(versions) != 2:
            self._add_faults([f"forecasts are of versions {sorted(versions)}; two versions should have served"])
        base, today = self.base.name, self.today.name
        lost = set(self._counts[base][0]) - set(self._counts[today][0]) | self._health[base] - self._health[today]
        if lost:
            self._add_faults([f"--stats or /healthz of this tree lacks the names {sorted(lost)}"])
        self._check_models(sorted(versions))
        for side in (self.today, self.base):
            self._verify(side, len(forecasts))

    def _verify(self, side: Side, forecasts: int) -> None:
        verdict = json.loads(side.run("verify", "--json", check=False))
        others = sum(verdict["foreign"].values()) if self._other_rule else 0
        rebuilt = 0 if self._other_rule else verdict["rebuilt"]
        faults = dict(verdict["faults"])
        if self._other_rule and side is self.today:
            faults.pop("states different", None)  # the last states are the earlier commit's
        if self._base_compares_bits and side is self.base:
            faults.pop("states different", None)
        if faults or rebuilt or not verdict["recomputed"] or verdict["recomputed"] + others != forecasts:
            self._add_faults([f"verify of {side.name} found {verdict}"])
        self._say(
            f"verify of {side.name} recomputed {verdict['recomputed']:,} forecasts, and {others:,} are of the other "
            f"rule: {verdict['different']} differ "
            f"(by {verdict['largest_difference']:.1e} of the scale at most); {verdict['states']} states, "
            f"{verdict['states_different']} differ"
        )

    def _check_models(self, versions: list[int]) -> None:
        log = self._logs / "pyfunc.log"
        with log.open("wb") as output:
            done = subprocess.run(
                [sys.executable, "-c", PYFUNC, *(f"models:/{MODEL}/{version}" for version in versions)],
                cwd=self._folder,
                env=os.environ | {"MLFLOW_TRACKING_URI": self._mlflow, "PYTHONPATH": ""},
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=COMMAND_S,
                check=False,
            )
        if done.returncode:
            self._add_faults([f"MLflow cannot load the registered models, or their forecasts are wrong; see {log}"])
        self._say(f"MLflow loaded versions {versions} and forecast with them")

    # --- tools --------------------------------------------------------------------------------------------------------

    def _wait(self, condition: Callable[[], bool], timeout_s: float, goal: str) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise Failed(f"not reached within {timeout_s:g} s: {goal}")
            for each in self._fleet:
                if each.process is not None and each.process.poll() is not None:
                    raise Failed(f"forecaster {each.name} ended unexpectedly")
            time.sleep(POLL_S)

    def _add_faults(self, faults: list[str]) -> None:
        self._faults += faults
        for fault in faults:
            self._say(f"FAULT: {fault}")

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self._began:6.1f} s  {text}", flush=True)


def rule_of(tree: Path) -> str:
    """The number of the rule of adaptation in a tree of files."""
    (rule,) = re.findall(r"^RULE: Final = (\d+)$", (tree / "model" / "experts.py").read_text(), re.MULTILINE)
    return rule


def main() -> None:
    golden = json.loads(NAMES_FILE.read_text())["commit"]
    parser = argparse.ArgumentParser(prog="python -m tests.compatibility.fleet", description=__doc__)
    parser.add_argument("--base", default=golden, metavar="REV", help=f"the earlier commit; by default {golden}")
    parser.add_argument("--base-python", default=sys.executable, metavar="FILE", help="its Python interpreter")
    parser.add_argument("--trees", type=Path, default=REPOSITORY / ".streamgru" / "trees", help="folder for its files")
    parser.add_argument("--keep", action="store_true", help="keep logs and data even if the run passes")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="streamgru-upgrade-"))
    passed = False
    try:
        name, tree = check_out(given.base, given.trees.resolve())
        passed = not Upgrade(folder, (name, tree, given.base_python)).run()
    except Failed as error:
        print(f"error: {error}")
    finally:
        if given.keep or not passed:
            print(f"logs and data are in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    print("passed" if passed else "FAILED")
    sys.exit(not passed)


if __name__ == "__main__":
    main()

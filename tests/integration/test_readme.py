"""The programs of the READMEs that need a broker: a consumer of forecasts and a producer of outlooks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.kafka.topics import ensure_topics
from pipeline.settings import Settings
from tests.conftest import SettingsFactory
from tests.documents import README, ROOT, Document
from tests.integration.stream_rig import FolderChampion, publish, read_all, rounds, running, small_forecaster

pytestmark = pytest.mark.integration


def test_the_consumer_of_the_readme_prints_a_line_per_forecast(
    broker: Settings, fresh_settings: SettingsFactory, tmp_path: Path
) -> None:
    settings = fresh_settings(features=("PM2.5",), targets=("PM2.5",), horizon_steps=24)
    ensure_topics(settings)
    champion = FolderChampion(tmp_path / "champion", settings)
    champion.promote(1, small_forecaster(settings))
    publish(settings, rounds(settings, ["roof", "attic"], range(3)))
    (program,) = README.blocks("python")
    here = program.replace('"forecasts"', f'"{settings.kafka.topics.forecasts}"')
    here = here.replace("127.0.0.1:9092", settings.kafka.bootstrap_servers)
    assert here.count(settings.kafka.topics.forecasts) == here.count(settings.kafka.bootstrap_servers) == 1
    with running(settings, champion):
        process = subprocess.Popen([sys.executable, "-u", "-c", here], stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(6)]
        finally:
            process.kill()
            process.wait()
    assert sorted(line.split()[0] for line in lines) == ["attic"] * 3 + ["roof"] * 3
    assert all(" in an hour, " in line and line.endswith("in a day\n") for line in lines)


def test_the_producer_of_outlooks_sends_a_group_to_every_partition(
    broker: Settings, fresh_settings: SettingsFactory
) -> None:
    settings = fresh_settings(features=("PM2.5",), targets=("PM2.5",), kafka={"partitions": 3})
    ensure_topics(settings)
    blocks = Document(ROOT / "pipeline" / "README.md").blocks("python")
    (program,) = (block for block in blocks if "bootstrap_servers" in block)
    here = program.replace('"readings"', f'"{settings.kafka.topics.readings}"')
    here = here.replace("127.0.0.1:9092", settings.kafka.bootstrap_servers)
    subprocess.run([sys.executable, "-c", here], check=True, timeout=60)
    records = read_all(settings, settings.kafka.topics.readings)
    assert sorted(record.partition for record in records) == [0, 1, 2]
    assert {record.key for record in records} == {b"beijing"}
    assert {json.loads(record.value)["group"] for record in records} == {"beijing"}

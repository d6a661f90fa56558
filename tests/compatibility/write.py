"""``python -m tests.compatibility.write``: replace the golden files by files of this working tree's code.

Commit ccd37ab wrote the files in ``golden/``; it is the last one before modules and classes were renamed. Run this only
to compare with a later commit: check that commit out, run this, and commit the files on top. The command starts a
broker, serves each stream with a real forecaster, and reads the topics back.
"""

import argparse
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from kafka import KafkaProducer

from deploy.stack import Stack
from model.artefact import save_artefact
from model.state import state_dtype
from pipeline.kafka.clients import make_admin
from pipeline.kafka.group_positions import committed_offsets
from pipeline.kafka.topic_reader import topic_ends
from pipeline.kafka.topics import ensure_topics
from pipeline.settings import Settings
from tests.compatibility.golden import CASES, FOLDER, MODEL_VERSION, NAMES_FILE, Golden, Record, as_text, layout, newest
from tests.compatibility.names import names
from tests.compatibility.streams import chosen_settings, messages, model_of
from tests.integration.stream_rig import FolderChampion, Message, read_all, running
from tests.ports import free_port
from tests.waiting import wait_until

TOPICS = ("readings", "forecasts", "state", "dead_letters")
TIMEOUT_S = 60  # longest time to process all readings of a part


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.compatibility.write", description=__doc__)
    parser.parse_args()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    NAMES_FILE.write_text(as_text({"commit": commit, **names()}), encoding="utf-8")
    home = Path(tempfile.mkdtemp(prefix="streamgru-compatibility-"))
    servers: dict[str, Any] = {"home": home, "stack": {"kafka_port": free_port()}}
    stack = Stack(Settings(**servers))
    try:
        stack.up(("kafka",))
        for case in CASES:
            content = {"commit": commit, **_stream(case, servers)}
            (FOLDER / f"{case}.json").write_text(as_text(content), encoding="utf-8")
            print(f"{case}: {len(content['before']['readings'])} readings and {len(content['after']['readings'])}")
    finally:
        stack.down(("kafka",))
        shutil.rmtree(home)


def _stream(case: str, servers: dict[str, Any]) -> dict[str, Any]:
    """The content of a golden file: the stream up to a restart, and after it."""
    chosen = chosen_settings(case)
    golden = Golden(case, {"settings": chosen})
    settings = golden.settings(**servers)
    ensure_topics(settings)
    champion = FolderChampion(settings.home / case, settings)
    forecaster = model_of(case, settings)
    save_artefact(forecaster, golden.artefact)
    champion.promote(MODEL_VERSION, forecaster)
    content: dict[str, Any] = {
        "settings": chosen,
        "fingerprint": settings.fingerprint,
        "layout": list(layout(state_dtype(forecaster.config, settings.adaptation))),
    }
    seen: dict[str, set[tuple[int, int]]] = {topic: set() for topic in TOPICS}
    for part in ("before", "after"):
        with running(settings, champion) as serving:
            publish(settings, messages(settings, part))
            wait_until(lambda: has_caught_up(settings), TIMEOUT_S, f"all readings of {case} are processed")
        assert serving.counters.rebuilt_sensors == 0
        content[part] = _written(settings, seen) | {"committed": _committed(settings)}
    del content["before"]["forecasts"]  # forecasts after the restart show the same forms
    return content


def has_caught_up(settings: Settings) -> bool:
    """Whether every reading on the topic is processed."""
    return committed_offsets(settings) == topic_ends(settings, settings.kafka.topics.readings)


def _written(settings: Settings, seen: dict[str, set[tuple[int, int]]]) -> dict[str, Any]:
    """The new records of each topic; for the changelog, those that compaction keeps."""
    found: dict[str, Any] = {}
    for topic in TOPICS:
        records = [
            Record(each.partition, each.offset, each.key, each.value, tuple(each.headers))
            for each in read_all(settings, getattr(settings.kafka.topics, topic))
            if (each.partition, each.offset) not in seen[topic]
        ]
        seen[topic] |= {(record.partition, record.offset) for record in records}
        found[topic] = [record.as_json() for record in (newest(records) if topic == "state" else records)]
    return found


def _committed(settings: Settings) -> dict[str, Any]:
    group = settings.forecaster.group_id
    with closing(make_admin(settings)) as admin:
        found = admin.list_group_offsets([group])[group]
    return {str(where.partition): [at.offset, at.metadata] for where, at in sorted(found.items())}


def publish(settings: Settings, messages: Iterable[Message]) -> None:
    """Send messages compressed, because the topic's size limit applies to the compressed batch."""
    producer = KafkaProducer(
        bootstrap_servers=settings.kafka.bootstrap_servers, acks="all", compression_type="gzip", linger_ms=0
    )
    topic = settings.kafka.topics.readings
    for each in messages:
        producer.send(topic, each.value, each.key, list(each.headers), partition=each.partition).get(10)
    producer.close()


if __name__ == "__main__":
    main()

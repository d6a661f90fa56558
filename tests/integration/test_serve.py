"""``streamgru serve`` beside a real broker and a real forecaster: answers, events, outages."""

import contextlib
import json
import os
import signal
import threading
import time
import urllib.error
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from kafka import TopicPartition

from deploy.stack import Stack
from pipeline.kafka.clients import close_producer, make_admin, make_producer
from pipeline.kafka.topic_reader import read_topic
from pipeline.kafka.topics import ensure_topics
from pipeline.messages import Forecast, InputPosition, ModelId, StateAge
from pipeline.settings import Settings
from tests.conftest import SettingsFactory
from tests.integration.stream_rig import (
    START_US,
    FolderChampion,
    Message,
    broker_pid,
    publish,
    read_all,
    rounds,
    running,
    small_forecaster,
    wait_for_forecasts,
)
from tests.ports import free_port
from tests.serving import Browser, ServeCommand
from tests.waiting import wait_until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

SENSORS = [f"sensor/{number}" for number in range(6)]


@contextlib.contextmanager
def stream(make: SettingsFactory, folder: Path) -> Iterator[tuple[Settings, FolderChampion]]:
    """Topics and a running forecaster."""
    settings = make(features=("b", "a"), targets=("a",), horizon_steps=3, serve={"refresh_s": 0.0})
    ensure_topics(settings)
    champion = FolderChampion(folder / "champion", settings)
    champion.promote(1, small_forecaster(settings))
    with running(settings, champion):
        yield settings, champion


def committed(settings: Settings) -> dict[tuple[int, int], Any]:
    """Every committed forecast by partition and offset."""
    found = read_topic(settings, settings.kafka.topics.forecasts, {}, None)
    return {(record.partition, record.offset): record for record in found}


def first_event(serve: ServeCommand, last_id: str) -> Any:
    """The data of the first event that a browser with this id gets."""
    with Browser(serve.address, last_id=last_id) as browser:
        wait_until(lambda: browser.events, 10, "an event has arrived")
        name, data = browser.events[0]
        assert name == "reset", (name, data)
        return data


@pytest.mark.long(25)
def test_answers_are_the_committed_records(frail_settings: SettingsFactory, tmp_path: Path) -> None:
    port = free_port()
    with stream(frail_settings, tmp_path) as (settings, champion):
        publish(settings, rounds(settings, SENSORS, range(8)))
        publish(settings, [Message(b"broken", b"{", 0)])
        wait_for_forecasts(settings, 8 * len(SENSORS))
        with ServeCommand(settings, port, tmp_path) as serve, Browser(serve.address) as browser:
            serve.wait_until_ready()
            wait_until(lambda: browser.named("status") and browser.last_id, 10, "the browser is connected")
            first_id = browser.last_id
            champion.promote(2, small_forecaster(settings, seed=1))
            for step in range(8, 60):
                publish(settings, rounds(settings, SENSORS, [step]))
                if browser.named("forecasts") and browser.named("forecasts")[-1]["rows"][-1]["model"] == 2:
                    break
                time.sleep(0.2)
            sent = (step + 1) * len(SENSORS)
            wait_for_forecasts(settings, sent)
            wait_until(lambda: serve.json("/api/status")["forecasts"] == sent, 20, "all forecasts were read")
            records = committed(settings)
            assert len(records) == sent

            rows = serve.json("/api/sensors?sort=name")["rows"]
            assert [row["sensor"] for row in rows] == SENSORS
            for row in rows:
                body = serve.get(f"/api/sensor/forecast?sensor={row['sensor']}")
                assert body == records[row["partition"], row["offset"]].value
                assert body == serve.get(f"/api/forecast?partition={row['partition']}&offset={row['offset']}")
                of_sensor = [one for one in records.values() if one.key == row["sensor"].encode()]
                latest = sorted(of_sensor, key=lambda one: one.offset)
                assert row["count"] == len(latest) == step + 1
                assert serve.get(f"/api/sensor/forecast?sensor={row['sensor']}&back=3") == latest[-4].value
                assert row["surprise"] is not None
                assert row["value"] is not None

            history = serve.json(f"/api/sensor/history?sensor={SENSORS[0]}&count=5&steps=1,3&forecasts=2")
            assert history["complete"]
            assert len(history["time_ms"]) == len(history["values"]["b"]) == 5
            of_first = sorted(
                (one for one in records.values() if one.key == SENSORS[0].encode()), key=lambda one: one.offset
            )
            decoded = [json.loads(one.value) for one in of_first]
            assert history["forecasts"] == decoded[-2:]
            medians = [one["quantiles"]["a"]["0.5"] for one in decoded]
            assert history["made_before"]["1"]["a"]["median"] == [steps[0] for steps in medians[-6:-1]]
            assert history["made_before"]["3"]["a"]["median"] == [steps[2] for steps in medians[-8:-3]]
            scores = serve.json(f"/api/sensor/scores?sensor={SENSORS[0]}&count=50")["targets"][0]["steps"]
            assert [one["step"] for one in scores] == [1, 2, 3]

            assert serve.json("/api/dead-letters")["by_reason"] == {"malformed": 1}
            assert {swap["to_version"] for swap in serve.json("/api/models")["swaps"]} == {2}
            assert serve.json("/api/models")["champion"]["version"] == 2
            wait_until(lambda: serve.json("/api/status")["lag"] == 0, 10, "the lag is 0")
            live = [place for place in records if place in set(browser.rows)]
            assert browser.rows == [place for place in browser.rows if place in records]
            assert len(set(browser.rows)) == len(browser.rows) == len(live)
            swaps = [swap for data in browser.named("forecasts") for swap in data["swaps"]]
            assert len(swaps) == len({swap["partition"] for swap in swaps}) >= 1
            assert b"streamgru_serve_sensors 6.0" in serve.get("/metrics")

            assert first_event(serve, "garbage")["reason"] == "unknown-id"
            admin = make_admin(settings)
            where = TopicPartition(settings.kafka.topics.forecasts, rows[0]["partition"])
            admin.delete_records({where: rows[0]["offset"]})
            admin.close()
            assert first_event(serve, first_id)["reason"] == "deleted"
            began = time.monotonic()
            serve.process.send_signal(signal.SIGTERM)
            assert serve.process.wait(10) == 0
            assert time.monotonic() - began < 3
            assert "Traceback" not in serve.log


@pytest.mark.long(60)
def test_a_browser_misses_nothing_through_lost_connections_restarts_and_outages(
    frail_settings: SettingsFactory, tmp_path: Path
) -> None:
    port, stopped = free_port(), threading.Event()
    with stream(frail_settings, tmp_path) as (settings, _):
        sent = publish(settings, rounds(settings, SENSORS, [0]))
        wait_for_forecasts(settings, sent)
        step = 1

        def feed(count: int) -> int:
            nonlocal step, sent
            for _ in range(count):
                sent += publish(settings, rounds(settings, SENSORS, [step]))
                step += 1
            return sent

        with ServeCommand(settings, port, tmp_path) as first, Browser(first.address) as browser:
            first.wait_until_ready()
            wait_until(lambda: browser.named("status"), 10, "the browser is connected")
            for _ in range(3):  # lost connections
                feed(2)
                browser.cut()
            wait_until(lambda: len(browser.rows) >= sent - len(SENSORS), 20, "the browser has seen all forecasts")
            first.process.kill()  # a killed process, and forecasts while it is down
            first.process.wait()
            wait_for_forecasts(settings, feed(4))
            with ServeCommand(settings, port, tmp_path) as second:
                second.wait_until_ready()
                wait_until(lambda: len(browser.rows) >= sent - len(SENSORS), 20, "the browser has seen all forecasts")
                begin = len(browser.events)  # a broker that dies
                os.kill(broker_pid(settings), signal.SIGKILL)
                killed_s = time.time()

                def shown(stale: bool) -> float | None:
                    found = [
                        at
                        for (name, data), at in zip(browser.events[begin:], browser.arrived_s[begin:], strict=False)
                        if name == "status" and data["stale"] == stale and at > killed_s
                    ]
                    return found[0] if found else None

                stale_s = wait_until(lambda: shown(True), 15, "the browser is told that the data are stale")
                assert stale_s - killed_s <= 10
                with pytest.raises(urllib.error.HTTPError, match="503"):
                    second.get("/readyz")
                Stack(settings).up(("kafka",))
                begin = len(browser.events)
                wait_until(lambda: shown(False), 60, "the browser is told that the data are fresh")
                feed(3)
                wait_for_forecasts(settings, sent, 90)
                wait_until(lambda: len(browser.rows) >= sent - len(SENSORS), 30, "the browser has seen all forecasts")
                assert "Traceback" not in second.log
        stopped.set()
        everything = read_all(settings, settings.kafka.topics.forecasts)
        assert len(everything) == sent
        first_round = dict.fromkeys(SENSORS, 0)
        missed = [
            (one.partition, one.offset) for one in everything if (one.partition, one.offset) not in set(browser.rows)
        ]
        assert len(missed) == len(first_round)  # those that were committed before the browser came
        assert len(set(browser.rows)) == len(browser.rows)
        for partition in range(settings.kafka.partitions):
            of_partition = [offset for number, offset in browser.rows if number == partition]
            assert of_partition == sorted(of_partition)
        assert browser.connections >= 5
        assert not browser.named("reset")


def forecast_of(settings: Settings, sensor: str, step: int, partition: int, offset: int) -> bytes:
    """The value of a forecast, as a forecaster writes it."""
    forecast = Forecast(
        sensor_id=sensor,
        issued_at=datetime.fromtimestamp(START_US // 1_000_000 + step * settings.cadence_s, UTC),
        cadence_s=settings.cadence_s,
        quantiles={"a": {"0.1": [0.0] * 3, "0.5": [1.0] * 3, "0.9": [2.0] * 3}},
        model=ModelId("streamgru", 1),
        settings=settings.fingerprint,
        input=InputPosition(settings.kafka.topics.readings, partition, offset),
        state=StateAge(0, step, True),
    )
    return msgspec.json.encode(forecast)


@pytest.mark.long(25)
def test_new_partitions_and_new_topics_are_read_from_scratch(frail_settings: SettingsFactory, tmp_path: Path) -> None:
    """Also with records on the topics that no forecaster writes."""
    settings = frail_settings(
        features=("a",), targets=("a",), horizon_steps=3, kafka={"partitions": 1}, serve={"refresh_s": 0.0}
    )
    topics = settings.kafka.topics
    ensure_topics(settings)
    admin = make_admin(settings)

    def write(topic: str, *values: bytes | None, partition: int = 0) -> None:
        producer = make_producer(settings)
        for value in values:
            producer.send(topic, value, b"key", partition=partition).get(10)
        close_producer(producer)

    hostile = (None, b"", b"{", b"\xff" * 100, forecast_of(settings, "old", 0, 0, 2**63), b"[" * 100_000)
    write(topics.forecasts, *hostile, *(forecast_of(settings, "old", step, 0, step) for step in range(5)))
    write(topics.dead_letters, None, b"x")
    with ServeCommand(settings, free_port(), tmp_path) as serve, Browser(serve.address) as browser:
        serve.wait_until_ready()
        assert serve.json("/api/sensor?sensor=old")["count"] == 5
        assert b"streamgru_serve_unreadable_forecasts_total 6.0" in serve.get("/metrics")
        with pytest.raises(urllib.error.HTTPError, match="404"):
            serve.get("/api/forecast?partition=0&offset=11")
        wait_until(lambda: browser.named("status"), 10, "the browser is connected")

        admin.delete_topics([topics.forecasts])
        wait_until(lambda: topics.forecasts not in admin.list_topics(), 30, "the topic was deleted")
        ensure_topics(settings)
        write(topics.forecasts, *(forecast_of(settings, "new", step, 0, step) for step in range(3)))
        wait_until(lambda: browser.named("reset"), 30, "the browser is told to load everything again")
        wait_until(lambda: serve.json("/api/sensors")["total"] == 1, 10, "the new topic is read")
        assert serve.json("/api/sensors")["rows"][0]["sensor"] == "new"
        # The process may have looked the end up before the third forecast was written.
        history = "/api/sensor/history?sensor=new"
        wait_until(lambda: len(serve.json(history)["time_ms"]) == 3, 10, "all forecasts of the new topic are read")

        for topic in (topics.readings, topics.forecasts):
            admin.create_partitions({topic: 2})
        write(topics.forecasts, forecast_of(settings, "added", 0, 1, 0), partition=1)
        wait_until(lambda: serve.json("/api/sensors")["total"] == 2, 40, "the new partition is read")
        both = ["recreated", "recreated"]
        wait_until(lambda: [data["reason"] for data in browser.named("reset")] == both, 20, "both resets were told")
        assert serve.process.poll() is None
        assert "Traceback" not in serve.log
    admin.close()

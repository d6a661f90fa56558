"""The AsyncAPI document is valid by AsyncAPI's own JSON Schema, follows the settings and has no credentials."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from click.testing import CliRunner

from deploy.commands.topics import schema
from deploy.context import Context
from pipeline.asyncapi import asyncapi_document
from pipeline.dead_letter_form import DeadLetterHeaders, dead_letter
from pipeline.errors import KafkaError
from pipeline.kafka.topics import plan_topics
from pipeline.messages import InputPosition, Rejected, json_schemas
from pipeline.settings import Settings
from pipeline.unreadable_batch import BATCH_REASONS, UnreadableBatch

OFFICIAL = jsonschema.Draft7Validator(json.loads((Path(__file__).parents[1] / "asyncapi" / "3.1.0.json").read_text()))

DEFAULTS = Settings()
FLAT = Settings(
    features=["a", "b"],
    targets=["a"],
    quantiles=[0.025, 0.5],
    kafka={"topics": {"readings": "in.put", "flat_forecasts": "rows"}, "partitions": 3, "retention_s": 3_600},
    forecaster={"flat_format": "connect"},
)
TEXT = Settings(readings={"format": "text", "sensor": "@key", "time": "@record_timestamp", "fields": {"value": "."}})
SECRET = Settings(
    kafka={
        "bootstrap_servers": "one:9092, SASL_SSL://name:secret-a@two:9093",
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_username": "secret-b",
        "sasl_password": "secret-c",
    },
    readings={
        "format": "avro",
        "sensor": "device",
        "registry_url": "http://name:secret-d@registry:8081/apis?token=secret-e, http://name:secret-f@other",
        "registry_username": "secret-g",
        "registry_password": "secret-h",
        "registry_options": {"bearer.auth.token": "secret-i"},
    },
)
CERTIFICATE = Settings(kafka={"security_protocol": "SSL", "ssl_certfile": "client.pem"})
OUTLOOKS = Settings(outlooks={"covariates": ["TEMP"], "groups": {"city": ["roof"]}}, readings=TEXT.readings)
ALL = {
    "defaults": DEFAULTS,
    "flat": FLAT,
    "text": TEXT,
    "secret": SECRET,
    "certificate": CERTIFICATE,
    "outlooks": OUTLOOKS,
}


def resolved(node: Any, document: dict[str, Any]) -> Any:
    """A part of the document with the target of each reference in its place, as AsyncAPI's parser reads it."""
    if isinstance(node, list):
        return [resolved(each, document) for each in node]
    if not isinstance(node, dict):
        return node
    if "$ref" in node:
        target: Any = document
        for name in node["$ref"].removeprefix("#/").split("/"):
            target = target[name]
        return resolved(target, document)
    return {name: resolved(each, document) for name, each in node.items()}


def faults(document: dict[str, Any]) -> list[str]:
    return [f"{error.json_path}: {error.message[:200]}" for error in OFFICIAL.iter_errors(document)]


def texts(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for name, each in node.items():
            yield name
            yield from texts(each)
    elif isinstance(node, list):
        for each in node:
            yield from texts(each)
    else:
        yield str(node)


@pytest.mark.parametrize("settings", ALL.values(), ids=ALL)
def test_the_document_is_valid_with_and_without_its_references(settings: Settings) -> None:
    document = asyncapi_document(settings)
    assert faults(document) == []
    # Operations keep their references, which the schema asks for; here they only have to lead somewhere.
    assert resolved(document["operations"], document)
    written_out = {part: resolved(document[part], document) for part in ("servers", "channels", "components")}
    assert faults(document | written_out) == []


def test_the_official_schema_refuses_a_wrong_document() -> None:
    document = asyncapi_document(DEFAULTS)
    document["channels"]["forecasts"]["bindings"]["kafka"]["partitions"] = 0
    document["operations"]["sendForecasts"]["action"] = "write"
    assert [fault.partition(":")[0] for fault in faults(document)] == [
        "$.channels.forecasts",
        "$.operations.sendForecasts",
    ]


@pytest.mark.parametrize("settings", ALL.values(), ids=ALL)
def test_each_topic_is_a_channel_with_its_planned_settings_and_operations(settings: Settings) -> None:
    document = asyncapi_document(settings)
    channels = {channel["address"]: (name, channel) for name, channel in document["channels"].items()}
    assert list(channels) == [plan.name for plan in plan_topics(settings)]
    for plan in plan_topics(settings):
        name, channel = channels[plan.name]
        binding = channel["bindings"]["kafka"]
        assert binding["partitions"] == settings.kafka.partitions
        found = binding["topicConfiguration"]
        (policy,) = found.pop("cleanup.policy")
        planned = {setting.name: setting.value for setting in plan.settings}
        assert {"cleanup.policy": policy, **{key: str(value) for key, value in found.items()}} == planned
        reference = f"#/channels/{name}"
        operations = [each for each in document["operations"].values() if each["channel"]["$ref"] == reference]
        assert "send" in {operation["action"] for operation in operations}
        sent = {message["$ref"].rpartition("/")[2] for operation in operations for message in operation["messages"]}
        assert sent == set(channel["messages"])
    (group,) = [each["bindings"]["kafka"]["groupId"] for each in document["operations"].values() if "bindings" in each]
    assert group["const"] == settings.forecaster.group_id


def test_the_schemas_of_messages_are_those_of_the_json_schema() -> None:
    components = asyncapi_document(DEFAULTS)["components"]
    ours = json_schemas()
    for name, definition in ours["$defs"].items():
        text = json.dumps(components["schemas"][name]).replace("#/components/schemas/", "#/$defs/")
        assert json.loads(text) == definition
    for message, kind in (("reading", "ReadingMessage"), ("forecast", "Forecast")):
        assert ours[message]["$ref"] == f"#/$defs/{kind}"
        assert components["messages"][message]["payload"]["$ref"] == f"#/components/schemas/{kind}"


def test_the_headers_of_dead_letters_are_described_in_their_order() -> None:
    described = [field.encode_name for field in msgspec.structs.fields(DeadLetterHeaders)]
    position = InputPosition("readings", 0, 1)
    rejected = Rejected(BATCH_REASONS[0], "words", 3)
    batch = UnreadableBatch.of(b"batch", rejected.reason, rejected.detail, first_offset=1, last_offset=3, records=3)
    written = [name for name, _ in dead_letter(None, batch, (), rejected, position, 1).headers]
    assert written == described


def test_credentials_are_left_out() -> None:
    document = asyncapi_document(SECRET)
    assert [text for text in texts(document) if "secret" in text] == []
    assert [server["host"] for server in document["servers"].values()] == ["one:9092", "two:9093"]
    assert {server["protocol"] for server in document["servers"].values()} == {"kafka-secure"}
    assert document["servers"]["broker1"]["bindings"]["kafka"]["schemaRegistryUrl"] == "http://registry:8081/apis"
    assert document["components"]["securitySchemes"] == {"login": {"type": "scramSha512"}}
    assert document["components"]["messages"]["foreignReading"]["x-mapping"] == {"format": "avro", "sensor": "device"}


def test_messages_of_other_systems_are_described_beside_published_readings() -> None:
    document = asyncapi_document(TEXT)
    assert list(document["channels"]["readings"]["messages"]) == ["foreignReading", "reading"]
    assert document["components"]["messages"]["foreignReading"]["contentType"] == "text/plain"
    own = resolved(document["components"]["messages"]["reading"]["headers"], document)
    assert own["required"] == ["streamgru-form"]


def test_outlooks_are_described_if_the_settings_name_covariates() -> None:
    document = asyncapi_document(OUTLOOKS)
    channel = document["channels"]["readings"]
    assert list(channel["messages"]) == ["foreignReading", "reading", "outlook"]
    assert channel["x-covariates"] == ["TEMP"]
    described = resolved(document["components"]["messages"]["outlook"], document)
    assert described["payload"]["required"] == ["issued_at", "outlook"]
    assert described["headers"]["required"] == ["streamgru-form"]
    assert "outlook" not in asyncapi_document(DEFAULTS)["components"]["messages"]


def test_the_command_prints_the_document_of_the_settings() -> None:
    printed = CliRunner().invoke(schema, ["--asyncapi"], obj=Context(lambda: FLAT))
    assert printed.exit_code == 0, printed.output
    assert json.loads(printed.output) == asyncapi_document(FLAT)
    refused = CliRunner().invoke(schema, ["--asyncapi", "reading"], obj=Context(lambda: FLAT))
    assert refused.exit_code == 2
    assert "leave out 'reading'" in refused.output


def test_an_address_without_a_port_is_refused() -> None:
    with pytest.raises(KafkaError, match="'broker' is not host:port"):
        asyncapi_document(Settings(kafka={"bootstrap_servers": "broker"}))

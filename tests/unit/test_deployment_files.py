"""Commands, settings and paths in the compose file and the Kubernetes manifests exist in this project."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.cli import COMMANDS
from pipeline.settings import Settings, load_settings

DEPLOY = Path(__file__).parents[2] / "deploy"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))


def containers() -> Iterator[tuple[str, list[str], dict[str, str]]]:
    """Every container with our image: its place, its command and its variables."""
    for name, service in yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"].items():
        if service.get("image") == "streamgru" and "entrypoint" not in service:
            yield f"compose.yaml: {name}", service["command"], service["environment"]
    for path in MANIFESTS:
        for document in yaml.safe_load_all(path.read_text()):
            for container in document.get("spec", {}).get("template", {}).get("spec", {}).get("containers", []):
                # pod-0 stands for values that the cluster fills in.
                variables = {item["name"]: item.get("value", "pod-0") for item in container["env"]}
                yield f"{path.name}: {container['name']}", container["args"], variables


CONTAINERS = [pytest.param(command, variables, id=where) for where, command, variables in containers()]


def test_compose_and_kubernetes_both_deploy_each_part() -> None:
    started = [(param.id or "").split(":")[0] + " " + param.values[0][0] for param in CONTAINERS]
    for command in ("topics", "schedule", "forecast"):
        assert f"compose.yaml {command}" in started
        assert any(entry.endswith(f".yaml {command}") and "compose" not in entry for entry in started)


@pytest.mark.parametrize(("command", "variables"), CONTAINERS)
def test_a_container_runs_an_existing_command_with_existing_settings(
    command: list[str], variables: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command[0] in COMMANDS
    for name, value in variables.items():
        if name != "STREAMGRU_SETTINGS":
            monkeypatch.setenv(name, value)
    settings = load_settings()
    dumped = settings.model_dump_json()
    for name, value in variables.items():
        if name != "STREAMGRU_SETTINGS":
            assert value in dumped, f"{name} sets nothing"


@pytest.mark.parametrize(
    "path", [DEPLOY / "kubernetes" / "settings.toml", DEPLOY / "beijing.toml"], ids=lambda p: p.name
)
def test_a_settings_file_is_valid(path: Path) -> None:
    assert isinstance(load_settings(path), Settings)


def test_the_compose_broker_has_the_properties_of_the_embedded_one() -> None:
    from deploy.broker import Broker

    environment: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["kafka"][
        "environment"
    ]
    embedded = Broker(Settings()).properties(Path("data"))
    for key in ("auto.create.topics.enable", "log.retention.ms", "message.max.bytes", "replica.fetch.max.bytes"):
        assert str(environment["KAFKA_" + key.upper().replace(".", "_")]) == str(embedded[key])


def test_the_compose_prefect_keeps_its_leases_in_the_storage_of_the_local_one(tmp_path: Path) -> None:
    from deploy.servers import PrefectServer

    prefect = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["prefect"]
    name = "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"
    local = PrefectServer(Settings(home=tmp_path)).prepare(lambda *_, **__: None)
    assert prefect["environment"][name] == local.environment[name]
    assert f"prefect:{prefect['environment']['PREFECT_HOME']}" in prefect["volumes"]


def test_the_probes_use_the_port_and_paths_of_the_forecaster() -> None:
    forecaster = load_settings(DEPLOY / "kubernetes" / "settings.toml").forecaster
    manifest = next(yaml.safe_load_all((DEPLOY / "kubernetes" / "forecaster.yaml").read_text()))
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    assert container["ports"] == [{"name": "health", "containerPort": forecaster.health_port}]
    assert forecaster.health_host == "0.0.0.0"
    probes = {name: container[name]["httpGet"] for name in ("livenessProbe", "readinessProbe")}
    assert {probe["port"] for probe in probes.values()} == {"health"}
    assert (probes["livenessProbe"]["path"], probes["readinessProbe"]["path"]) == ("/healthz", "/readyz")


def test_the_port_of_the_scheduler_is_the_one_in_the_settings() -> None:
    schedules = load_settings(DEPLOY / "kubernetes" / "settings.toml").schedules
    manifest = next(yaml.safe_load_all((DEPLOY / "kubernetes" / "scheduler.yaml").read_text()))
    (container,) = manifest["spec"]["template"]["spec"]["containers"]
    assert container["ports"] == [{"name": "health", "containerPort": schedules.health_port}]
    assert schedules.health_host == "0.0.0.0"


def test_the_kustomization_lists_every_manifest() -> None:
    kustomization = yaml.safe_load((DEPLOY / "kubernetes" / "kustomization.yaml").read_text())
    assert set(kustomization["resources"]) == {path.name for path in MANIFESTS} - {"kustomization.yaml"}

"""The dashboard, the alert rules and the Prometheus configuration name metrics, labels and states that exist."""

import json
import re
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from deploy.serve.event_hub import EventHub
from deploy.serve.metrics import ServeMetrics
from flows.run_statistics import RunStatistics
from flows.schedule_health import answers as schedule_answers
from pipeline.forecaster.health import answers as forecaster_answers
from pipeline.live.view import LiveView
from pipeline.observability.exposition import Exposition
from pipeline.settings import Settings
from pipeline.settings.sections import MonitorSettings
from tests.unit.test_forecaster_metrics import full_statistics, lagging_monitor

DEPLOY = Path(__file__).parents[2] / "deploy"
FOLDER = DEPLOY / "observability"
RULES = yaml.safe_load((FOLDER / "alerts.yml").read_text(encoding="utf-8"))
PROMETHEUS = yaml.safe_load((FOLDER / "prometheus.yml").read_text(encoding="utf-8"))
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text(encoding="utf-8"))
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
OF_TARGETS = {"job", "instance"}  # labels that Prometheus adds to every series
# Keywords and functions of PromQL; a new one in an expression must be added.
KEYWORDS = {"and", "or", "unless", "by", "on", "without", "bool"}
FUNCTIONS = {"sum", "count", "absent", "increase", "rate", "delta", "changes", "histogram_quantile", "time"}


def expositions() -> list[str]:
    """GET /metrics of each process, after it has counted everything."""
    monitor = lagging_monitor(2)
    flows = {"ingest": 1.0, "retrain": 2.0}
    statistics = RunStatistics(running={"ingest": 1}, succeeded_at=flows, last_run_s=flows)
    pages = [
        forecaster_answers("streamgru", full_statistics(), lambda: monitor)["/metrics"](""),
        schedule_answers(statistics, MonitorSettings())["/metrics"](""),
    ]
    settings = Settings()
    view = LiveView(settings, time.time)
    view.set_ends({0: 5}, {0: 5}, {0: 3})
    serve = Exposition("serve", ServeMetrics(settings, view, EventHub(settings, view)))
    return [page.body.decode() for page in (*pages, serve.render())]


def series() -> dict[str, dict[str, set[str]]]:
    """Name of a series -> label -> its values."""
    found: dict[str, dict[str, set[str]]] = defaultdict(dict)
    for body in expositions():
        for family in text_string_to_metric_families(body):
            for sample in family.samples:
                labels = found[sample.name]
                for label, value in sample.labels.items():
                    labels.setdefault(label, set()).add(value)
    jobs = {job["job_name"] for job in PROMETHEUS["scrape_configs"]}
    found["up"] = {"job": jobs}  # Prometheus makes it
    return found


class Query(NamedTuple):
    """The metrics with their matchers (label, operator, value), and the labels by which an expression groups."""

    selectors: list[tuple[str, list[tuple[str, str, str]]]]
    grouping: set[str]


def parse(expression: str) -> Query:
    rest = re.sub(r"\[[^\]]*\]", "", expression)
    grouping: set[str] = set()

    def drop_grouping(found: re.Match[str]) -> str:
        grouping.update(re.findall(r"\w+", found[1]))
        return " "

    rest = re.sub(r"\b(?:by|on|without|group_left)\s*\(([^)]*)\)", drop_grouping, rest)
    selectors = []
    for name, call, matchers in re.findall(r"(?<![\w.$])([a-zA-Z_]\w*)\s*(\()?(?:\{([^}]*)\})?", rest):
        if call:
            assert name in FUNCTIONS, f"{name} is an unknown function: {expression}"
        elif name not in KEYWORDS:
            selectors.append((name, re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"', matchers)))
    return Query(selectors, grouping)


def alerts() -> list[dict[str, Any]]:
    return [rule for group in RULES["groups"] for rule in group["rules"]]


def expressions() -> Iterator[tuple[str, str, set[str]]]:
    """Title, expression and the labels that its texts show, of each alert and each query of the dashboard."""
    for rule in alerts():
        texts = " ".join(rule["annotations"].values())
        yield rule["alert"], rule["expr"], set(re.findall(r"\$labels\.(\w+)", texts))
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"], set(re.findall(r"\{\{\s*(\w+)\s*\}\}", target["legendFormat"]))
    for annotation in DASHBOARD["annotations"]["list"]:
        yield annotation["name"], annotation["expr"], set()


CASES = [pytest.param(expression, shown, id=title) for title, expression, shown in expressions()]


@pytest.mark.parametrize(("expression", "shown"), CASES)
def test_a_query_names_existing_metrics_labels_and_values(expression: str, shown: set[str]) -> None:
    known = series()
    query = parse(expression)
    assert query.selectors
    available = set(OF_TARGETS)
    for name, matchers in query.selectors:
        assert name in known, f"no process serves {name}"
        available |= known[name].keys()
        for label, operator, value in matchers:
            values = known[name].get(label)
            assert values is not None, f"{name} has no label {label}"
            alternatives = value.split("|") if "~" in operator else [value]
            assert set(alternatives) <= values, f"{name} never has {label}={value}"
    assert query.grouping <= available, f"{query.grouping - available} are labels of no metric in {expression}"
    if re.search(r"\b(?:sum|count)\b", expression):
        assert shown <= query.grouping, f"{expression} drops the labels {shown - query.grouping}"
    assert shown <= available


def test_the_parser_of_this_test_finds_wrong_names() -> None:
    query = parse('sum by (le) (rate(nothing_bucket{state=~"a|b"}[$__rate_interval])) > 5 and on (flow) other == 1')
    assert query.selectors == [("nothing_bucket", [("state", "=~", "a|b")]), ("other", [])]
    assert query.grouping == {"le", "flow"}


def test_each_asked_for_statistic_is_on_the_dashboard() -> None:
    shown = {name for _, expression, _ in expressions() for name, _ in parse(expression).selectors}
    ours = {name for name in series() if name.startswith("streamgru_") and not name.endswith(("_sum", "_count"))}
    rare = {
        "streamgru_cold_sensors_total",
        "streamgru_flow_last_success_duration_seconds",
        "streamgru_ignored_features_total",
        "streamgru_last_commit_timestamp_seconds",
        "streamgru_last_model_swap_pause_seconds",
        "streamgru_last_poll_timestamp_seconds",
        "streamgru_last_restore_seconds",
        "streamgru_rebuilt_sensors_total",
        "streamgru_restored_sensors_total",
        "streamgru_unused_outlooks_total",
        "streamgru_withheld_values_total",
    }
    of_the_page = {name for name in ours if name.startswith("streamgru_serve_")}  # the live page shows these itself
    assert ours - shown - of_the_page == rare


def test_alerts_have_distinct_names_a_severity_and_two_sentences() -> None:
    names = [rule["alert"] for rule in alerts()]
    assert len(set(names)) == len(names) > 10
    for rule in alerts():
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"].keys() == {"summary", "description"}
        assert all(text.endswith(".") for text in rule["annotations"].values())


def test_panels_do_not_overlap_and_explain_themselves() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken
        assert at["x"] + at["w"] <= 24
        taken |= cells
        assert panel["description"].endswith(".")
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_prometheus_asks_the_ports_of_the_compose_services() -> None:
    asked = {}
    for job in PROMETHEUS["scrape_configs"]:
        for found in job.get("dns_sd_configs", []):
            asked[found["names"][0]] = str(found["port"])
        for found in job.get("static_configs", []):
            asked |= dict(target.split(":") for target in found["targets"])
    ports = {
        name: value
        for name, service in COMPOSE["services"].items()
        for variable, value in (service.get("environment") or {}).items()
        if variable.startswith("STREAMGRU_") and variable.endswith(("__HEALTH_PORT", "_SERVE__PORT"))
    }
    assert asked == ports


def test_the_compose_file_mounts_each_file_and_pins_each_image() -> None:
    mounted = set()
    for name in ("prometheus", "grafana"):
        service = COMPOSE["services"][name]
        assert service["profiles"] == ["observability"]
        assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+\.\d+", service["image"])
        mounted |= {volume.split(":")[0] for volume in service["volumes"] if volume.startswith("./")}
    assert mounted == {f"./observability/{path.name}" for path in FOLDER.iterdir()}
    assert PROMETHEUS["rule_files"][0] in COMPOSE["services"]["prometheus"]["volumes"][1]


@pytest.mark.parametrize("name", ["forecaster", "scheduler"])
def test_the_annotations_of_a_pod_name_its_port(name: str) -> None:
    manifest = next(yaml.safe_load_all((DEPLOY / "kubernetes" / f"{name}.yaml").read_text(encoding="utf-8")))
    template = manifest["spec"]["template"]
    annotations = template["metadata"]["annotations"]
    (port,) = template["spec"]["containers"][0]["ports"]
    assert annotations == {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": str(port["containerPort"]),
        "prometheus.io/path": "/metrics",
    }

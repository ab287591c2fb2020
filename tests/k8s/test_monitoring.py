"""Dashboards and alerts ask for metrics that there are, by labels that they have."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import promql_parser
import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from ray.util.metrics import Counter, Histogram

from cluster import metrics
from tests.support.manifests import K8S, kustomize

FOLDER = K8S / "monitoring"
PROMTOOL = shutil.which("promtool")
NAME = re.compile(r"\b(?:(?:ray_rushes|kube|kuberay)_|rushes:)\w+")
MADE = re.compile(r'"(\w+)", "\$1')
"""A label that an expression makes of another."""
OF_EVERY_SERIES = {"namespace", "SessionName"}
"""By the PodMonitor, and by Ray: the cluster."""
OF_PROMETHEUS = {"le"}
OF_KUBERNETES = {
    "kube_job_created": {"namespace", "job_name"},
    "kube_job_failed": {"namespace", "job_name", "condition"},
    "kube_job_owner": {"namespace", "job_name", "owner_kind", "owner_name"},
    "kube_job_spec_active_deadline_seconds": {"namespace", "job_name"},
    "kube_job_status_completion_time": {"namespace", "job_name"},
    "kube_cronjob_created": {"namespace", "cronjob"},
    "kube_cronjob_status_last_schedule_time": {"namespace", "cronjob"},
    "kuberay_job_deployment_status": {"namespace", "name", "deployment_status"},
}
"""What is asked of kube-state-metrics and of KubeRay's operator, by their own documents."""
RECORDED = {"rushes:job_night": {"job_name", "night"}}


TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
DURATION = {"type": "string", "pattern": r"^(\d+(ms|[smhdwy]))+$"}


def only(required: list[str], **properties: Any) -> dict[str, Any]:
    """Return the schema of an object that has these properties and no other."""
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def many(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": 1}


SPECS = {
    "PodMonitor": only(
        ["selector", "podMetricsEndpoints"],
        selector=only([], matchExpressions=many({"type": "object"}), matchLabels=TEXTS),
        podMetricsEndpoints=many(
            only(["port"], port={"type": "string"}, interval=DURATION, path={"type": "string"})
        ),
    ),
    "PrometheusRule": only(
        ["groups"],
        groups=many(
            only(
                ["name", "rules"],
                name={"type": "string"},
                rules=many(
                    {
                        "oneOf": [
                            only(
                                ["alert", "expr"],
                                alert={"type": "string"},
                                expr={"type": "string"},
                                labels=TEXTS,
                                annotations=TEXTS,
                                **{"for": DURATION},
                            ),
                            only(
                                ["record", "expr"],
                                record={"type": "string"},
                                expr={"type": "string"},
                            ),
                        ]
                    }
                ),
            )
        ),
    ),
}
"""Of the Prometheus operator's kinds, monitoring.coreos.com/v1, the fields that are used here."""


def list_series() -> dict[str, set[str]]:
    """Return every series that the table's metrics are exported as, and Kubernetes', by labels."""
    series = OF_KUBERNETES | RECORDED
    for each in metrics.ALL:
        name, labels = f"ray_{each.info['name']}", OF_EVERY_SERIES | set(each.info["tag_keys"])
        if isinstance(each, Counter):
            series[f"{name}_total"] = labels
        elif isinstance(each, Histogram):
            series |= {f"{name}_{end}": labels for end in ("sum", "count")}
            series[f"{name}_bucket"] = labels | OF_PROMETHEUS
        else:
            series[name] = labels
    return series


def list_expressions() -> Iterator[tuple[str, str]]:
    """Yield every expression of the alerts and of the dashboard, and where it stands."""
    (group,) = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["spec"]["groups"]
    for rule in group["rules"]:
        yield rule.get("alert") or rule["record"], rule["expr"]
    for panel in json.loads((FOLDER / "rushes.json").read_text())["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]


EXPRESSIONS = list(list_expressions())


@pytest.mark.parametrize(("where", "expression"), EXPRESSIONS)
def test_an_expression_asks_for_what_is_there(where: str, expression: str) -> None:
    promql_parser.parse(expression)
    assert list(find_unknown(expression)) == []


@pytest.mark.parametrize(
    "wrong",
    [
        "sum(ray_rushes_clip)",
        "sum(rate(ray_rushes_steps[5m]))",
        'ray_rushes_clips{status="waiting"}',
        "kube_job_fail",
        'kube_job_failed{job="night"}',
        "max by (night) (rushes:job_nights)",
        "max by (evening) (rushes:job_night)",
        "sum by (layuot) (ray_rushes_step_seconds_sum)",
        "histogram_quantile(0.5, sum by (le) (rate(ray_rushes_step_seconds_sum[5m])))",
    ],
)
def test_what_is_not_there_is_found(wrong: str) -> None:
    assert list(find_unknown(wrong))


def find_unknown(expression: str) -> Iterator[str]:
    """Yield what an expression names that no series has: a metric, or a label."""
    series = list_series()
    names = set(NAME.findall(expression))
    yield from names - series.keys()
    known = set(MADE.findall(expression)).union(*(series.get(name, set()) for name in names))
    asked = set(re.findall(r"(\w+)\s*(?:=|!=|=~|!~)\s*\"", expression))
    for labels in re.findall(r"\b(?:by|without|on|ignoring) \(([^)]*)\)", expression):
        asked |= {label.strip() for label in labels.split(",")} - {""}
    yield from asked - known


def test_what_is_recorded_is_what_is_asked_for() -> None:
    (group,) = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["spec"]["groups"]
    recorded = {rule["record"] for rule in group["rules"] if "record" in rule}
    asked = {name for _, expr in EXPRESSIONS for name in NAME.findall(expr)}
    assert recorded == RECORDED.keys() == {name for name in asked if ":" in name}


def test_every_metric_is_shown_or_watched() -> None:
    shown = " ".join(expression for _, expression in EXPRESSIONS)
    assert [
        each.info["name"] for each in metrics.ALL if f"ray_{each.info['name']}" not in shown
    ] == []


def test_the_table_has_all_of_them() -> None:
    kinds = tuple({type(each) for each in metrics.ALL})
    found = [each for each in vars(metrics).values() if isinstance(each, kinds)]
    assert found == list(metrics.ALL)


def test_a_median_is_known_to_a_quarter() -> None:
    histograms = [each for each in metrics.ALL if isinstance(each, Histogram)]
    assert histograms
    for each in histograms:
        bounds = each.info["boundaries"]
        assert all(high / low < 1.65 for low, high in pairwise(bounds)), each.info["name"]


def test_each_panel_has_a_place_of_its_own() -> None:
    panels = json.loads((FOLDER / "rushes.json").read_text())["panels"]
    cells = [
        (x, y)
        for each in panels
        for x in range(each["gridPos"]["x"], each["gridPos"]["x"] + each["gridPos"]["w"])
        for y in range(each["gridPos"]["y"], each["gridPos"]["y"] + each["gridPos"]["h"])
    ]
    assert len(cells) == len(set(cells))
    assert all(0 <= x < 24 for x, _ in cells)
    assert len({each["id"] for each in panels}) == len(panels)


def test_the_prometheus_stack_sees_them() -> None:
    for each in yaml.safe_load_all(kustomize(FOLDER)):
        assert each["metadata"]["labels"]["release"] == "kube-prometheus-stack", each["kind"]


def read_of_operator() -> list[Any]:
    built = list(yaml.safe_load_all(kustomize(FOLDER)))
    return [each for each in built if each["apiVersion"] == "monitoring.coreos.com/v1"]


def test_the_operators_kinds_are_whole() -> None:
    found = read_of_operator()
    assert {each["kind"] for each in found} == SPECS.keys()
    for each in found:
        assert each.keys() == {"apiVersion", "kind", "metadata", "spec"}
        jsonschema.Draft202012Validator(SPECS[each["kind"]]).validate(each["spec"])


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        ("PodMonitor", '"interval"', '"every"'),
        ("PodMonitor", '"podMetricsEndpoints"', '"endpoints"'),
        ("PodMonitor", '"15s"', '"15"'),
        ("PrometheusRule", '"expr"', '"expression"'),
        ("PrometheusRule", '"for"', '"after"'),
        ("PrometheusRule", '"30m"', '"30 minutes"'),
    ],
)
def test_a_mistake_in_the_operators_kinds_is_found(kind: str, old: str, new: str) -> None:
    (spec,) = (each["spec"] for each in read_of_operator() if each["kind"] == kind)
    assert old in json.dumps(spec)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(SPECS[kind]).validate(
            json.loads(json.dumps(spec).replace(old, new))
        )


def read_as_grafana(text: str) -> Any:
    """Return what Grafana's own models keep of a dashboard."""
    register_default_plugins()
    dashboard = Dashboard.from_json(json.loads(text))
    return json.loads(JSONEncoder(sort_keys=True).encode(dashboard))


def find_lost(given: Any, kept: Any, where: str = "") -> Iterator[str]:
    """Yield what of a document is not in another, by its place."""
    if isinstance(given, dict) and isinstance(kept, dict):
        for key, value in given.items():
            yield from find_lost(value, kept.get(key), f"{where}/{key}")
    elif isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        for number, pair in enumerate(zip(given, kept, strict=True)):
            yield from find_lost(*pair, f"{where}/{number}")
    elif given != kept:
        yield where


def test_grafana_knows_all_that_the_dashboard_says() -> None:
    text = (FOLDER / "rushes.json").read_text()
    assert list(find_lost(json.loads(text), read_as_grafana(text))) == []


@pytest.mark.parametrize("key", ["gridPos", "fieldConfig", "refId", "schemaVersion", "templating"])
def test_a_misspelt_key_of_the_dashboard_is_found(key: str) -> None:
    text = (FOLDER / "rushes.json").read_text().replace(f'"{key}"', f'"{key}s"')
    lost = list(find_lost(json.loads(text), read_as_grafana(text)))
    assert lost
    assert all(each.endswith(f"/{key}s") or f"/{key}s/" in each for each in lost)


needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool, of Debian's prometheus, is not installed"
)


def show(
    title: str, series: dict[str, str], shown: dict[str, dict[str, float]], folder: Path
) -> subprocess.CompletedProcess[str]:
    """Hold a panel's last query to what it shows of such minutes: by time, and by labels."""
    (panel,) = (
        each
        for each in json.loads((FOLDER / "rushes.json").read_text())["panels"]
        if each["title"] == title
    )
    asked = [
        {
            "expr": panel["targets"][-1]["expr"],
            "eval_time": at,
            "exp_samples": [{"labels": each, "value": value} for each, value in values.items()],
        }
        for at, values in shown.items()
    ]
    night = {
        "interval": "1m",
        "input_series": [{"series": each, "values": values} for each, values in series.items()],
        "promql_expr_test": asked,
    }
    (folder / "night.yaml").write_text(yaml.safe_dump({"tests": [night]}))
    call = [str(PROMTOOL), "test", "rules", "night.yaml"]
    return subprocess.run(call, cwd=folder, capture_output=True, text=True, check=False)


@needs_promtool
@pytest.mark.parametrize(
    ("title", "name", "pace", "shown"),
    [
        (
            "Devices held, and device-hours of the last 12", "device_seconds", 16 * 60,
            {"8h": 16 * 8, "9h": 16 * (8 + 55 / 60), "14h": 16 * (6 + 1)},
        ),
        ("Clips an hour", "clips_ended", 2, {"4h": 120, "8h30m": 2 * (30 + 25), "9h": 2 * 55}),
    ],
)  # fmt: skip
def test_what_a_cluster_has_counted_is_shown_when_it_is_gone(
    title: str, name: str, pace: int, shown: dict[str, float], tmp_path: Path
) -> None:
    # A night's first cluster is gone at eight; its next one is there for an hour.
    series = {
        f'ray_rushes_{name}_total{{SessionName="a"}}': f"0+{pace}x480 stale",
        f'ray_rushes_{name}_total{{SessionName="b"}}': f"_x485 0+{pace}x60",
    }
    done = show(title, series, {at: {"{}": each} for at, each in shown.items()}, tmp_path)
    assert done.returncode == 0, done.stderr


@needs_promtool
@pytest.mark.parametrize(
    ("title", "shown"),
    [
        ("Share of clips that fail", {"{}": 0.25}),
        (
            "Clips of each run",
            {'{output="s3://a",state="committed"}': 1400, '{output="s3://a",state="failed"}': 0}
            | {'{output="s3://b",state="committed"}': 30, '{output="s3://b",state="failed"}': 10},
        ),
    ],
)
def test_two_runs_are_told_apart(title: str, shown: dict[str, float], tmp_path: Path) -> None:
    series = {
        'ray_rushes_run_clips{output="s3://a",state="committed"}': "1400",
        'ray_rushes_run_clips{output="s3://a",state="failed"}': "0",
        'ray_rushes_run_clips{output="s3://b",state="committed"}': "30",
        'ray_rushes_run_clips{output="s3://b",state="failed"}': "10",
    }
    done = show(title, series, {"0m": shown}, tmp_path)
    assert done.returncode == 0, done.stderr

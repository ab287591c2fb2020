"""Debian's Prometheus on this machine, which scrapes pods as the PodMonitor says."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict

import yaml
from ray.util.metrics import Counter, Histogram, Metric

from cluster import metrics
from tests.support.command import wait_until
from tests.support.manifests import K8S

PROMETHEUS = shutil.which("prometheus")
ADDRESS = "127.0.0.1:9090"
START_S = 30.0
STEP_S = 5.0
"""What panels are drawn in."""


class Series(TypedDict):
    """What a query found of one series: its labels, and its values with their times, in seconds."""

    labels: dict[str, str]
    values: list[tuple[float, float]]


class Shown(TypedDict):
    """What a panel shows of one of its queries."""

    title: str
    legend: str
    series: list[Series]


@contextmanager
def scraping(pods: Iterable[tuple[str, str]], folder: Path) -> Generator[None]:
    """Have pods scraped, given by name and address; one that isn't there yet is tried again."""
    assert PROMETHEUS
    monitor = yaml.safe_load((K8S / "monitoring" / "scrape.yaml").read_text())["spec"]
    (endpoint,) = monitor["podMetricsEndpoints"]
    targets = [
        {"targets": [f"{address}:8080"], "labels": {"namespace": "rushes", "pod": name}}
        for name, address in pods
    ]
    config = {
        "global": {"scrape_interval": endpoint["interval"]},
        "scrape_configs": [{"job_name": "rushes", "static_configs": targets}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), "utf-8")
    call = [PROMETHEUS, "--config.file=prometheus.yml", "--storage.tsdb.path=tsdb"]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [*call, f"--web.listen-address={ADDRESS}"], cwd=folder, stdout=log, stderr=log
        )

    def is_ready() -> bool:
        assert process.poll() is None, (folder / "prometheus.log").read_text()[-2000:]
        return _is_ready()

    try:
        wait_until(is_ready, START_S, "Prometheus")
        yield
    finally:
        process.terminate()
        process.wait()


def query_range(expression: str, start: float, end: float) -> list[Series]:
    """Return what a panel of that range shows."""
    found = _ask("query_range", query=expression, start=start, end=end, step=STEP_S)
    return [
        {"labels": each["metric"], "values": [(at, float(value)) for at, value in each["values"]]}
        for each in found["result"]
    ]


def read_dashboard(since: float) -> list[Shown]:
    """Return what each query of the dashboard shows, from then on."""
    panels = json.loads((K8S / "monitoring" / "rushes.json").read_text())["panels"]
    return [
        {
            "title": panel["title"],
            "legend": target["legendFormat"],
            "series": query_range(target["expr"], since, time.time()),
        }
        for panel in panels
        for target in panel.get("targets", ())
    ]


def find_metrics(since: float) -> dict[str, list[str]]:
    """Return the names of our metrics that there were, each with those of its labels."""
    series = _ask("series", **{"match[]": '{__name__=~"ray_rushes_.+"}', "start": since})
    return {each["__name__"]: sorted(each.keys() - {"__name__"}) for each in series}


def has_all_metrics(since: float) -> bool:
    """Return whether every metric of the table was there."""
    return {find_name(each) for each in metrics.ALL} <= find_metrics(since).keys()


def find_name(metric: Metric) -> str:
    """Return what Prometheus finds a metric as; of a histogram, its count."""
    ends = {Counter: "_total", Histogram: "_count"}
    return f"ray_{metric.info['name']}{ends.get(type(metric), '')}"


def _is_ready() -> bool:
    try:
        return urllib.request.urlopen(f"http://{ADDRESS}/-/ready", timeout=5).status == 200
    except OSError:
        return False


def _ask(what: str, **given: Any) -> Any:
    url = f"http://{ADDRESS}/api/v1/{what}?{urllib.parse.urlencode(given)}"
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)["data"]

"""Each alert fires on the night it is for, and on no night like it: by Prometheus' own promtool."""

from __future__ import annotations

import shutil
import subprocess
from itertools import chain
from pathlib import Path

import pytest
import yaml

from tests.support.manifests import K8S

PROMTOOL = shutil.which("promtool")
TRIES = 5
"""Debian's promtool (2.42) sometimes panics where days of series are compacted as they are read."""
NAMES = ("alerts.yaml", "night_alerts.yaml", "two_nights_alerts.yaml")
FILES = [Path(__file__).with_name(name) for name in NAMES]
MUTATIONS = {
    "fails: too late": ("> 0.05", "> 0.2"),
    "fails: too early": ("> 0.05", "> 0.01"),
    "fails: of all that the run has": ('"failed|committed"', '".*"'),
    "fails: of one or two": ('="failed"}) >= 3', '="failed"}) >= 2'),
    "fails: of many alone": ('="failed"}) >= 3', '="failed"}) >= 30'),
    "fails: while another run's are made": ("sum by (namespace, SessionName, output)", "sum by ()"),
    "fails: while another's of its cluster are": (
        "by (namespace, SessionName, output)",
        "by (namespace, SessionName)",
    ),
    "fails: while those of its last try were made": (
        "by (namespace, SessionName, output)",
        "by (namespace, output)",
    ),
    "videos: of one or two": ('="failed"} ) >= 3', '="failed"} ) >= 2'),
    "videos: of many alone": ('="failed"} ) >= 3', '="failed"} ) >= 4'),
    "videos: of a series that begins": ('{how="failed"} )', '{how="nothing"} )'),
    "videos: for ever": ("offset 30m or ray_rushes_video_seconds_count )", "offset 3d or up )"),
    "no progress: once there were steps": (
        "unless sum by (namespace, SessionName, urgency) ( ray_rushes_steps",
        "and sum by (namespace, SessionName, urgency) ( ray_rushes_steps",
    ),
    "no progress: of a series that begins": ("or ray_rushes_steps_total )", ")"),
    "no progress: with nothing to do": ("(ray_rushes_clips) > 0 )", "(ray_rushes_clips) >= 0 )"),
    "no progress: of what is in the pool alone": ('ray_rushes_run_clips{state="remaining"}', "up"),
    "no progress: of a run alone": ("(ray_rushes_clips) > 0 )", "(up) > 0 )"),
    "no progress: of what callers wait for": (
        "label_replace(ray_rushes_videos",
        "label_replace(up",
    ),
    "no progress: once all is done": ('"batch", "", "")) > 0', '"batch", "", "")) >= 0'),
    "no progress: while nodes come": ("clips offset 5m) > 0 )", "clips offset 5m) >= 0 )"),
    "no progress: while clips are in the pool": (
        "clips offset 5m) > 0 )",
        "clips offset 5m) > 1e9 )",
    ),
    "no progress: while others' clips are made": ("SessionName, urgency)", "SessionName)"),
    "no progress: while another cluster's are": ("SessionName, urgency)", "urgency)"),
    "rebuilds: too late": ("total ) > 5", "total ) > 50"),
    "rebuilds: too early": ("total ) > 5", "total ) > 2"),
    "rebuilds: of a series that begins": ("or ray_rushes_gang_rebuilds_total )", ")"),
    "rebuilds: of several clusters": ("sum by (namespace, SessionName) ( ray", "sum( ray"),
    "queue: of what is rendered": ('{state="queued"}', ""),
    "night: by day": ("< 20", "< 24"),
    "night: all done": (") > 0 and on ()", ") >= 0 and on ()"),
    "night: of a dead driver": ("[14h]) and", "[5m]) and"),
    "night: of every driver": ("topk by (output) (1, max", "topk by (output) (9, max"),
    "night: of the first driver": ("topk by (output) (1, max", "bottomk by (output) (1, max"),
    "night: of whichever told last": ("topk by (output) (1, max", "topk(1, max"),
    "night: of a driver that five minutes see": (
        "(1, max_over_time(ray_rushes_run_told_timestamp_seconds[14h]))",
        "(1, max_over_time(ray_rushes_run_told_timestamp_seconds[14h:5m]))",
    ),
    "night: the last clip unseen": ('- 300, "night"', '+ 300000, "night"'),
    "night: ended long before": ('- 300, "night"', '- 30000, "night"'),
    "night: ended as another did": (
        "< on (night) group_left () ( max by (night) (",
        "< on () group_left () max( (",
    ),
    "night: of an output without a date": ("or max(", "and max("),
    "night: ended by its clock": (
        'unless on (job_name) ( kube_job_spec_active_deadline_seconds{namespace="rushes"} unless',
        "unless on (job_name) ( kube_job_spec_parallelism unless",
    ),
    "failed: tried again": ("topk by (night) (1, rushes", "topk by (night) (9, rushes"),
    "failed: until any night begins": ("topk by (night) (1, rushes", "topk(1, rushes"),
    "failed: for ever": ("offset 1d", "offset 9d"),
    "failed: of no date": ("(\\\\d{4})-", "(x)-"),
    "failed: of no evening": ("- 12 * 3600", "- 24 * 3600"),
    "failed: until its clock is tried": (
        'kube_job_spec_active_deadline_seconds{namespace="rushes"} unless',
        "kube_job_spec_parallelism unless",
    ),
    "failed: of no clock": (
        'unless on (job_name) kube_job_failed{namespace="rushes",condition="true"} > 0',
        "",
    ),
    "failed: another Job": ("(night|now).*", ".*"),
    "missed: too early": ("> 25 *", "> 24 *"),
    "missed: too late": ("> 25 *", "> 48 *"),
    "silent: too early": ("> 26 *", "> 25 *"),
    "silent: too late": ("> 26 *", "> 28 *"),
    "silent: at night": ("3600 and on () (hour() >= 6", "3600 and on () (hour() >= 0"),
    "silent: in the evening": (
        "3600 and on () (hour() >= 6 < 20",
        "3600 and on () (hour() >= 6 < 24",
    ),
    "silent: of a clock": ("kube_job_spec_active_deadline_seconds", "kube_job_spec_parallelism"),
    "silent: of another Job": ("[7d]) and on (job_name) (", "[7d]) or on (job_name) ("),
    "silent: of another's CronJob": ("[7d]) unless", "[7d]) or"),
    "silent: not of shared": ('owner_name="night"', 'owner_name="clock"'),
    "silent: not of a RayJob": ('owner_kind="RayJob"}[7d]', 'owner_kind="Ray"}[7d]'),
    "silent: of a Job that is gone": ("[7d]", "[10m]"),
    "silent: of a Job that went days ago": ("[7d]", "[2d]"),
    "silent: of no first night": ("or min( kube_cronjob_created", "or min( kube_cronjob_made"),
    "silent: of KubeRay's last try": ("or min(", "or max("),
    "silent: of whatever runs": (
        "and on (job_name) kube_job_owner",
        "or on (job_name) kube_job_owner",
    ),
    "stuck: of those that run": ("Running|Complete", "Complete"),
    "stuck: of those that failed": ("|Failed", ""),
    "stuck: in a queue": ("|Suspend.*", ""),
    "stuck: of other namespaces": ('namespace="rushes",deployment', "deployment"),
    "missed: the first": (" or kube_cronjob_created", " or kube_cronjob_made"),
}

pytestmark = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool, of Debian's prometheus, is not installed"
)


def judge(folder: Path, old: str = "", new: str = "") -> subprocess.CompletedProcess[str]:
    """Hold the rules to their nights; with a change, those that it changes."""
    assert PROMTOOL
    (group,) = yaml.safe_load((K8S / "monitoring" / "alerts.yaml").read_text())["spec"]["groups"]
    changed = [rule for rule in group["rules"] if old in rule["expr"]]
    records = [rule["record"] for rule in changed if "record" in rule]
    group["rules"] = [
        rule
        for rule in group["rules"]
        if "record" in rule or rule in changed or any(name in rule["expr"] for name in records)
    ]
    alerts = {rule["alert"] for rule in group["rules"] if "alert" in rule}
    assert alerts
    for rule in group["rules"]:
        rule["expr"] = rule["expr"].replace(old, new)
    (folder / "rules.yaml").write_text(yaml.safe_dump({"groups": [group]}))
    call = [PROMTOOL, "test", "rules"]
    for file in FILES:
        nights = yaml.safe_load(file.read_text())
        nights["tests"] = [
            night
            for night in nights["tests"]
            if alerts & {each["alertname"] for each in night["alert_rule_test"]}
        ]
        (folder / file.name).write_text(yaml.safe_dump(nights))
        call.append(file.name)
    for _ in range(TRIES):
        done = subprocess.run(call, cwd=folder, capture_output=True, text=True, check=False)
        if "panic:" not in done.stderr:
            return done
    raise AssertionError(f"{PROMTOOL} panics at each of {TRIES} tries")


def test_every_alert_has_a_night_that_fires_it() -> None:
    (group,) = yaml.safe_load((K8S / "monitoring" / "alerts.yaml").read_text())["spec"]["groups"]
    nights = chain.from_iterable(yaml.safe_load(file.read_text())["tests"] for file in FILES)
    tests = chain.from_iterable(night["alert_rule_test"] for night in nights)
    fired = {each["alertname"] for each in tests if "exp_alerts" in each}
    assert fired == {rule["alert"] for rule in group["rules"] if "alert" in rule}


def test_alerts_fire_when_they_should(tmp_path: Path) -> None:
    done = judge(tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("mutation", list(MUTATIONS))
def test_a_mistake_in_a_rule_shows(tmp_path: Path, mutation: str) -> None:
    done = judge(tmp_path, *MUTATIONS[mutation])
    assert done.returncode
    assert "exp:" in done.stderr, done.stderr

"""A night and an endpoint on pods of this machine, by the manifests' own words."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from datetime import datetime
from itertools import pairwise
from typing import Any

import pytest

from cluster import metrics
from tests.k8s.night_by_hand import NUM_CLIPS, NUM_QUEUED, STEPS
from tests.support.command import ROOT, make_environment
from tests.support.isolated import ISOLATED, need_namespaces
from tests.support.manifests import build_overlay, find_settings
from tests.support.prometheus import PROMETHEUS, STEP_S, Series, find_name

pytestmark = pytest.mark.timeout(900)

OUTPUT = find_settings(build_overlay("cpu-demo"))["RUSHES_OUTPUT"]
LAG_S = 40.0
"""Until what has happened is seen; told every 5 s, reported every 10, scraped every 15."""
LATE_S, FACTOR = 60.0, 3.0
"""By how much a time left may be wrong that is seen so late, of a run of a minute."""
QUIET = {"Gangs lost an hour", "Videos under way", "Videos that failed, an hour"} | {
    "Calls to the store made again, an hour", "Share of clips that fail",
}  # fmt: skip
"""Panels of what a good night has none of: they show 0 from the beginning."""

watched = pytest.mark.skipif(
    PROMETHEUS is None, reason="prometheus, Debian's package, is not installed"
)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What was seen of one such night, and of the endpoint after it."""
    need_namespaces()
    folder = tmp_path_factory.mktemp("night")
    done = subprocess.run(
        [*ISOLATED, sys.executable, "-m", "tests.k8s.night_by_hand", folder],
        cwd=ROOT, env=make_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def find_shown(seen: dict[str, Any], title: str, legend: str) -> list[Series]:
    """Return what a panel shows."""
    (found,) = (
        each["series"]
        for each in seen["panels"]
        if (each["title"], each["legend"]) == (title, legend)
    )
    return found


def find_one(seen: dict[str, Any], title: str, legend: str, **labels: str) -> dict[float, float]:
    """Return what a panel shows of one series, by the time."""
    (found,) = (each for each in find_shown(seen, title, legend) if each["labels"] == labels)
    return dict(found["values"])


def has_gap(times: list[float]) -> bool:
    return any(later - at > 1.5 * STEP_S for at, later in pairwise(times))


def read_events(seen: dict[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in seen["log"].splitlines() if line.startswith("{")]


def read_commits(seen: dict[str, Any]) -> list[float]:
    """Return when each clip of the night was committed, in order."""
    return sorted(
        datetime.fromisoformat(each["committed_at"]).timestamp() for each in seen["commits"]
    )


def test_a_night_with_a_worker_taken_back_and_the_endpoint(seen: dict[str, Any]) -> None:
    workers = [{"livenessProbe": True}] * 3
    assert seen["probes"] == [{"livenessProbe": True, "readinessProbe": True}, *workers]
    # A night that fails ends its submitter so: that is what the alert looks at.
    assert seen["failing"] == 1
    # Every clip is committed by the one night; the worker's left with what they had begun saved.
    assert seen["code"] == 0, seen["log"]
    assert seen["status"]["committed"] == NUM_CLIPS
    assert [each["attempts"] for each in seen["commits"]] == [1] * NUM_CLIPS, seen["log"]
    # What the taken worker was at, unless it was between two clips, went on from the step that it
    # was saved at.
    assert all(step > 0 for step in seen["saved"])
    events = read_events(seen)
    notes = [each["text"] for each in events if each["event"] == "note"]
    assert any("leaves its node" in text for text in notes)
    assert not any("gang lost" in text for text in notes)
    committed = [each for each in events if each["event"] == "committed"]
    assert len({each["clip_id"] for each in committed}) == NUM_CLIPS
    assert {each["run"] for each in committed} == {1}
    assert seen["took_s"] < seen["grace_s"]
    assert seen["reported"] == NUM_CLIPS
    # The endpoint of the RayService, on the same pods.
    assert seen["refused"]
    assert seen["video"] == "completed"
    # Its log tells of the call, the video, the clip and the gang that was lost.
    log = seen["endpoint_log"]
    of_video = [each for each in log if each.get("video_id") == seen["video_id"]]
    assert {each["request_id"] for each in of_video} == {seen["request_id"]}
    assert len({each["clip_id"] for each in of_video}) == 1
    assert any("gang lost" in each["message"] for each in log)
    assert seen["size_bytes"] > 1000
    # A night whose head is ended in the middle saves what it has, and gives the lease back.
    stopped = seen["stopped"]
    assert stopped["ended"] == ["done", "SIGTERM"]
    assert stopped["lease_is_over"]
    assert stopped["saved"]
    assert stopped["took_s"] < seen["grace_s"]


@watched
def test_every_metric_is_scraped_with_its_own_labels_beside_the_others(
    seen: dict[str, Any],
) -> None:
    found = {name: set(labels) for name, labels in seen["metrics"].items()}
    everybodys = found["ray_rushes_gang_rebuilds_total"]
    assert {"namespace", "SessionName"} <= everybodys
    for each in metrics.ALL:
        assert found[find_name(each)] - everybodys == set(each.info["tag_keys"])


@watched
def test_no_step_was_made_twice(seen: dict[str, Any]) -> None:
    (series,) = seen["steps"]
    assert NUM_CLIPS * STEPS / 2 < series["values"][-1][1] <= NUM_CLIPS * STEPS


@watched
def test_a_run_is_seen_for_as_long_as_it_lives_and_as_the_ledger_has_it(
    seen: dict[str, Any],
) -> None:
    # Until the endpoint is there, and after it another run.
    planned, *_ = (each for each in read_events(seen) if each["event"] == "planned")
    began, commits = datetime.fromisoformat(planned["time"]).timestamp(), read_commits(seen)
    states = ("committed", "failed", "remaining")
    shown: dict[str, dict[float, float]] = {}
    for state in states:
        found = find_one(
            seen, "Clips of each run", "{{state}}, {{output}}", output=OUTPUT, state=state
        )
        shown[state] = {at: n for at, n in found.items() if at < commits[-1] + LAG_S}
    for times in map(list, shown.values()):
        assert times[0] <= began + LAG_S
        assert times[-1] >= commits[-1]
        assert not has_gap(times)
    for at, committed in shown["committed"].items():
        before = sum(each <= at - LAG_S for each in commits)
        assert before <= committed <= sum(each <= at for each in commits)
        assert committed + shown["remaining"][at] == NUM_CLIPS
    assert set(shown["failed"].values()) == {0.0}
    assert shown["remaining"][max(shown["remaining"])] < NUM_CLIPS


@watched
def test_the_time_left_is_about_what_it_took(seen: dict[str, Any]) -> None:
    end = read_commits(seen)[-1]
    shown = find_one(seen, "Time left, at the pace of ten minutes", "ETA")
    assert shown
    for at, left_s in shown.items():
        if at >= end + LAG_S:  # another run's
            break
        really_s = max(end - at, 0.0)
        assert really_s / FACTOR - LATE_S <= left_s <= really_s * FACTOR + LATE_S


@watched
def test_callers_that_wait_are_counted_wherever_they_wait(seen: dict[str, Any]) -> None:
    queued = max(find_one(seen, "Videos under way", "queued").values())
    in_pool = find_one(
        seen, "Clips in the pool", "{{urgency}} {{state}}", urgency="online", state="waiting"
    )
    assert NUM_QUEUED / 2 <= queued <= NUM_QUEUED + 1
    assert max(in_pool.values()) < queued
    title = "Oldest video, oldest wait for a gang"
    assert max(find_one(seen, title, "video {{state}}", state="queued").values()) > 0


@watched
def test_every_query_of_the_dashboard_shows_what_there_was(seen: dict[str, Any]) -> None:
    first = min(each["values"][0][0] for panel in seen["panels"] for each in panel["series"])
    for panel in seen["panels"]:
        where, series = panel["title"], panel["series"]
        assert series, where
        for each in series:
            assert any(math.isfinite(value) for _, value in each["values"]), (where, each)
            labels = re.findall(r"{{(\w+)}}", panel["legend"])
            assert all(each["labels"].get(label) for label in labels), (where, each["labels"])
        if where in QUIET:
            (each,) = series
            assert each["values"][0] == [first, 0.0], where
            assert not has_gap([at for at, _ in each["values"]]), where


@watched
def test_what_is_counted_is_what_there_was(seen: dict[str, Any]) -> None:
    made = find_one(seen, "Clips an hour", "{{how}}", how="committed")
    before = sum(each <= max(made) - LAG_S for each in read_commits(seen))
    assert before == NUM_CLIPS
    assert max(made.values()) > NUM_CLIPS / 2
    title = "Devices held, and device-hours of the last 12"
    assert max(find_one(seen, title, "held").values()) == 2
    assert max(find_one(seen, "Gangs", "{{state}}", state="ready").values()) == 2
    assert max(find_one(seen, "Gangs lost an hour", "lost").values()) >= 1
    assert max(find_one(seen, "Calls to the store made again, an hour", "calls").values()) == 1
    took = sorted(each["timings"]["denoise"] for each in seen["commits"])
    found = find_one(seen, "Stage seconds, median and p95", "{{stage}} median", stage="denoise")
    end = read_commits(seen)[-1] + LAG_S  # then callers' clips count
    shown = [each for at, each in found.items() if at < end and math.isfinite(each)]
    assert shown
    assert all(took[0] / 1.6 <= each <= took[-1] * 1.6 for each in shown)

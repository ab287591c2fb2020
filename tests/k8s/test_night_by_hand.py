"""A night and an endpoint on pods of this machine, by the manifests' own words."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from ray.util.metrics import Counter, Metric

from cluster import metrics
from tests.k8s.night_by_hand import NUM_CLIPS, STEPS
from tests.support.command import ROOT, make_environment
from tests.support.isolated import ISOLATED, need_namespaces

pytestmark = pytest.mark.timeout(900)


def find_name(metric: Metric) -> str:
    """Return what Prometheus finds a metric as."""
    return f"ray_{metric.info['name']}{'_total' if isinstance(metric, Counter) else ''}"


def test_a_night_with_a_worker_taken_back_and_the_endpoint(tmp_path: Path) -> None:
    need_namespaces()
    done = subprocess.run(
        [*ISOLATED, sys.executable, "-m", "tests.k8s.night_by_hand", tmp_path],
        cwd=ROOT, env=make_environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    workers = [{"livenessProbe": True}] * 3
    assert seen["probes"] == [{"livenessProbe": True, "readinessProbe": True}, *workers]
    # A night that fails ends its submitter so: that is what the alert looks at.
    assert seen["failing"] == 1
    # Every clip is committed by the one night; the worker's left with what they had begun saved.
    assert seen["code"] == 0, seen["log"]
    assert seen["status"]["committed"] == NUM_CLIPS
    assert seen["attempts"] == [1] * NUM_CLIPS, seen["log"]
    # What the taken worker was at, unless it was between two clips, went on from the step that it
    # was saved at: no step was made twice.
    assert all(step > 0 for step in seen["saved"])
    assert NUM_CLIPS * STEPS / 2 < seen["steps"] <= NUM_CLIPS * STEPS
    events = [json.loads(line) for line in seen["log"].splitlines() if line.startswith("{")]
    notes = [each["text"] for each in events if each["event"] == "note"]
    assert any("leaves its node" in text for text in notes)
    assert not any("gang lost" in text for text in notes)
    committed = [each for each in events if each["event"] == "committed"]
    assert len({each["clip_id"] for each in committed}) == NUM_CLIPS
    assert {each["run"] for each in committed} == {1}
    assert seen["took_s"] < seen["grace_s"]
    assert seen["reported"] == NUM_CLIPS
    # Every metric of the table is scraped, with its own labels beside Ray's.
    rays = set(seen["metrics"]["ray_rushes_videos"])
    assert {name: set(labels) - rays for name, labels in seen["metrics"].items()} == {
        find_name(each): set(each.info["tag_keys"]) for each in metrics.ALL
    }
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

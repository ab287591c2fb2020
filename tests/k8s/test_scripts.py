"""What the image is made by, and the scripts that its pods run."""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from tests.support.kube_api import start_night
from tests.support.manifest_nights import MARGIN_S
from tests.support.manifests import K8S, KUBECTL, NIGHT, find_kind, find_pods, make_ray_job
from tests.support.s3 import serve_s3

ROOT = K8S.parent
BIN = K8S / "bin"
TORCH_OF_CUDA = "2.13.0"
LEFT_OPEN = (
    "cuda-bindings<14,>=13.0.3", "cuda-pathfinder>=1.4.2", "nvidia-nvjitlink<14,>=13.0.88"
)  # fmt: skip
"""What that torch, built for CUDA, and what it needs ask for in more than one version."""


def test_the_dockerfile_keeps_hadolints_rules() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [hadolint, K8S / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_hadolint_finds_what_is_wrong(tmp_path: Path) -> None:
    text = (K8S / "Dockerfile").read_text("utf-8")
    bad = tmp_path / "Dockerfile"
    bad.write_text(text.replace("FROM python:${PYTHON} AS", "FROM python:latest AS"))
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, bad], capture_output=True, text=True, check=False)
    assert "DL3007" in done.stdout


def test_what_the_dockerfile_copies_is_sent_to_the_builder() -> None:
    text = (K8S / "Dockerfile").read_text("utf-8")
    copied = {
        source.rstrip("/")
        for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE)
        for source in line.split()[:-1]
    }
    allowed = set(re.findall(r"^!(.+)$", (K8S / "Dockerfile.dockerignore").read_text(), re.M))
    assert copied == allowed
    assert all((ROOT / each).exists() for each in copied)


def read_exact() -> dict[str, str]:
    """Return the version of each package that the image has."""
    lines = (K8S / "constraints.txt").read_text("utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def test_the_exact_versions_are_ones_that_the_project_takes() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    exact = read_exact()
    asked = [Requirement(each) for each in project["dependencies"]]
    missing = [each.name for each in asked if each.name not in exact]
    assert missing == []
    assert [str(each) for each in asked if exact[each.name] not in each.specifier] == []


def test_nothing_that_cuda_brings_is_of_a_version_that_changes() -> None:
    exact = read_exact()
    assert exact["torch"] == TORCH_OF_CUDA, "another torch: see what its wheel for CUDA leaves open"
    open_ones = [Requirement(each) for each in LEFT_OPEN]
    assert [
        str(each) for each in open_ones if exact.get(each.name, "0") not in each.specifier
    ] == []


def test_the_image_is_built_of_exact_versions_alone() -> None:
    installs = re.findall(r"pip install (.+)", (K8S / "Dockerfile").read_text("utf-8"))
    assert len(installs) == 3
    for each in installs:
        assert "--constraint constraints.txt" in each or (
            "--no-deps" in each and "--no-build-isolation" in each
        )
    system = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["build-system"]
    exact = read_exact()
    for each in map(Requirement, system["requires"]):
        assert exact[each.name] in each.specifier


def test_list_dependencies(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, K8S / "list_dependencies.py", ROOT / "pyproject.toml"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert done.stdout.splitlines() == project["dependencies"]


@pytest.mark.parametrize("overlay", ["gpu", "kueue", "raycronjob"])
def test_start_night_creates_the_job_that_is_validated(
    overlay: str, build: Any, tmp_path: Path
) -> None:
    (night,) = find_kind(build(overlay), "RayCronJob")
    before = int(time.time())
    code, (created,) = start_night(night, tmp_path, RUSHES_NIGHT=NIGHT)
    assert code == 0
    metadata = created.pop("metadata")
    expected = make_ray_job(night)
    assert {name: metadata[name] for name in ("generateName", "labels")} == expected.pop("metadata")
    # But for what fixes its date and its end, in both places.
    fixed = re.compile(rf"env RUSHES_NIGHT={NIGHT} RUSHES_UNTIL=(\d+) ")
    ends = set(fixed.findall(json.dumps(created)))
    assert json.loads(fixed.sub("", json.dumps(created))) == expected
    (submitter,) = created["spec"]["submitterPodTemplate"]["spec"]["containers"]
    assert submitter["args"] == [created["spec"]["entrypoint"]]
    assert len(ends) == 1
    deadline_s = expected["spec"]["activeDeadlineSeconds"]
    assert before + deadline_s < int(ends.pop()) <= time.time() + deadline_s + MARGIN_S


def test_a_night_belongs_to_the_job_that_starts_it(build: Any, tmp_path: Path) -> None:
    (night,) = find_kind(build("gpu"), "RayCronJob")
    given = {
        "RUSHES_JOB": "night-29401920",
        "RUSHES_JOB_UID": "8d969eef-6eca-4d3c-a3a6-29280e686cf0",
    }
    _, (created,) = start_night(night, tmp_path, **given)
    # Without `controller`: Kueue would take it for a part of that Job, and admit nothing of it.
    assert created["metadata"]["ownerReferences"] == [
        {"apiVersion": "batch/v1", "kind": "Job", "name": given["RUSHES_JOB"],
         "uid": given["RUSHES_JOB_UID"]}
    ]  # fmt: skip
    _, (by_hand,) = start_night(night, tmp_path)
    assert not by_hand["metadata"]["ownerReferences"]


def test_start_night_fails_where_there_is_none(build: Any, tmp_path: Path) -> None:
    (night,) = find_kind(build("gpu"), "RayCronJob")
    code, created = start_night(night, tmp_path, "nihgt")
    assert code != 0
    assert created == []


def test_start_night_fails_where_there_is_no_deadline(build: Any, tmp_path: Path) -> None:
    night = copy.deepcopy(find_kind(build("gpu"), "RayCronJob")[0])
    del night["spec"]["jobTemplate"]["activeDeadlineSeconds"]
    code, created = start_night(night, tmp_path)
    assert code != 0
    assert created == []


def run_night(*command: str, **given: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BIN / "run-night", *command],
        env=os.environ | given, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("now", "night"),
    [
        ("2026-11-30 20:00", "2026-11-30"),
        ("2026-12-01 04:00", "2026-11-30"),
        ("2026-12-01 11:59", "2026-11-30"),
        ("2026-12-01 12:00", "2026-12-01"),
    ],
)
@pytest.mark.parametrize("script", ["run-night", "start-night"])
def test_a_night_has_the_date_of_its_evening(
    script: str, now: str, night: str, build: Any, tmp_path: Path
) -> None:
    # The clock is `date`'s: one that says what time it is, and is the real one else.
    (date := tmp_path / "date").write_text(
        f"""#!/bin/bash
words=("${{@/12 hours ago/{now} 12 hours ago}}")
exec {shutil.which("date")} "${{words[@]}}"
"""
    )
    date.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    if script == "run-night":
        assert run_night("echo", "{night}", PATH=path).stdout == f"{night}\n"
    else:
        (cronjob,) = find_kind(build("gpu"), "RayCronJob")
        path = f"{tmp_path}:{Path(KUBECTL or '').parent}:{os.environ['PATH']}"
        code, (created,) = start_night(cronjob, tmp_path, PATH=path)
        assert code == 0
        assert f"RUSHES_NIGHT={night} " in created["spec"]["entrypoint"]


def test_a_nights_words_have_its_date() -> None:
    done = run_night("printf", "%s|", "s3://a/{night}*.parquet", "{night}", "a b", RUSHES_NIGHT="d")
    assert (done.returncode, done.stdout) == (0, "s3://a/d*.parquet|d|a b|")


def test_what_is_started_is_what_runs(build: Any, tmp_path: Path) -> None:
    (night,) = find_kind(build("gpu"), "RayCronJob")
    _, (created,) = start_night(night, tmp_path, RUSHES_NIGHT=NIGHT)
    (shown := tmp_path / "rushes").write_text('#!/bin/bash\nprintf "%s\n" "$@"\n')
    shown.chmod(0o755)
    done = subprocess.run(
        ["sh", "-c", created["spec"]["entrypoint"]],
        env={"PATH": f"{tmp_path}:{BIN}:{os.environ['PATH']}",
             "RUSHES_TABLES": "s3://tables/{night}*.parquet", "RUSHES_OUTPUT": "s3://out/{night}"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    words = done.stdout.splitlines()
    assert words[1] == "s3://tables/2026-11-30*.parquet"
    assert words[words.index("--output") + 1] == "s3://out/2026-11-30"
    assert words == [
        each.replace("$RUSHES_TABLES", words[1]).replace("$RUSHES_OUTPUT", "s3://out/2026-11-30")
        for each in shlex.split(make_ray_job(night)["spec"]["entrypoint"])[3:]
    ]


def test_a_night_that_reaches_its_end_is_told_to_save() -> None:
    script = 'trap "echo saved; exit 75" TERM; echo begun; while true; do sleep 0.1; done'
    until = str(int(time.time()) + 2)
    done = run_night("bash", "-c", script, RUSHES_UNTIL=until)
    assert (done.returncode, done.stdout) == (75, "begun\nsaved\n")


def test_a_night_that_is_told_to_stop_tells_its_command() -> None:
    script = 'trap "echo saved; exit 75" TERM; echo begun; while true; do sleep 0.1; done'
    given = {"RUSHES_UNTIL": str(int(time.time()) + 600)}
    with subprocess.Popen(
        [BIN / "run-night", "bash", "-c", script],
        env=os.environ | given, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout
        assert process.stdout.readline() == "begun\n"
        process.terminate()
        assert process.communicate()[0] == "saved\n"
    assert process.returncode == 75


def test_a_night_that_is_over_begins_nothing() -> None:
    done = run_night("echo", "begun", RUSHES_NIGHT="2026-11-30", RUSHES_UNTIL="1764572460")
    assert (done.returncode, done.stdout) == (75, "")
    assert "2025-12-01T07:01:00Z" in done.stderr


def test_the_demos_setup_fills_its_bucket(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (pod,) = (pod for pod in find_pods(build("cpu-demo")) if pod.where == "Job setup")
    *_, script = pod.spec["containers"][0]["command"]
    script = script.replace("/usr/share/rushes", str(ROOT / "examples"))
    script = script.replace('"rushes', '"setup')  # other tests have the bucket of that name
    with serve_s3(monkeypatch):
        for _ in range(2):  # a job may run again
            done = subprocess.run(
                [sys.executable, "-c", script], capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
            assert done.stdout == "setup/tables/ads.parquet\n"

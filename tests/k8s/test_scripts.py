"""What the image is made by, and the scripts that its pods run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from tests.support.kube_api import serve_kube_api
from tests.support.manifests import K8S, find_kind, find_pods, make_ray_job
from tests.support.s3 import serve_s3

ROOT = K8S.parent
BIN = K8S / "bin"


def test_the_dockerfile_keeps_hadolints_rules() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [hadolint, K8S / "Dockerfile"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_hadolint_finds_what_is_wrong(tmp_path: Path) -> None:
    text = (K8S / "Dockerfile").read_text("utf-8")
    bad = tmp_path / "Dockerfile"
    bad.write_text(text.replace("FROM python:${PYTHON} AS build", "FROM python:latest AS build"))
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


def test_the_exact_versions_are_ones_that_the_project_takes() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    lines = (K8S / "constraints.txt").read_text("utf-8").splitlines()
    exact = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    asked = [Requirement(each) for each in project["dependencies"]]
    missing = [each.name for each in asked if each.name not in exact]
    assert missing == []
    assert [str(each) for each in asked if exact[each.name] not in each.specifier] == []


def test_list_dependencies(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, K8S / "list_dependencies.py", ROOT / "pyproject.toml"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert done.stdout.splitlines() == project["dependencies"]


@pytest.mark.parametrize("overlay", ["gpu", "kueue"])
def test_start_night_creates_the_job_that_is_validated(
    overlay: str, build: Any, tmp_path: Path
) -> None:
    (night,) = find_kind(build(overlay), "RayCronJob")
    with serve_kube_api(night, tmp_path) as api:
        done = subprocess.run(
            [BIN / "start-night", "night"],
            env={**os.environ, "KUBECONFIG": str(api.config), "HOME": str(tmp_path)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (created,) = api.created
    metadata = created.pop("metadata")
    expected = make_ray_job(night)
    assert {name: metadata[name] for name in ("generateName", "labels")} == expected.pop("metadata")
    assert created == expected


def test_start_night_fails_where_there_is_none(build: Any, tmp_path: Path) -> None:
    (night,) = find_kind(build("gpu"), "RayCronJob")
    with serve_kube_api(night, tmp_path) as api:
        done = subprocess.run(
            [BIN / "start-night", "nihgt"],
            env={**os.environ, "KUBECONFIG": str(api.config), "HOME": str(tmp_path)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode != 0
    assert api.created == []


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

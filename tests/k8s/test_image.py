"""The Dockerfile's steps, done as a script: what its build stage copies and runs makes the command.

Docker isn't needed. Packages that are installed here already stand in for downloads: pip checks
that they are those of the constraints, and fetches only what is missing.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.command import write_table
from tests.support.manifests import K8S

pytestmark = pytest.mark.timeout(600)

ROOT = K8S.parent
PREFIX = "/opt/rushes"


@dataclass(frozen=True)
class Stage:
    """A stage of the Dockerfile."""

    base: str
    steps: list[tuple[str, str]]
    """Its instructions in order: each one's word, and what follows."""


def read_stages() -> dict[str, Stage]:
    """Return the Dockerfile's stages by name; the last, which is the image, has none: `image`."""
    lines = (K8S / "Dockerfile").read_text("utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#"))
    stages = dict[str, Stage]()
    for line in text.replace("\\\n", " ").partition("FROM ")[2].split("\nFROM "):
        base, *steps = filter(None, line.removeprefix("FROM ").splitlines())
        parent, _, name = base.partition(" AS ")
        words = [step.partition(" ") for step in steps]
        stages[name or "image"] = Stage(parent, [(word, rest) for word, _, rest in words])
    return stages


def read_variables(stage: Stage) -> dict[str, str]:
    """Return the variables that a stage sets."""
    lines = [rest for word, rest in stage.steps if word == "ENV"]
    return dict(pair.split("=", 1) for line in lines for pair in line.split())


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the build stage fills."""
    folder = tmp_path_factory.mktemp("image")
    (build := folder / "build").mkdir()
    made = folder / "opt"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    stage = read_stages()["build"]
    environment = {**os.environ, "PYTHONPATH": "", "PATH": path, **read_variables(stage)}
    for word, rest in stage.steps:
        if word == "COPY":
            *sources, target = rest.split()
            for source in sources:
                copy(ROOT / source, build / target)
        elif word == "RUN":
            # No other index than this machine's own, and no download of what is here.
            script = rest.replace(PREFIX, str(made)).replace(
                '--extra-index-url "${TORCH_INDEX}"', ""
            )
            run(["bash", "-euo", "pipefail", "-c", script], build, environment)
            (packages,) = made.glob("lib/python*/site-packages")
            (packages / "here.pth").write_text(sysconfig.get_path("purelib"))
        else:
            assert word in ("ARG", "SHELL", "WORKDIR", "ENV"), (word, rest)
    return made


def copy(source: Path, target: Path) -> None:
    """Copy as COPY does: into a folder if that is there, else to the name that is given."""
    if source.is_dir():
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, target, dirs_exist_ok=True, ignore=ignored)
    else:
        shutil.copy(source, target)


def run(command: list[str | Path], cwd: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_image_plans_a_table(prefix: Path, tmp_path: Path) -> None:
    table = write_table(tmp_path / "ads.parquet", prompt=["one", "two"])
    environment = {**os.environ, "PYTHONPATH": ""}
    shown = run([prefix / "bin" / "rushes", "plan", table], tmp_path, environment)
    assert "2" in shown
    where = "import json, cluster, jobs, pipeline; print(json.dumps([each.__file__ for each in "
    where += "(cluster, jobs, pipeline)]))"
    files = json.loads(run([prefix / "bin" / "python", "-c", where], tmp_path, environment))
    assert all(each.startswith(str(prefix)) for each in files)


def test_the_image_has_the_embedded_model(prefix: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": ""}
    folder = Path(run([prefix / "bin" / "rushes", "fetch"], tmp_path, environment).strip())
    assert folder.is_relative_to(prefix)
    assert list(folder.rglob("*.safetensors"))


def test_the_driver_that_gke_mounts_is_found() -> None:
    variables = read_variables(read_stages()["image"])
    first, *_, last = variables["PATH"].split(":")
    assert (first, last) == (f"{PREFIX}/bin", "/usr/local/nvidia/bin")
    assert variables["LD_LIBRARY_PATH"] == "/usr/local/nvidia/lib64"

"""The Dockerfile's steps, done as a script: what its stages copy and run makes the command.

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
from importlib.metadata import version
from importlib.util import cache_from_source
from pathlib import Path

import pytest

from tests.support.command import write_table
from tests.support.manifests import K8S

pytestmark = pytest.mark.timeout(600)

ROOT = K8S.parent
PREFIX = "/opt/rushes"
PROJECT = "/project"
OURS = ("pipeline", "cluster", "jobs")


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


@dataclass(frozen=True)
class Image:
    """What the stages make, below a folder that stands for the root of each."""

    root: Path

    @property
    def prefix(self) -> Path:
        """The virtual environment, as the image has it."""
        return self.place(PREFIX)

    def place(self, path: str) -> Path:
        """Return where a path of the image is here."""
        return self.root / path.removeprefix("/")

    def translate(self, script: str) -> str:
        """Return a script for here: no other index than this machine's own, and other paths."""
        for path in (PREFIX, PROJECT):
            script = script.replace(path, str(self.place(path)))
        return script.replace('--extra-index-url "${TORCH_INDEX}"', "")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """What the last stage copies from the others, once their steps are done."""
    made = Image(tmp_path_factory.mktemp("image"))
    (build := made.place("/build")).mkdir()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PYTHONPATH": "", "PATH": path}
    stages = read_stages()
    assert stages["project"].base == "dependencies"
    for stage in (stages["dependencies"], stages["project"]):
        environment |= read_variables(stage)
        for word, rest in stage.steps:
            if word == "COPY":
                *sources, target = rest.split()
                for source in sources:
                    copy(ROOT / source, build / target)
            elif word == "RUN":
                script = made.translate(rest)
                run(["bash", "-euo", "pipefail", "-c", script], build, environment)
                (packages,) = made.prefix.glob("lib/python*/site-packages")
                # No download of what is here.
                (packages / "here.pth").write_text(sysconfig.get_path("purelib"))
            else:
                assert word in ("ARG", "SHELL", "WORKDIR", "ENV"), (word, rest)
    assert not any((packages / each).exists() for each in OURS)
    assert list_copies()[-1] == ("project", PROJECT + PREFIX, PREFIX)
    copy(find_project(made), made.prefix)
    return made


def list_copies() -> list[tuple[str, str, str]]:
    """Return what the image copies of other stages, in order: stage, source, target."""
    lines = [rest for word, rest in read_stages()["image"].steps if word == "COPY"]
    found = [line.removeprefix("--from=").split() for line in lines if line.startswith("--from=")]
    return [(stage, source, target) for stage, source, target in found]


def find_project(image: Image) -> Path:
    """Return what is copied of the project: pip puts a prefix's whole path below its `--root`."""
    return image.place(PROJECT) / str(image.prefix).removeprefix("/")


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


def test_the_image_plans_a_table(image: Image, tmp_path: Path) -> None:
    table = write_table(tmp_path / "ads.parquet", prompt=["one", "two"])
    environment = {**os.environ, "PYTHONPATH": ""}
    shown = run([image.prefix / "bin" / "rushes", "plan", table], tmp_path, environment)
    assert "2" in shown
    where = "import json, cluster, jobs, pipeline; print(json.dumps([each.__file__ for each in "
    where += "(cluster, jobs, pipeline)]))"
    files = json.loads(run([image.prefix / "bin" / "python", "-c", where], tmp_path, environment))
    assert all(each.startswith(str(image.prefix)) for each in files)


def test_the_image_has_the_embedded_model(image: Image, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": ""}
    folder = Path(run([image.prefix / "bin" / "rushes", "fetch"], tmp_path, environment).strip())
    assert folder.is_relative_to(image.prefix)
    assert list(folder.rglob("*.safetensors"))


def test_the_driver_that_gke_mounts_is_found() -> None:
    variables = read_variables(read_stages()["image"])
    first, *_, last = variables["PATH"].split(":")
    assert (first, last) == (f"{PREFIX}/bin", "/usr/local/nvidia/bin")
    assert variables["LD_LIBRARY_PATH"] == "/usr/local/nvidia/lib64"


def test_a_change_of_ours_leaves_the_layer_with_torch_as_it_is() -> None:
    stages, copies = read_stages(), list_copies()
    (heavy,) = (
        name
        for name, each in stages.items()
        if any("torch" in rest for _, rest in each.steps if "install" in rest)
    )
    assert stages[heavy].base not in stages
    copied = [rest.split()[:-1] for word, rest in stages[heavy].steps if word == "COPY"]
    assert copied
    assert not {*OURS} & {source for sources in copied for source in sources}
    layers = [stage for stage, _, target in copies if target == PREFIX]
    assert layers == [heavy, "project"]


def test_the_layer_of_ours_is_ours_alone(image: Image) -> None:
    project = find_project(image)
    (packages,) = project.glob("lib/python*/site-packages")
    names = {each.name for each in packages.iterdir()}
    assert names == {*OURS, f"rushes-{version('rushes')}.dist-info"}
    assert [each.name for each in (project / "bin").iterdir()] == ["rushes"]
    sources = [each for name in OURS for each in (packages / name).rglob("*.py")]
    assert sources
    assert all(Path(cache_from_source(str(each))).exists() for each in sources)


def test_the_image_knows_its_version(image: Image, tmp_path: Path) -> None:
    where = "from importlib.metadata import distribution as find; "
    where += "print(find('rushes').version, find('rushes').locate_file(''))"
    environment = {**os.environ, "PYTHONPATH": ""}
    found, folder = run(
        [image.prefix / "bin" / "python", "-c", where], tmp_path, environment
    ).split()
    assert found == version("rushes")
    assert Path(folder).is_relative_to(image.prefix)

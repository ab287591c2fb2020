"""The built wheel, installed alone into a folder, renders from an empty working directory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.cli import ExitCode
from jobs.recipes import list_recipes
from pipeline.probe import read_frames
from tests.support.command import QUICK, write_table

pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).parents[2]
PACKAGES = ("pipeline", "cluster", "jobs")
SOURCES = (*PACKAGES, "pyproject.toml", "README.md", "LICENSE")

RENDER = """
import json, logging, sys
import ray
from jobs.cli import app

ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
code = app(sys.argv[1:], standalone_mode=False)

@ray.remote(num_cpus=0)
def find_files():
    import cluster, jobs, pipeline
    from jobs.recipes import find_recipe
    from pipeline.model import resolve_checkpoint
    modules = [each.__file__ for each in (cluster, jobs, pipeline)]
    return [*modules, str(resolve_checkpoint(find_recipe().model))]

print(json.dumps({"code": code or 0, "files": ray.get(find_files.remote())}), file=sys.stderr)
"""


def run(command: Sequence[str | Path], cwd: Path, python_path: str = "") -> tuple[str, str]:
    """Run a command that must succeed; return its output and its errors."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": python_path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources, so that nothing is written beside them."""
    folder = tmp_path_factory.mktemp("build")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder)
    # Without isolation, which would fetch setuptools again.
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "."], folder)
    (built,) = (folder / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    run([*pip, "--no-deps", "--no-index", "--target", folder, wheel], folder)
    return folder


def test_the_wheel_holds_the_packages_and_their_data_alone(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    tops = {name.partition("/")[0] for name in names}
    assert {name for name in tops if not name.endswith(".dist-info")} == set(PACKAGES)
    assert {f"jobs/recipes/{name}.toml" for name in list_recipes()} <= names
    for folder in ("jobs/templates", "pipeline/tiny/checkpoint"):
        files = (path for path in (ROOT / folder).rglob("*") if path.is_file())
        assert {path.relative_to(ROOT).as_posix() for path in files} <= names
    for package in PACKAGES:
        modules = (path.relative_to(ROOT) for path in (ROOT / package).rglob("*.py"))
        assert {path.as_posix() for path in modules} <= names


def test_the_installed_command_plans(installed: Path, tmp_path: Path) -> None:
    table = write_table(tmp_path / "ads.parquet", prompt=["one", "two", ""])
    (empty := tmp_path / "empty").mkdir()
    command = [sys.executable, installed / "bin" / "rushes", "plan", table]
    shown, errors = run(command, empty, str(installed))
    assert "rejected 1 row: prompt: got blank text" in shown
    assert errors == ""
    assert not any(empty.iterdir())


def test_the_installed_packages_render_in_ray_workers(installed: Path, tmp_path: Path) -> None:
    table = write_table(tmp_path / "ads.parquet", prompt=["one", "two"], num_frames=[5, 9])
    (empty := tmp_path / "empty").mkdir()
    command = [sys.executable, "-c", RENDER, "render", table, "-o", tmp_path / "out", *QUICK]
    shown, errors = run(command, empty, str(installed))
    report = json.loads(errors.splitlines()[-1])
    assert report["code"] == ExitCode.OK, shown
    assert all(path.startswith(f"{installed}/") for path in report["files"])
    rows = pq.read_table(tmp_path / "out" / "manifest").to_pylist()
    assert [row["status"] for row in rows] == ["committed", "committed"]
    assert [read_frames(row["uri"]).shape for row in rows] == [(5, 64, 64, 3), (9, 64, 64, 3)]
    assert (tmp_path / "out" / "index.html").exists()
    assert not any(empty.iterdir())


def test_the_installed_command_renders_beside_modules_of_the_same_names(
    installed: Path, tmp_path: Path
) -> None:
    """Ray's workers look for modules in the folder that a job is started in, and first."""
    write_table(tmp_path / "ads.parquet", prompt=["one"], num_frames=[5])
    (tmp_path / "jobs").mkdir()
    for name in ("pipeline.py", "cluster.py", "jobs/__init__.py"):
        (tmp_path / name).write_text("raise ImportError('not ours')\n")
    command = [sys.executable, installed / "bin" / "rushes"]
    run([*command, "render", "ads.parquet", "-o", "out", *QUICK], tmp_path, str(installed))
    (row,) = pq.read_table(tmp_path / "out" / "manifest").to_pylist()
    assert row["status"] == "committed"

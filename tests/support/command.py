"""What tests of the `rushes` command share: its calls, tables for it, and what a folder holds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[2]
RUSHES = (sys.executable, "-m", "jobs.cli")
ONE_GANG = ("--set", "gangs.0.count=1")
QUICK = (*ONE_GANG, "--set", "request.num_inference_steps=2")
"""A recipe that renders a clip in a blink: what is tested is everything around the model."""

_MEASURED = """
import json, resource, sys
from jobs.cli import app
code = app(sys.argv[1:], standalone_mode=False)
used = resource.getrusage(resource.RUSAGE_SELF)
loaded = [name for name in ("ray", "torch", "diffusers", "transformers") if name in sys.modules]
print(json.dumps({"code": code or 0, "cpu_s": used.ru_utime, "loaded": loaded}), file=sys.stderr)
"""


def write_table(path: Path, **columns: Any) -> str:
    """Write a Parquet table of the given columns; return its path as text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return str(path)


def list_files(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below a folder, by relative path."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def make_environment() -> dict[str, str]:
    """Return this process's environment, for a process that imports this tree from any folder."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def rushes(*args: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end in a process of its own."""
    command, env = [*RUSHES, *map(str, args)], make_environment() | environment
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)


def measure_rushes(*args: str | Path, cwd: Path) -> tuple[str, dict[str, Any]]:
    """Run the command; return its output, and its exit code, CPU seconds and heavy imports."""
    command = [sys.executable, "-c", _MEASURED, *map(str, args)]
    done = subprocess.run(
        command, cwd=cwd, env=make_environment(), capture_output=True, text=True, check=True
    )
    return done.stdout, json.loads(done.stderr)


@contextmanager
def start_rushes(
    *args: str | Path, cwd: Path, **environment: str
) -> Iterator[subprocess.Popen[str]]:
    """Start the command, in a process group of its own as a shell does; end all that is left."""
    process = subprocess.Popen(
        [*RUSHES, *map(str, args)],
        cwd=cwd,
        env={**make_environment(), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        for each in find_children(process.pid):
            end_process(each)
        process.kill()
        process.wait()


def find_children(pid: int) -> list[psutil.Process]:
    """Return every process that a process started, directly or not; none once it is gone."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def find_name(process: psutil.Process) -> str:
    """Return what a process calls itself; nothing once it is gone."""
    try:
        return process.cmdline()[0]
    except (psutil.Error, IndexError):
        return ""


def find_named(pid: int, name: str) -> psutil.Process | None:
    """Return a process under another by what it calls itself."""
    children = find_children(pid)
    return next((each for each in children if find_name(each).startswith(name)), None)


def find_program(pid: int, name: str) -> psutil.Process | None:
    """Return a process under another that runs the program of a name."""
    children = find_children(pid)
    return next((each for each in children if find_name(each).endswith(f"/{name}")), None)


def end_process(process: psutil.Process) -> None:
    """Kill a process; one that is gone already is fine."""
    try:
        process.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return


def is_alive(process: psutil.Process) -> bool:
    """Return whether a process runs: it is neither gone nor a zombie."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(condition: Callable[[], Any], within_s: float, what: str) -> Any:
    """Return the first true value of `condition`, asked again and again.

    Asking takes a fifth of a core at most, the rest is for what is waited for.
    """
    deadline = time.monotonic() + within_s
    while (now := time.monotonic()) < deadline:
        value = condition()
        if value:
            return value
        time.sleep(max(0.05, 4 * (time.monotonic() - now)))
    raise AssertionError(f"not within {within_s:.0f} s: {what}")

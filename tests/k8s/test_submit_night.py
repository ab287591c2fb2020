"""A night's submitter, on a Ray of this machine: it ends as the night does, and waits no longer."""

from __future__ import annotations

import os
import runpy
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import end_process, find_children, wait_until
from tests.support.manifests import K8S, find_kind

BIN = Path(sys.executable).parent
SCRIPT = runpy.run_path(str(K8S / "bin" / "submit-night"), run_name="submit-night")
"""What the submitter's file defines."""
START_S, RUN_S = 120.0, 120.0
GIVEN = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
GIVEN |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4}
GIVEN |= {"RUSHES_OUTPUT": "s3://last-month/{night}", "RUSHES_TABLES": "s3://last-month/*"}

pytestmark = pytest.mark.timeout(600)


def find_port() -> int:
    with socket.socket() as each:
        each.bind(("127.0.0.1", 0))
        return each.getsockname()[1]


@contextmanager
def run_head(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run a head node whose dashboard listens on a port."""
    call = [BIN / "ray", "start", "--head", "--block", "--num-cpus=0", "--port=0",
            f"--dashboard-port={port}", "--include-dashboard=true", f"--temp-dir={folder}",
            f"--dashboard-agent-listen-port={find_port()}", "--object-store-memory=100000000",
            "--disable-usage-stats"]  # fmt: skip
    log = (folder.parent / "log").open("ab")
    head = subprocess.Popen(call, env=GIVEN, stdout=log, stderr=log)
    try:
        yield head
    finally:
        for each in find_children(head.pid):
            end_process(each)
        head.kill()
        head.wait()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where Ray keeps its own: sockets have short names."""
    return tmp_path_factory.mktemp("r") / "s"


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """A dashboard, which may be about to start."""
    port = find_port()
    with run_head(folder, port):
        yield f"127.0.0.1:{port}"


@contextmanager
def submit(
    address: str, name: str, entrypoint: str, wait_s: float, **given: str
) -> Iterator[subprocess.Popen[str]]:
    """Run a submitter as KubeRay does."""
    given |= {
        "RAY_DASHBOARD_ADDRESS": address,
        "RAY_JOB_SUBMISSION_ID": name,
        "RUSHES_SUBMIT_WAIT_S": str(wait_s),
    }
    process = subprocess.Popen(
        [sys.executable, K8S / "bin" / "submit-night", entrypoint],
        env=GIVEN | given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def follow(address: str, name: str, entrypoint: str, **given: str) -> tuple[int, str]:
    """Run a submitter to its end; return its exit code and what it said."""
    with submit(address, name, entrypoint, START_S, **given) as process:
        said, _ = process.communicate(timeout=START_S + RUN_S)
    return process.returncode, said


@pytest.mark.parametrize("code", [0, 3])
def test_it_ends_as_the_night(address: str, code: int) -> None:
    ended, said = follow(
        address, f"ends-{code}", f'echo "it is $((40 + 2))"; exec sh -c "exit {code}"'
    )
    assert (ended == 0) == (code == 0)
    assert said.count("it is 42\n") == 1


def test_a_pod_that_comes_again_follows_the_night_that_is_there(
    address: str, tmp_path: Path
) -> None:
    entrypoint = f"echo once >> {tmp_path / 'made'}; exit 1"
    assert [follow(address, "again", entrypoint)[0] for _ in range(2)] == [1, 1]
    assert (tmp_path / "made").read_text() == "once\n"


def test_it_hands_on_the_date_that_it_is_given(address: str) -> None:
    entrypoint = f"exec {K8S / 'bin' / 'run-night'} echo 'it is {{night}}'"
    _, said = follow(address, "dated", entrypoint, RUSHES_NIGHT="2026-11-29")
    assert "it is 2026-11-29\n" in said


def test_it_sends_the_settings_that_it_is_given(address: str) -> None:
    entrypoint = 'echo "from $RUSHES_TABLES to ${RUSHES_OUTPUT}"'
    given = {"RUSHES_TABLES": "s3://tonight/{night}*.parquet", "RUSHES_OUTPUT": "s3://tonight/b c"}
    _, said = follow(address, "settings", entrypoint, **given)
    assert "from s3://tonight/{night}*.parquet to s3://tonight/b c\n" in said


@pytest.mark.parametrize(("hour", "minute", "days"), [(20, 0, 0), (11, 59, -1), (12, 0, 0)])
def test_a_night_of_a_cronjobs_job_has_the_date_of_its_evening(
    build: Any, monkeypatch: pytest.MonkeyPatch, hour: int, minute: int, days: int
) -> None:
    (clock,) = find_kind(build("shared"), "CronJob")
    (container,) = clock["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    (variable,) = (
        each["name"]
        for each in container["env"]
        if "['batch.kubernetes.io/job-name']" in str(each.get("valueFrom"))
    )
    made_for = datetime.now(UTC) - timedelta(days=3)
    made_for = made_for.replace(hour=hour, minute=minute, second=0, microsecond=0)
    monkeypatch.setenv(variable, f"night-{int(made_for.timestamp()) // 60}")
    assert SCRIPT["find_night"]() == f"{made_for + timedelta(days=days):%F}"


@pytest.mark.parametrize("job", ["now-1796068800", "night-20261130", "night-again"])
def test_another_jobs_name_says_no_date(monkeypatch: pytest.MonkeyPatch, job: str) -> None:
    monkeypatch.setenv("RUSHES_JOB", job)
    assert SCRIPT["find_night"]() is None


def test_a_night_without_a_date_has_the_clocks(address: str) -> None:
    entrypoint = f"exec {K8S / 'bin' / 'run-night'} echo 'it is {{night}}'"
    evenings = {f"it is {datetime.now(UTC) - timedelta(hours=12):%F}\n"}
    _, said = follow(address, "again-abcde", entrypoint, RUSHES_JOB="night-again")
    evenings.add(f"it is {datetime.now(UTC) - timedelta(hours=12):%F}\n")  # noon may have passed
    assert any(each in said for each in evenings)


def test_a_night_that_is_stopped_has_not_succeeded(address: str) -> None:
    with submit(address, "stopped", "echo begun; exec sleep 600", START_S) as process:
        lines = iter(process.stdout or ())
        assert "begun\n" in lines
        call = [BIN / "ray", "job", "stop", "--address", f"http://{address}", "stopped"]
        subprocess.run(call, env=GIVEN, stdout=subprocess.DEVNULL, check=True)
        assert process.wait(RUN_S) == 1


def test_it_waits_for_no_cluster_for_ever() -> None:
    with submit(f"127.0.0.1:{find_port()}", "nowhere", "true", 2.0) as process:
        _, complaint = process.communicate(timeout=RUN_S)
    assert process.returncode == 1
    assert "nothing heard of nowhere for 2 s" in complaint


def test_on_a_head_that_is_made_anew_the_night_goes_on(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    port, here = find_port(), tmp_path / "made"
    entrypoint = f"echo try >> {here}; [ $(wc -l < {here}) = 2 ] || exec sleep 600"
    with submit(f"127.0.0.1:{port}", "anew", entrypoint, START_S) as process:
        for number in (1, 2):
            with run_head(tmp_path_factory.mktemp("h") / "s", port):
                wait_until(lambda: here.exists() and len(here.read_text()) >= 4, START_S, "a try")
                if number == 2:
                    process.communicate(timeout=RUN_S)
    assert process.returncode == 0
    assert here.read_text() == "try\ntry\n"


def test_a_cluster_that_is_gone_ends_it(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    port, here = find_port(), tmp_path / "made"
    with ExitStack() as ends:
        with run_head(tmp_path_factory.mktemp("g") / "s", port):
            assert follow(f"127.0.0.1:{port}", "before", "true")[0] == 0
            call = submit(f"127.0.0.1:{port}", "gone", f"touch {here}; exec sleep 600", 10.0)
            process = ends.enter_context(call)
            wait_until(here.exists, START_S, "the night")
        _, complaint = process.communicate(timeout=RUN_S)
    assert process.returncode == 1
    assert "nothing heard of gone for 10 s" in complaint


def test_it_ends_when_its_pod_does() -> None:
    with submit(f"127.0.0.1:{find_port()}", "nowhere", "true", RUN_S) as process:
        assert process.stderr
        process.stderr.readline()
        process.terminate()
        assert process.wait(RUN_S) == 143

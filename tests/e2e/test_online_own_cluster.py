"""The endpoint on a cluster that was there before it, and is there after it."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from subprocess import Popen

import httpx2
import pytest
from openai import OpenAI

from jobs.cli import ExitCode
from tests.support.command import find_named, start_rushes, wait_until
from tests.support.nodes import Nodes, start_nodes
from tests.support.online import CLIP_S

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning"),
]
CPUS = 8
UNFINISHED = (
    b"POST /v1/videos HTTP/1.1\r\nHost: here\r\nContent-Type: application/json\r\n"
    b"Content-Length: 1400\r\n\r\n{"
)
END_S = 20.0
"""Longer than an end takes, and shorter than whoever never sends the rest would have."""
QUICK, SLOW = {"num_inference_steps": "2"}, {"num_inference_steps": "100"}


@contextmanager
def serve(nodes: Nodes, port: int, cwd: Path) -> Iterator[Popen[str]]:
    call = ("serve", "-o", "online", "--insecure", "--port", str(port), "--set", "lease.limit_s=6",
            "--set", "gangs.0.min_count=0", "--set", "pool.idle_s=2",
            "--set", "pool.tenant_limit_s=600")  # fmt: skip
    with start_rushes(*call, "--address", nodes.address, cwd=cwd) as command:
        assert command.stdout
        line = ""
        while "is ready" not in line:
            line = command.stdout.readline()
            assert line, command.communicate()
        yield command


def test_it_goes_to_no_gangs_and_back_and_its_command_may_die(tmp_path: Path) -> None:
    """The cluster's working folder is another than the command's."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with (
        start_nodes(0, CPUS, workers=1) as nodes,
        OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="any", max_retries=0) as client,
    ):

        def has_rank() -> bool:
            return any(find_named(each, "ray::RankWorker") for each in nodes.raylets.values())

        with serve(nodes, port, tmp_path) as command:
            for prompt in ("from no gang", "from none again"):
                wait_until(lambda: not has_rank(), CLIP_S, "no gang")
                done = client.videos.create_and_poll(
                    prompt=prompt, extra_body=QUICK, poll_interval_ms=100
                )
                assert done.status == "completed", done
            assert len(list((tmp_path / "online" / "clips").rglob("*.mp4"))) == 2
            late = client.videos.create(prompt="late", extra_body=SLOW)
            command.kill()
        with serve(nodes, port, tmp_path) as command:
            assert client.videos.poll(late.id, poll_interval_ms=100).status == "completed"
            told = set[int]()

            def ask_until_its_end() -> bool:
                with suppress(httpx2.TransportError):
                    asked = {"prompt": f"too late {time.monotonic()}", **QUICK}
                    answer = httpx2.post(f"{client.base_url}videos", json=asked)
                    if answer.headers["content-type"] == "application/json":
                        told.add(answer.status_code)  # else it is of Serve's proxy, without a route
                return command.poll() is not None

            with socket.create_connection(("127.0.0.1", port)) as slow:
                slow.sendall(UNFINISHED)
                command.terminate()
                wait_until(ask_until_its_end, END_S, "its end")
            _, stderr = command.communicate()
        assert command.returncode == ExitCode.OK, stderr
        assert 503 in told <= {200, 429, 503}
        assert not find_named(nodes.head, "ray::GangPool"), "nobody is its tenant"
        assert not has_rank()

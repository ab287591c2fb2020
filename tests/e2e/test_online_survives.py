"""What the online endpoint has accepted survives whatever dies. Ends the server: its last test."""

from __future__ import annotations

import os
import signal

import pytest

from jobs.cli import ExitCode
from pipeline.checkpoints import FOLDER as CHECKPOINTS
from pipeline.lease import read_lease
from pipeline.store import ObjectStore
from tests.support.command import end_process, wait_until
from tests.support.online import CLIP_S, LONG, PROMPT, Server

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning"),
]
DISPATCHER = "ray::ServeReplica:rushes:Dispatcher"


def test_what_was_accepted_survives_the_dispatcher_and_the_whole_machine(server: Server) -> None:
    client = server.client()
    video = client.videos.create_and_poll(prompt=PROMPT, poll_interval_ms=100)
    patient = client.with_options(max_retries=10)
    ids = [patient.videos.create(prompt=f"flood {n}", extra_body=LONG).id for n in range(3)]
    wait_until(lambda: client.videos.retrieve(ids[0]).progress > 5, CLIP_S, "steps")
    end_process(server.find(DISPATCHER))
    ids.append(patient.videos.create(prompt="flood 3", extra_body=LONG).id)
    wait_until(lambda: client.videos.retrieve(ids[0]).progress > 20, CLIP_S, "steps again")
    server.kill()
    server.start()
    ends = [patient.videos.poll(each, poll_interval_ms=200) for each in ids]
    assert [each.status for each in ends] == ["completed"] * 4
    for number in range(4):
        commit = server.read_commit(f"flood {number}")
        attempts = list((server.output / commit.video.key).parent.glob("*.mp4"))
        assert len(attempts) == 1, "rendered once"
    assert patient.videos.retrieve(video.id) == video
    wait_until(lambda: {*ids} <= server.listener.read().keys(), CLIP_S, "the webhook told of all")
    late = [patient.videos.create(prompt=f"late {n}", extra_body=LONG).id for n in range(3)]
    wait_until(lambda: client.videos.retrieve(late[0]).progress > 5, CLIP_S, "steps")
    os.kill(server.process.pid, signal.SIGTERM)
    stdout, stderr = server.process.communicate(timeout=60)
    assert server.process.returncode == ExitCode.OK, (stdout, stderr)
    held = read_lease(ObjectStore(server.output))
    assert held
    assert held.released
    assert list((server.output / CHECKPOINTS).rglob("*.json")), "what was under way is saved"

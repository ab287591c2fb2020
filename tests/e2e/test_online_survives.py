"""What the online endpoint has accepted survives whatever dies. Ends the server: its last test."""

from __future__ import annotations

import os
import signal

import pytest
from openai import NotFoundError, OpenAI

from jobs.cli import ExitCode
from pipeline.batches import name_video
from pipeline.checkpoints import FOLDER as CHECKPOINTS
from pipeline.lease import read_lease
from pipeline.store import ObjectStore
from tests.support.command import end_process, wait_until
from tests.support.online import CLIP_S, ENDED, LONG, PROMPT, Server, create_batch, read_answers

pytestmark = [
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning"),
]
DISPATCHER = "ray::ServeReplica:rushes:Dispatcher"


def test_what_was_accepted_survives_the_dispatcher_and_the_whole_machine(server: Server) -> None:
    client = server.client()
    video = client.videos.create_and_poll(prompt=PROMPT, poll_interval_ms=100)
    patient = client.with_options(max_retries=10)
    bodies = ({"prompt": f"line {n}", "num_inference_steps": 40} for n in range(2))
    batch, file_id = create_batch(client, *bodies, {"prompt": "too small", "size": "1x1"})
    lines = [name_video(batch.id, number) for number in (1, 2)]
    wait_until(lambda: is_begun(client, lines[0]), CLIP_S, "a line's steps")
    client.files.delete(file_id)
    ids = [patient.videos.create(prompt=f"flood {n}", extra_body=LONG).id for n in range(3)]
    wait_until(lambda: client.videos.retrieve(ids[0]).progress > 5, CLIP_S, "steps")
    end_process(server.find(DISPATCHER))
    ids.append(patient.videos.create(prompt="flood 3", extra_body=LONG).id)
    wait_until(lambda: client.videos.retrieve(ids[0]).progress > 20, CLIP_S, "steps again")
    server.kill()
    server.start()
    ends = [patient.videos.poll(each, poll_interval_ms=200) for each in ids]
    assert [each.status for each in ends] == ["completed"] * 4
    wait_until(lambda: patient.batches.retrieve(batch.id).status in ENDED, CLIP_S, "the batch")
    done = patient.batches.retrieve(batch.id)
    assert done.status == "completed"
    assert done.output_file_id
    assert done.error_file_id
    answers = [each["response"]["body"] for each in read_answers(patient, done.output_file_id)]
    assert [each["id"] for each in answers] == lines
    assert len(read_answers(patient, done.error_file_id)) == 1
    for prompt in (*(f"flood {n}" for n in range(4)), "line 0", "line 1"):
        commit = server.read_commit(prompt)
        attempts = list((server.output / commit.video.key).parent.glob("*.mp4"))
        assert len(attempts) == 1, "rendered once"
    assert patient.videos.retrieve(video.id) == video
    told = {*ids, batch.id}
    wait_until(lambda: told <= server.listener.read().keys(), CLIP_S, "the webhook told of all")
    assert not server.listener.read().keys() & {*lines}, "of a batch, its end alone"
    late = [patient.videos.create(prompt=f"late {n}", extra_body=LONG).id for n in range(3)]
    wait_until(lambda: client.videos.retrieve(late[0]).progress > 5, CLIP_S, "steps")
    os.kill(server.process.pid, signal.SIGTERM)
    stdout, stderr = server.process.communicate(timeout=60)
    assert server.process.returncode == ExitCode.OK, (stdout, stderr)
    held = read_lease(ObjectStore(server.output))
    assert held
    assert held.released
    assert list((server.output / CHECKPOINTS).rglob("*.json")), "what was under way is saved"


def is_begun(client: OpenAI, video_id: str) -> bool:
    """Return whether steps of a video are made, which is there once it is taken up."""
    try:
        return client.videos.retrieve(video_id).progress > 0
    except NotFoundError:
        return False

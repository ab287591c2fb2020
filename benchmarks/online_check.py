"""What the online endpoint promises, checked after it was killed: each finding is a violation."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from openai import NotFoundError

from benchmarks.online_callers import Callers, read_lines
from benchmarks.online_plan import BatchCall, Phase, Undisturbed, VideoCall
from jobs.clean import clean_output
from pipeline.batches import name_video
from pipeline.checkpoints import FOLDER as CHECKPOINTS
from pipeline.ledger import Ledger
from pipeline.store import ObjectStore
from tests.support.online import ENDED, Listener

END_S, TOLD_S, LOOK_S = 300.0, 60.0, 0.25


class Ends:
    """Everything that a round's calls have made, as it ended."""

    def __init__(self, callers: Callers, plan: Iterable[Phase]) -> None:
        """Wait until all of it has ended, or for `END_S`."""
        self.calls = {call.number: call for phase in plan for call in phase.calls}
        self._callers = callers
        keys = {call.key for call in self.calls.values()}
        until = time.monotonic() + END_S
        while True:
            self.videos = [each for key in keys for each in self._list(key, "videos")]
            self.batches = [each for key in keys for each in self._list(key, "batches")]
            everything = [*self.videos, *self.batches]
            if all(each.status in ENDED for each in everything) or time.monotonic() > until:
                break
            time.sleep(LOOK_S)

    def _list(self, key: str, what: str) -> list[Any]:
        client = self._callers.client(key)
        found = self._callers.ask(lambda: list(getattr(client, what).list(limit=100)))
        return [
            each
            for each in found
            if (getattr(each, "metadata", None) or {}).get("chaos") == self._callers.name
        ]

    def find_call(self, made: Any) -> Any:
        """Return the call that made a video or a batch."""
        return self.calls[int(made.metadata["call"])]


def check_answers(ends: Ends, callers: Callers, expected: list[Undisturbed]) -> Iterator[str]:
    """Check what the endpoint says of what it has accepted, and what it hands out."""
    yield from callers.wrong
    listed = {each.id for each in (*ends.videos, *ends.batches)}
    for made_id in (callers.videos.keys() | callers.batches.keys()) - callers.deleted - listed:
        yield f"{made_id} was acknowledged and is not listed"
    made = Counter(ends.find_call(each).number for each in (*ends.videos, *ends.batches))
    for number, call in ends.calls.items():
        if isinstance(call, VideoCall) and call.delete_after_s is not None:
            least, most = 0, 0
        elif isinstance(call, VideoCall) and call.is_idempotent:
            least, most = 1, 1
        else:  # a try of which no answer came may have been accepted, too
            least, most = callers.acknowledged[number], callers.tries[number]
        if not least <= made[number] <= most:
            yield f"call {number} made {made[number]}, not {least} to {most}: {call}"
    for video in ends.videos:
        call, before = ends.find_call(video), callers.ended.get(video.id)
        if before and before != video:
            yield f"{video.id} had ended as {before}, and is {video}"
        if video.status != "completed":
            yield f"{video.id} of call {call.number} is {video.status}: {video.error}"
        else:
            yield from _check_content(callers, call.key, video.id, expected[call.clip])
    for batch in ends.batches:
        yield from _check_batch(callers, ends.find_call(batch), batch, expected)
    for video_id in callers.deleted:
        client = callers.client(callers.videos[video_id].key)
        try:
            callers.ask(lambda: client.videos.retrieve(video_id))  # noqa: B023 - called at once
            yield f"{video_id} was deleted and is back"
        except NotFoundError:
            pass


def _check_content(
    callers: Callers, key: str, video_id: str, expected: Undisturbed
) -> Iterator[str]:
    client = callers.client(key)
    content = callers.ask(lambda: client.videos.download_content(video_id).read())
    if hashlib.sha256(content).hexdigest() != expected.sha256:
        yield f"{video_id} is not, byte for byte, the undisturbed clip {expected.clip_id[:16]}"


def _check_batch(
    callers: Callers, call: BatchCall, batch: Any, expected: list[Undisturbed]
) -> Iterator[str]:
    if batch.status != "completed":
        yield f"{batch.id} is {batch.status}"
        return
    client, asked = callers.client(call.key), len(call.clips)
    counts = batch.request_counts
    if (counts.total, counts.completed, counts.failed) != (asked + 1, asked, 1):
        yield f"{batch.id} counts {counts}"
    good, bad = (
        read_lines(callers.ask(lambda: client.files.content(file_id).read()))  # noqa: B023
        for file_id in (batch.output_file_id, batch.error_file_id)
    )
    ids = [name_video(batch.id, number) for number in range(1, asked + 1)]
    if [each["custom_id"] for each in bad] != [f"line {asked}"]:
        yield f"{batch.id} has errors {bad}"
    answers = [(each["custom_id"], each["response"]["body"]) for each in good]
    if [(name, body["id"], body["status"]) for name, body in answers] != [
        (f"line {number}", video_id, "completed") for number, video_id in enumerate(ids)
    ]:
        yield f"{batch.id} has answers {good}"
        return
    for video_id, clip in zip(ids, call.clips, strict=True):
        yield from _check_content(callers, call.key, video_id, expected[clip])


def check_told(ends: Ends, callers: Callers, listener: Listener) -> Iterator[str]:
    """Check that the webhook was told of every end, and of no other."""
    due = {each.id: "video.completed" for each in ends.videos}
    due |= {each.id: "batch.completed" for each in ends.batches}
    until = time.monotonic() + TOLD_S
    while not due.keys() <= listener.read().keys() and time.monotonic() < until:
        time.sleep(LOOK_S)
    told = set(listener.heard)
    for made_id in due.keys() - {each for each, _ in told}:
        yield f"the webhook was not told of {made_id}"
    lines = {
        name_video(batch.id, number)
        for batch in ends.batches
        for number in range(1, len(ends.find_call(batch).clips) + 2)
    }
    for made_id, event in told:
        wrong = event != due.get(made_id, event) or made_id in lines
        # One that was deleted may have been completed before.
        if wrong or (made_id in callers.deleted and event != "video.completed"):
            yield f"the webhook was told {event} of {made_id}"


def check_output(
    output: Path, ends: Ends, expected: list[Undisturbed], strays: Counter[str]
) -> Iterator[str]:
    """Check what an endpoint that has ended leaves: a clip is committed once, with one MP4.

    What an attempt left that was cut off between upload and commit, `rushes clean` removes; it is
    counted in `strays`.
    """
    ledger = Ledger(ObjectStore(output))
    commits = {each.clip_id: each for each in ledger.read_commits()}
    asked = {expected[clip].clip_id: expected[clip] for clip in _find_clips(ends)}
    for clip_id in asked.keys() - commits.keys():
        yield f"clip {clip_id[:16]} is not committed"
    for each in expected:
        commit = commits.get(each.clip_id)
        if commit is None:
            continue
        held = [ledger.store.checksum(file.key)[0] for file in (commit.video, commit.poster)]
        if held != [commit.video.sha256, commit.poster.sha256] or held[0] != each.sha256:
            yield f"clip {each.clip_id[:16]} differs from the undisturbed one"
    named = {file.key for each in commits.values() for file in (each.video, each.poster)}
    strays["files"] += len(set(ledger.store.list("clips")) - named)
    clean_output(str(output), remove=True, unfinished=False, say=lambda _: None)
    files = set(ledger.store.list("clips"))
    for key in sorted(files - named):
        yield f"{key} is no commit's, and stays"
    for key in sorted(named - files):
        yield f"{key} is a commit's, and is gone"
    for key in ledger.store.list(CHECKPOINTS):
        if any(clip_id in key for clip_id in commits):
            yield f"{key} is saved of a clip that is committed"


def _find_clips(ends: Ends) -> set[int]:
    """Return the clips that are to be there: those of all that was not deleted."""
    single = {ends.find_call(each).clip for each in ends.videos}
    return single.union(*(ends.find_call(each).clips for each in ends.batches))

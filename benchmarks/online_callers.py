"""Callers of the online endpoint who go on whatever dies, and remember what they were answered."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from openai import APIConnectionError, APIStatusError, NotFoundError, OpenAI

from benchmarks.online_plan import BatchCall, VideoCall, make_body
from tests.support.online import Server, make_lines

RETRY_S, LOOK_S = 0.5, 0.1
PATIENCE_S = 300.0
"""For how long one call is made again and again."""
ENDED = ("completed", "failed")
WRONG_LINE = {"prompt": "too small", "size": "1x1"}
"""The last one of each batch."""
_T = TypeVar("_T")


class Callers:
    """Begin calls, and wait for their answers; each is made in a thread of its own."""

    def __init__(self, server: Server, name: str) -> None:
        """Call a server; `name` is in every call's metadata, and in nobody else's."""
        self.name = name
        self.videos: dict[str, VideoCall] = {}
        """Those that were acknowledged, by id."""
        self.batches: dict[str, BatchCall] = {}
        self.tries = Counter[int]()
        """How often each call for a video or a batch was sent; of each call's number."""
        self.acknowledged = Counter[int]()
        self.deleted = set[str]()
        self.unanswered = Counter[str]()
        """Why calls had to be made again."""
        self.wrong: list[str] = []
        """What should not have been answered."""
        self._server = server
        self._clients = {}
        self._deleting = set[str]()
        self.ended: dict[str, Any] = {}
        """Videos as they were when they were first seen ended, by id."""
        self._threads: list[threading.Thread] = []
        self._is_over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def begin(self, calls: Iterable[VideoCall | BatchCall]) -> None:
        """Make each call at its time from now."""
        for call in calls:
            thread = threading.Thread(target=self._make, args=(call,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def join(self) -> None:
        """Wait until all calls are answered; then look no more how the videos go."""
        for thread in self._threads:
            thread.join()
        self._is_over.set()
        self._watcher.join()

    def count_under_way(self) -> int:
        """Return how many calls and videos are neither answered nor, as far as was seen, ended."""
        calling = sum(thread.is_alive() for thread in self._threads)
        return calling + len(self.videos.keys() - self.ended.keys() - self._deleting)

    def client(self, key: str) -> OpenAI:
        """Return a client that makes no call twice by itself."""
        return self._clients.setdefault(key, self._server.client(key))

    def ask(self, ask: Callable[[], _T]) -> _T:
        """Return the answer to a call that is made until there is one."""
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                return ask()
            except APIStatusError as error:
                if error.status_code < 500 and error.status_code != 429:
                    raise
                if error.status_code not in (429, 503):
                    self.wrong.append(f"an answer that is none to try again on: {error}")
                why, last = str(error.status_code), error
            except APIConnectionError as error:
                why, last = type(error.__cause__ or error).__name__, error
            self.unanswered[why] += 1
            if time.monotonic() > until:
                raise last
            time.sleep(RETRY_S)

    def _make(self, call: VideoCall | BatchCall) -> None:
        time.sleep(call.after_s)
        try:
            self._make_video(call) if isinstance(call, VideoCall) else self._make_batch(call)
        except Exception as error:  # noqa: BLE001 - whatever it is, the round has found it
            self.wrong.append(f"call {call.number}: {error!r}")

    def _make_video(self, call: VideoCall) -> None:
        client = self.client(call.key)
        body = make_body(call.clip)
        asked: dict[str, Any] = {name: body.pop(name) for name in ("prompt", "size")}
        asked["extra_body"] = {**body, "metadata": self.label(call)}
        if call.is_idempotent:
            asked["extra_headers"] = {"Idempotency-Key": f"{self.name} {call.number}"}

        def create() -> str:
            self.tries[call.number] += 1
            return client.videos.create(**asked).id

        video_id = self.ask(create)
        self.videos[video_id] = call
        self.acknowledged[call.number] += 1
        if call.asks_again and (again := self.ask(create)) != video_id:
            self.wrong.append(f"call {call.number} again: {again}, not {video_id}")
        if call.delete_after_s is not None:
            time.sleep(call.delete_after_s)
            self._deleting.add(video_id)
            self._delete(lambda: client.videos.delete(video_id))
            self.deleted.add(video_id)

    def _delete(self, delete: Callable[[], object]) -> None:
        tries = 0

        def try_it() -> None:
            nonlocal tries
            tries += 1
            delete()

        try:
            self.ask(try_it)
        except NotFoundError:  # a try before, of which no answer came, may have deleted it
            if tries == 1:
                raise

    def _make_batch(self, call: BatchCall) -> None:
        client = self.client(call.key)
        lines = make_lines(*map(make_body, call.clips), WRONG_LINE)
        file = self.ask(lambda: client.files.create(file=lines, purpose="batch"))

        def create() -> Any:
            self.tries[call.number] += 1
            return client.batches.create(
                input_file_id=file.id,
                endpoint="/v1/videos",
                completion_window="24h",
                metadata=self.label(call),
            )

        batch = self.ask(create)
        self.batches[batch.id] = call
        self.acknowledged[call.number] += 1
        if call.deletes_file and self.tries[call.number] == 1:  # else another may be to read it
            while self.ask(lambda: client.batches.retrieve(batch.id)).status == "validating":
                time.sleep(LOOK_S)
            self._delete(lambda: client.files.delete(file.id))

    def label(self, call: VideoCall | BatchCall) -> dict[str, str]:
        """Return the metadata by which a call's videos are known again."""
        return {"chaos": self.name, "call": str(call.number)}

    def _watch(self) -> None:
        """Look, again and again, at each video that has not ended: its id is valid all along."""
        while not self._is_over.wait(LOOK_S):
            for video_id in self.videos.keys() - self.ended.keys() - self._deleting:
                if self._is_over.wait(LOOK_S):
                    return
                try:
                    self._look(video_id)
                except (APIConnectionError, APIStatusError) as error:
                    if isinstance(error, NotFoundError) and video_id not in self._deleting:
                        self.wrong.append(f"{video_id}, acknowledged, is not known: {error}")
                        self.ended[video_id] = None

    def _look(self, video_id: str) -> None:
        client = self.client(self.videos[video_id].key).with_options(timeout=5)
        video = client.videos.retrieve(video_id)
        if video.status in ENDED:
            self.ended[video_id] = video


def read_lines(content: bytes) -> list[Any]:
    """Return what a batch's file has on each line."""
    return [json.loads(line) for line in content.splitlines()]

"""What an output holds that nobody will read: attempts that lost or were cut off, spent saves.

Only of use while no run writes the output: what a live run has uploaded and not yet committed looks
the same. Whoever deletes holds the lease.
"""
# pyarrow carries no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Container, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import PurePosixPath

from pipeline import batches, checkpoints, inbox, inputs, lease, outbox, runs, uploads
from pipeline.batches import BatchStore
from pipeline.errors import UsageError
from pipeline.inbox import Inbox, VideoJob
from pipeline.inputs import Inputs
from pipeline.ledger import RUN_KEY, Ledger
from pipeline.places import TEMPORARY, map_threads
from pipeline.store import ObjectStore
from pipeline.uploads import Uploads

READ_ONLY = 0
"""No run's epoch: what has it writes nothing."""
_FOLDERS = (
    *("rows", "rejects", "manifest", "clips", "commits", "failures", "work"),
    *(each.FOLDER for each in (batches, checkpoints, inbox, inputs, lease, outbox, runs, uploads)),
)
"""Where an output's objects are, but for those in its root."""
_CUT_OFF = re.compile(
    rf"(?:(?:{'|'.join(_FOLDERS)})/(?:[0-9a-f]{{2}}/(?:[0-9a-f]{{64}}/)?)?)?"
    rf"{re.escape(TEMPORARY)}[^/]+"
)
_SAVED = re.compile(
    rf"{checkpoints.FOLDER}/(..)/(\1[0-9a-f]{{62}})/[0-9A-Za-z-]+\.(?:json|safetensors)"
)
_WORK = re.compile(r"work/[0-9A-Za-z-]+\.parquet")
_FILE = re.compile(r"clips/(..)/(\1[0-9a-f]{62})/([0-9A-Za-z-]+)\.(?:mp4|jpg)")


@dataclass(frozen=True)
class Garbage:
    """Keys by kind; every one can go without a loss, but for `unfinished`."""

    attempts: tuple[str, ...]
    """Videos and posters that no commit names."""
    checkpoints: tuple[str, ...]
    """Saved work of clips that are committed, or that no row or video asks for any more."""
    unfinished: tuple[str, ...]
    """Saved work that the next run would go on from."""
    inputs: tuple[str, ...]
    """What finished clips of the online endpoint began with."""
    leftovers: tuple[str, ...]
    """What writers that were cut off have left: work tables, parts of files, uploads."""


def find_garbage(ledger: Ledger, dropped: Container[str] = ()) -> Garbage:
    """Return all garbage of an output; the tables `dropped`, which are to go, may be damaged.

    What such a table asked for nobody knows: no saved work is then left without a use.

    Raises:
        UsageError: there is no output here, or another table of it is damaged.
    """
    ledger.read_output()
    committed = ledger.committed_ids()
    waiting = _find_waiting(ledger.store)
    wanted = {job.clip_id for job in waiting}
    all_known = True
    for name in ledger.table_names():
        try:
            for part in ledger.read_parts(f"rows/{name}.parquet", ("clip_id",)):
                wanted.update(part["clip_id"].drop_null().to_pylist())
        except UsageError:
            if name not in dropped:
                raise
            all_known = False
    saved = defaultdict[bool, list[str]](list)
    for key in ledger.store.list(checkpoints.FOLDER):
        if match := _SAVED.fullmatch(key):
            is_wanted = match[2] in wanted or not all_known
            saved[is_wanted and match[2] not in committed].append(key)
    return Garbage(
        attempts=tuple(_find_attempts(ledger, committed)),
        checkpoints=tuple(saved[False]),
        unfinished=tuple(saved[True]),
        inputs=tuple(_find_inputs(ledger.store, waiting)),
        leftovers=(
            *filter(_WORK.fullmatch, ledger.store.list("work")),
            *_find_cut_off(ledger.store),
            *Uploads(ledger.store).list_cut_off(),
        ),
    )


def remove_garbage(ledger: Ledger, keys: tuple[str, ...]) -> None:
    """Delete objects; the caller holds the lease."""
    for _ in map_threads(ledger.store.delete, keys, ledger.store.concurrency):
        pass


def measure(ledger: Ledger, keys: tuple[str, ...]) -> int:
    """Return the size of objects in bytes; those that are gone count nothing."""

    def size(key: str) -> int:
        try:
            return ledger.store.size(key)
        except FileNotFoundError:
            return 0

    return sum(map_threads(size, keys, ledger.store.concurrency))


def _find_cut_off(store: ObjectStore) -> Iterator[str]:
    """Yield the parts of this output's own files: in a folder of it, a run may write another."""
    for key in filter(_CUT_OFF.fullmatch, store.list_unfinished()):
        _, *folders = reversed(PurePosixPath(key).parents)
        if not any(store.exists(f"{folder}/{RUN_KEY}") for folder in folders):
            yield key


def _find_waiting(store: ObjectStore) -> list[VideoJob]:
    """Return the videos that the endpoint has accepted and not brought to an end."""
    jobs = [job for job, end in Inbox(store, READ_ONLY).load() if not end]
    for batch in BatchStore(store, READ_ONLY).load():
        jobs += [line.job for line in batch.plan.lines if line.job] if batch.plan else []
    return jobs


def _find_inputs(store: ObjectStore, jobs: list[VideoJob]) -> Iterator[str]:
    """Yield the inputs that none of these videos needs."""
    needed = {job.request.opening.sha256 for job in jobs if job.request.opening}
    yield from (key for key, sha256 in Inputs(store).list() if sha256 not in needed)


def _find_attempts(ledger: Ledger, committed: set[str]) -> Iterator[str]:
    """Yield the files of clips that no commit names.

    Commits are read for clips with several attempts alone: a commit names files that are there, so
    of one attempt there is nothing to ask.
    """
    files = sorted(key for key in ledger.store.list_shards("clips") if _FILE.fullmatch(key))
    for clip_id, group in groupby(files, key=lambda key: key.split("/")[2]):
        attempts = defaultdict[str, list[str]](list)
        for key in group:
            attempts[key.rpartition("/")[2].partition(".")[0]].append(key)
        if clip_id in committed:
            named = (
                ledger.read_commit(clip_id).attempt if len(attempts) > 1 else next(iter(attempts))
            )
            del attempts[named]
        for keys in attempts.values():
            yield from keys

"""`Ledger`: what an output holds and what became of every row, kept in the store alone.

    run.json                                what this output is
    lease/<epoch>.json                      who writes it now: see `pipeline.lease`
    runs/<epoch>.json                       who wrote it, and how that ended: see `pipeline.runs`
    rows/<table>.parquet                    each table's rows as planned, labels included
    rejects/<table>.parquet                 those of them that never became a request
    clips/<ab>/<clip_id>/<attempt>.mp4|.jpg
    commits/<ab>/<clip_id>.json             create-only: THE commit; names the winning attempt
    failures/<ab>/<clip_id>/<attempt>.json  kept for good; a later commit outweighs them
    checkpoints/<ab>/<clip_id>/...          work saved on the way: see `pipeline.checkpoints`

`ab` is a clip id's first two digits. A clip is done when its commit exists, and a commit exists
only after its files were read back whole.
"""
# pyarrow carries no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
# pyright: reportUnknownParameterType=false, reportAttributeAccessIssue=false

from __future__ import annotations

import contextlib
import hashlib
import re
import time
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import parquet
from pipeline.columns import FILE_COLUMN, ROW_COLUMNS, SOURCE_KEY
from pipeline.counts import RowCounter
from pipeline.documents import (
    Artifact,
    Commit,
    CommitDraft,
    Failure,
    OutputIdentity,
    OutputStatus,
    read_document,
    row_status,
    tell_apart,
)
from pipeline.errors import NoOutputError, OutputMismatchError, UsageError
from pipeline.lease import check_epoch
from pipeline.places import AlreadyExistsError, map_threads
from pipeline.store import ObjectStore

RUN_KEY = "run.json"
SUCCESS_KEY = "_SUCCESS"
UPLOAD_TRIES = 3
RETRY_DELAY_S = 0.5
PART_ROWS = 20_000
"""Rows in memory at a time: a ledger may have millions."""


class UploadError(OSError):
    """The store does not hold what was uploaded, after several tries; nothing was committed."""


class Ledger:
    """Reads and writes one output. Safe in threads and processes; can be pickled."""

    def __init__(self, store: ObjectStore, epoch: int | None = None) -> None:
        """Touch nothing yet; with `epoch`, nothing is written once another run has taken over."""
        self.store = store
        self.epoch = epoch

    def check_epoch(self) -> None:
        """Check that this run still writes this output, and that this node sees it.

        Raises:
            LeaseLostError: another run has taken over.
            UnseenOutputError: a node has a folder of its own in the output's place.
        """
        if self.epoch is not None:
            check_epoch(self.store, self.epoch)

    def open_output(self, identity: OutputIdentity, *, may_claim: bool = False) -> OutputIdentity:
        """Begin to write here: probe the store, and make `run.json` or check the one there is.

        Returns `run.json`. With `may_claim`, it may be another's of which nothing has come: then
        whoever calls is to `claim` the output once it holds the lease.

        Raises:
            OutputMismatchError: the output is of another model, finishing spec or format.
            UsageError: the place can't be written, or holds something else.
        """
        self.store.probe()
        found = self._read_identity()
        if found is None:
            self._refuse_foreign_files()
            with contextlib.suppress(AlreadyExistsError):
                self.store.create(RUN_KEY, identity.model_dump_json(indent=1).encode())
            found = read_document(self.store, OutputIdentity, RUN_KEY)
        self._fits(found, identity, may_claim=may_claim)
        return found

    def claim(self, identity: OutputIdentity) -> None:
        """Make this output the caller's, who holds its lease, if it is another's without a clip.

        Its tables, whose clips nobody could render any more, are removed.

        Raises:
            OutputMismatchError: it is another's, of which something has come.
            LeaseLostError: another run has taken over.
        """
        if self._fits(self.read_output(), identity):
            return
        for key in self.list_tables("rows"):
            self.drop_table(Path(key).stem)
        self.check_epoch()
        self.store.put(RUN_KEY, identity.model_dump_json(indent=1).encode())

    def check_output(self, identity: OutputIdentity) -> bool:
        """Return whether an output is here already, without writing anything.

        One of another model or finishing spec, of which nothing has come, is none.

        Raises:
            OutputMismatchError: it is of another model, finishing spec or format.
            UsageError: the place can't be read.
        """
        self.store.probe(write=False)
        found = self._read_identity()
        return found is not None and self._fits(found, identity)

    def read_output(self) -> OutputIdentity:
        """Return `run.json`.

        Raises:
            NoOutputError: the place holds no output of rushes.
            UsageError: it can't be read.
        """
        self.store.probe(write=False)
        found = self._read_identity()
        if found is None:
            raise NoOutputError(
                f"{self.store.uri} holds no output of rushes: there is no {RUN_KEY}"
            )
        return found

    def commit_clip(self, draft: CommitDraft, video: Path, poster: Path) -> Commit:
        """Upload a clip's files, verify them, and commit; return the commit that holds.

        That is another attempt's where one was first: this attempt's files are then removed. An
        attempt names one video and one poster for good; render again under a new one. Any error
        but a refused create leaves open whether the commit is there: nothing is removed then, and
        calling again with the same files is right.

        Raises:
            UploadError: the store doesn't hold what was uploaded.
            LeaseLostError: another run has taken over.
        """
        self.check_epoch()  # no file to where nobody looks
        started = time.monotonic()
        stem = f"clips/{draft.clip_id[:2]}/{draft.clip_id}/{draft.attempt}"
        artifacts = {
            "video": self._upload(f"{stem}.mp4", video),
            "poster": self._upload(f"{stem}.jpg", poster),
        }
        fields: dict[str, Any] = {**dict(draft), **artifacts, "committed_at": datetime.now(UTC)}
        fields["epoch"] = self.epoch
        fields["timings"] = {**draft.timings, "upload": time.monotonic() - started}
        commit = Commit(**fields)
        self.check_epoch()
        try:
            self.store.create(_commit_key(draft.clip_id), commit.model_dump_json().encode())
        except AlreadyExistsError:
            winner = self.read_commit(draft.clip_id)
            if winner.attempt != draft.attempt:
                for artifact in artifacts.values():
                    self.store.delete(artifact.key)
            return winner
        return commit

    def committed_ids(self) -> set[str]:
        """Return the ids of all committed clips, from a listing alone."""
        keys = self.store.list_shards("commits")
        return {match[2] for key in keys if (match := _COMMIT.fullmatch(key))}

    def read_commit(self, clip_id: str) -> Commit:
        """Return a clip's commit.

        Raises:
            FileNotFoundError: it has none.
        """
        return read_document(self.store, Commit, _commit_key(clip_id))

    def read_commits(self, ids: Iterable[str] | None = None) -> Iterator[Commit]:
        """Yield the commits of these clips, or of all, several read at a time."""
        wanted = self.committed_ids() if ids is None else ids
        return map_threads(self.read_commit, wanted, self.store.concurrency)

    def record_failure(self, failure: Failure) -> None:
        """Keep the failure of an attempt, beside those of earlier ones."""
        self.check_epoch()
        key = f"failures/{failure.clip_id[:2]}/{failure.clip_id}/{failure.attempt}.json"
        self.store.put(key, failure.model_dump_json().encode())

    def failed_ids(self) -> set[str]:
        """Return the ids of all clips that ever failed, from a listing alone.

        One that was committed later is among them: a commit outweighs any failure.
        """
        return set(self._latest_failure_keys())

    def count_attempts(self, ids: Container[str]) -> Counter[str]:
        """Return how many attempts have failed at each of these clips, over all runs."""
        counts = Counter[str]()
        keys = (key for key in self.store.list_shards("failures") if _FAILURE.fullmatch(key))
        wanted = (key for key in keys if key.split("/")[2] in ids)
        for failure in map_threads(
            partial(read_document, self.store, Failure), wanted, self.store.concurrency
        ):
            counts[failure.clip_id] += failure.attempts
        return counts

    def latest_failures(self, ids: Container[str] | None = None) -> Iterator[Failure]:
        """Yield the last failure of each of these clips, or of all that ever failed."""
        keys = self._latest_failure_keys()
        wanted = [key for clip_id, key in keys.items() if ids is None or clip_id in ids]
        return map_threads(
            partial(read_document, self.store, Failure), wanted, self.store.concurrency
        )

    def save_rows(
        self,
        name: str,
        rows: pa.Table,
        uri: str | None = None,
        locate: Callable[[int], tuple[str, int]] | None = None,
    ) -> None:
        """Keep a table's rows as planned, in place of those kept under the same name before.

        With them, the URI that they came from; with those rejected, each one's file, and its number
        there, which `locate` tells of its number in the table.
        A `_SUCCESS` is removed: it holds for what is here only once the manifest is written again.

        Raises:
            ValueError: a column of `ROW_COLUMNS` is missing, two have one name, or a row has
                neither a clip nor a reason.
            UsageError: Parquet can't hold a label's type.
        """
        import pyarrow.compute as pc  # a tenth of a second that planning has no use for

        missing = [column for column in ROW_COLUMNS if column not in rows.column_names]
        repeated = [column for column, n in Counter(rows.column_names).items() if n > 1]
        if missing or repeated:
            raise ValueError(f"rows of {name!r}: columns missing {missing}, repeated {repeated}")
        lost = pc.sum(pc.and_(pc.is_null(rows["clip_id"]), pc.is_null(rows["reject"]))).as_py()
        if lost:
            raise ValueError(f"rows of {name!r}: {lost} have neither clip_id nor reject")
        if uri:
            rows = rows.replace_schema_metadata({SOURCE_KEY: uri.encode(errors="replace")})
        self.store.delete(SUCCESS_KEY)
        try:
            rejects = rows.filter(pc.is_valid(rows["reject"]))
            self.put_table(f"rows/{name}.parquet", rows)
        except pa.ArrowNotImplementedError as error:  # an empty struct, as {} in JSON
            raise UsageError(
                f"table {name!r} has a label that Parquet can't hold: {error}"
            ) from error
        if rejects.num_rows:
            if locate:
                places = [locate(row) for row in rejects["row"].to_pylist()]
                files, numbers = (pa.array(each) for each in zip(*places, strict=True))
                column = FILE_COLUMN
                while column in rejects.column_names:
                    column = f"_{column}"
                rejects = rejects.set_column(0, "row", numbers).add_column(0, column, files)
            self.put_table(f"rejects/{name}.parquet", rejects)
        else:
            self.store.delete(f"rejects/{name}.parquet")

    def load_rows(
        self, columns: Sequence[str] | None = None
    ) -> Iterator[tuple[str, Iterator[pa.Table]]]:
        """Yield each planned table's name and rows, by name; the rows as `read_parts` does."""
        for name in self.table_names():
            yield name, self.read_parts(f"rows/{name}.parquet", columns)

    def table_names(self) -> list[str]:
        """Return the names of all planned tables."""
        return [key[len("rows/") : -len(".parquet")] for key in self.list_tables("rows")]

    def table_keys(self, name: str) -> tuple[str, ...]:
        """Return the keys of what is kept of a table: manifest, rejects, and rows last."""
        keys = (f"{folder}/{name}.parquet" for folder in ("manifest", "rejects", "rows"))
        return tuple(key for key in keys if self.store.exists(key))

    def drop_table(self, name: str) -> None:
        """Remove a table, its rows last: where that is cut off it is still known, to do again.

        The caller holds the lease, and writes the manifest again.
        """
        self.check_epoch()
        self.store.delete(SUCCESS_KEY)
        for key in self.table_keys(name):
            self.store.delete(key)

    def check_table(self, name: str) -> None:
        """Check that a planned table is there to be read, by its footer alone.

        Raises:
            UsageError: it is damaged.
        """
        parquet.check_footer(self.store, f"rows/{name}.parquet", ROW_COLUMNS)

    def list_tables(self, folder: str) -> list[str]:
        """Return the keys of the tables in `rows` or `manifest`, by name.

        Not of what else is there: desktops and tools that copy folders leave files of theirs.
        """
        return sorted(key for key in self.store.list(folder) if _TABLE.fullmatch(key))

    def read_parts(self, key: str, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield a Parquet object's rows, at most `PART_ROWS` at a time, as `parquet.read_parts`."""
        return parquet.read_parts(self.store, key, columns, PART_ROWS)

    def read_table(self, key: str) -> pa.Table:
        """Return a Parquet object's table."""
        return pa.concat_tables(self.read_parts(key))

    def put_table(self, key: str, table: pa.Table) -> None:
        """Write a table as Parquet, whole or not at all."""
        self.put_parts(key, iter((table,)))

    def put_parts(self, key: str, parts: Iterator[pa.Table]) -> None:
        """Write a table that comes in parts, of which there is one, as Parquet.

        Whole or not at all; what is held meanwhile is one part and the file.
        """
        first = next(parts)
        sink = pa.BufferOutputStream()
        with pq.ParquetWriter(sink, first.schema, compression="zstd") as writer:
            for part in chain((first,), parts):
                writer.write_table(part)
        self.check_epoch()
        self.store.put(key, sink.getvalue().to_pybytes())

    def status(self) -> OutputStatus:
        """Count the rows of every planned table by their state.

        Raises:
            NoOutputError: there is no output here.
            UsageError: the place can't be read.
        """
        self.read_output()
        committed, failed = self.committed_ids(), self.failed_ids()
        counter = RowCounter(committed)
        for name, parts in self.load_rows(("clip_id", "reject")):
            for part in parts:
                clip_ids, rejects = (column.to_pylist() for column in part.columns)
                counter.add_part(
                    name,
                    part,
                    (
                        row_status(clip_id, reject, committed, failed)
                        for clip_id, reject in zip(clip_ids, rejects, strict=True)
                    ),
                )
        return counter.status()

    def _upload(self, key: str, path: Path) -> Artifact:
        with path.open("rb") as file:
            expected = (hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size)
        got: tuple[str, int] | None = None
        for trial in range(UPLOAD_TRIES):
            time.sleep(RETRY_DELAY_S * trial)
            self.store.put(key, path)
            with contextlib.suppress(FileNotFoundError):
                got = self.store.checksum(key)
            if got == expected:
                return Artifact(key=key, sha256=expected[0], size_bytes=expected[1])
        raise UploadError(
            f"{self.store.locate(key)} holds {got} (SHA-256, bytes) after {UPLOAD_TRIES} uploads; "
            f"expected {expected}; check the storage and render the clip again"
        )

    def _latest_failure_keys(self) -> dict[str, str]:
        latest: dict[str, str] = {}
        for key in self.store.list_shards("failures"):
            if match := _FAILURE.fullmatch(key):
                latest[match[2]] = max(key, latest.get(match[2], ""))
        return latest

    def _read_identity(self) -> OutputIdentity | None:
        try:
            return read_document(self.store, OutputIdentity, RUN_KEY)
        except FileNotFoundError:
            return None

    def _refuse_foreign_files(self) -> None:
        for key in self.store.list():
            if not key.startswith("."):
                raise UsageError(
                    f"{self.store.uri} is not empty and no output of rushes (it holds {key!r} but "
                    f"no {RUN_KEY}); choose a new or empty --output"
                )

    def _fits(
        self, found: OutputIdentity, wanted: OutputIdentity, *, may_claim: bool = True
    ) -> bool:
        """Return whether this output is as wanted; where not, nothing has come of it."""
        differing = tell_apart(found, wanted)
        if not differing:
            return True
        is_claimable = may_claim and found.format == wanted.format
        if is_claimable and all(map(_BEGUN.match, self.store.list())):
            return False
        raise OutputMismatchError(
            f"{self.store.uri} belongs to another model or finishing spec: "
            + "; ".join(differing)
            + "; choose another --output, or render with what made this one"
        )


_BEGUN = re.compile(
    r"\.|(?:run\.json|_SUCCESS|index\.html|report\.\w+)$"
    r"|(?:lease|runs|work|rows|rejects|manifest)/"
)
"""What an output has before any clip has begun, and before an endpoint was asked for any."""
_TABLE = re.compile(r"(?:rows|manifest)/[A-Za-z0-9_-]+\.parquet")  # `Source.name`
_COMMIT = re.compile(r"commits/(..)/(\1[0-9a-f]{62})\.json")
_FAILURE = re.compile(r"failures/(..)/(\1[0-9a-f]{62})/[0-9A-Za-z-]+\.json")


def _commit_key(clip_id: str) -> str:
    return f"commits/{clip_id[:2]}/{clip_id}.json"

"""The places a store can be: a folder, this process's memory; `pipeline.bucket` has the third.

What each guarantees is the same and is `ObjectStore`'s to promise: whole writes, one winner of an
exclusive write, fresh reads and listings. `Place` says what each method does.
"""
# fsspec and s3fs carry no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
import uuid
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

import fsspec

TEMPORARY = ".tmp-"
SHARDS = tuple(f"{shard:02x}" for shard in range(256))
CHUNK_BYTES = 8 << 20
_T = TypeVar("_T")
_R = TypeVar("_R")


class AlreadyExistsError(Exception):
    """A create-only write found the key taken, maybe by itself: its reply may have been lost."""


class Place(Protocol):
    """What a store needs of a place. Keys are relative; a missing one is FileNotFoundError."""

    concurrency: int
    """Threads that reading many small objects is worth."""

    def reach(self) -> None:
        """Raise OSError where the place can't be one."""
        ...

    def write(self, key: str, data: bytes | Path, *, exclusive: bool) -> None:
        """Write whole or not at all; where `exclusive`, raise AlreadyExistsError if taken."""
        ...

    def read(self, key: str, start: int | None = None, end: int | None = None) -> bytes:
        """Return an object's bytes from `start` up to `end`."""
        ...

    def size(self, key: str) -> int | None:
        """Return an object's size in bytes; None where there is none."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object if it is there."""
        ...

    def walk(self, prefix: str) -> Iterator[str]:
        """Yield every key under a folder."""
        ...

    def walk_shards(self, prefix: str) -> Iterator[str]:
        """Yield every key under a folder of 256 shards, in any order."""
        ...


class Folder:
    """A local folder: a temporary file beside the object, synced, then renamed or linked."""

    concurrency = 4

    def __init__(self, root: Path) -> None:
        self.root = root

    def reach(self) -> None:
        if self.root.exists() and not self.root.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "not a folder", str(self.root))

    def write(self, key: str, data: bytes | Path, *, exclusive: bool) -> None:
        target = self.root / key
        with temporary_beside(target) as temporary:
            with temporary.open("wb") as file:
                if isinstance(data, Path):
                    with data.open("rb") as source:
                        shutil.copyfileobj(source, file, CHUNK_BYTES)
                else:
                    file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if exclusive:
                try:
                    target.hardlink_to(temporary)
                except FileExistsError as error:
                    raise AlreadyExistsError(str(target)) from error
            else:
                temporary.replace(target)
        sync_folder(target.parent)

    def read(self, key: str, start: int | None = None, end: int | None = None) -> bytes:
        with (self.root / key).open("rb") as file:
            file.seek(start or 0)
            return file.read(-1 if end is None else end - (start or 0))

    def size(self, key: str) -> int | None:
        path = self.root / key
        return path.stat().st_size if path.is_file() else None

    def delete(self, key: str) -> None:
        (self.root / key).unlink(missing_ok=True)

    def walk(self, prefix: str) -> Iterator[str]:
        def fail(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError):
                raise error

        for folder, _, names in os.walk(self.root / prefix, onerror=fail):
            relative = Path(folder).relative_to(self.root).as_posix()
            parent = "" if relative == "." else f"{relative}/"
            yield from (parent + name for name in names)

    walk_shards = walk


class Memory:
    """fsspec's in-memory filesystem, one for the whole process: for tests and trials."""

    concurrency = 1
    _lock = threading.Lock()

    def __init__(self, root: str) -> None:
        self.root = f"/{root}".rstrip("/")

    @property
    def _files(self) -> Any:
        return fsspec.filesystem("memory")

    def reach(self) -> None:
        """Memory is always there."""

    def write(self, key: str, data: bytes | Path, *, exclusive: bool) -> None:
        content = data.read_bytes() if isinstance(data, Path) else data
        path = f"{self.root}/{key}"
        with self._lock:
            if exclusive and self._files.isfile(path):
                raise AlreadyExistsError(f"memory:/{path}")
            self._files.pipe_file(path, content)

    def read(self, key: str, start: int | None = None, end: int | None = None) -> bytes:
        return self._files.cat_file(f"{self.root}/{key}", start, end)

    def size(self, key: str) -> int | None:
        path = f"{self.root}/{key}"
        return self._files.size(path) if self._files.isfile(path) else None

    def delete(self, key: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._files.rm_file(f"{self.root}/{key}")

    def walk(self, prefix: str) -> Iterator[str]:
        for path in self._files.find(f"{self.root}/{prefix}".rstrip("/")):
            yield path.removeprefix(f"{self.root}/")

    walk_shards = walk


def map_threads(function: Callable[[_T], _R], items: Iterable[_T], threads: int) -> Iterator[_R]:
    """Yield `function` of each item, in order, from so many threads; bounded look-ahead."""
    pool, pending = ThreadPoolExecutor(threads), deque[Future[_R]]()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= 4 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def is_visible(key: str) -> bool:
    """Return whether a key is not that of an unfinished write."""
    return not key.rpartition("/")[2].startswith(TEMPORARY)


def visible(keys: Iterator[str]) -> Iterator[str]:
    """Yield the keys that are not temporary."""
    return filter(is_visible, keys)


@contextlib.contextmanager
def temporary_beside(target: Path) -> Generator[Path]:
    """Yield a path in `target`'s folder that no listing shows; it is gone afterwards."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(TEMPORARY + uuid.uuid4().hex)
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make a rename or link last; some network filesystems can't, and need not."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""The places a store can be: a folder, this process's memory, an S3 bucket; each by plain paths.

What each guarantees is the same and is `ObjectStore`'s to promise: whole writes, one winner of an
exclusive write, fresh reads and listings. `Place` says what each method does.
"""
# fsspec and s3fs carry no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import contextlib
import errno
import mimetypes
import os
import shutil
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

import fsspec
from fsspec.config import conf as fsspec_conf

TEMPORARY = ".tmp-"
SHARDS = tuple(f"{shard:02x}" for shard in range(256))
CHUNK_BYTES = 8 << 20
CONFLICT_RETRIES = 6
CONFLICT_DELAY_S = 0.1
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


@contextlib.contextmanager
def _as_os_errors() -> Generator[None]:
    """Raise what a connection that fails for good makes botocore raise as an OSError, as others."""
    from botocore.exceptions import BotoCoreError

    try:
        yield
    except BotoCoreError as error:
        raise ConnectionError(f"{type(error).__name__}: {error}") from error


class Bucket:
    """A folder of an S3 bucket, through s3fs with its listing cache off."""

    concurrency = 32

    def __init__(self, root: str) -> None:
        self.bucket, _, folder = root.partition("/")
        self.folder = f"{folder}/" if folder else ""
        self._opened: tuple[int, Any] = (0, None)
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[Bucket], tuple[str]]:
        return Bucket, (f"{self.bucket}/{self.folder}".rstrip("/"),)

    @property
    def _files(self) -> Any:
        """The filesystem, opened once in each process."""
        with self._lock:
            if self._opened[0] != os.getpid():
                self._opened = (os.getpid(), open_s3(max_attempts=8))
            return self._opened[1]

    def open_filesystem(self) -> Any:
        """Return a filesystem of this bucket's for a reader that wants one."""
        return open_s3(max_attempts=8)

    def reach(self) -> None:
        """List one key with few retries: a wrong endpoint shows in seconds, not minutes."""
        from botocore.exceptions import BotoCoreError, NoCredentialsError

        impatient = open_s3(max_attempts=2)
        impatient.retries = 1
        try:
            impatient.call_s3("list_objects_v2", Bucket=self.bucket, Prefix=self.folder, MaxKeys=1)
        except NoCredentialsError as error:
            raise PermissionError("no AWS credentials found") from error
        except (BotoCoreError, ValueError) as error:
            raise OSError(str(error)) from error

    @_as_os_errors()
    def write(self, key: str, data: bytes | Path, *, exclusive: bool) -> None:
        content_type, _ = mimetypes.guess_type(key)
        options: dict[str, Any] = {"ContentType": content_type} if content_type else {}
        if exclusive:
            options["mode"] = "create"
        path = self._path(key)
        for delay_s in (*(CONFLICT_DELAY_S * 2**n for n in range(CONFLICT_RETRIES)), None):
            try:
                if isinstance(data, Path):
                    self._files.put_file(str(data), path, **options)
                else:
                    self._files.pipe_file(path, data, **options)
            except OSError as error:
                status = _http_status(error)
                if isinstance(error, FileExistsError) or (exclusive and status == 412):
                    raise AlreadyExistsError(f"s3://{path}") from error
                if status != 409 or delay_s is None:
                    raise
                time.sleep(delay_s)
            else:
                return

    @_as_os_errors()
    def read(self, key: str, start: int | None = None, end: int | None = None) -> bytes:
        return self._files.cat_file(self._path(key), start=start, end=end, max_concurrency=1)

    @_as_os_errors()
    def size(self, key: str) -> int | None:
        try:
            info = self._files.info(self._path(key), refresh=True)
        except FileNotFoundError:
            return None
        return info["size"] if info["type"] == "file" else None

    @_as_os_errors()
    def delete(self, key: str) -> None:
        self._files.rm_file(self._path(key))

    def walk(self, prefix: str) -> Iterator[str]:
        keys, token = self._list_page(prefix, None)
        yield from keys
        while token:
            keys, token = self._list_page(prefix, token)
            yield from keys

    def walk_shards(self, prefix: str) -> Iterator[str]:
        keys, token = self._list_page(prefix, None)
        if not token:  # a page holds it all: one request instead of 256
            yield from keys
            return

        for shard in map_threads(
            lambda shard: list(self.walk(f"{prefix}/{shard}")), SHARDS, self.concurrency
        ):
            yield from shard

    @_as_os_errors()
    def _list_page(self, prefix: str, token: str | None) -> tuple[list[str], str | None]:
        under = self.folder + (f"{prefix}/" if prefix else "")
        more = {"ContinuationToken": token} if token else {}
        page = self._files.call_s3("list_objects_v2", Bucket=self.bucket, Prefix=under, **more)
        names = [str(item["Key"]) for item in page.get("Contents", [])]
        keys = [name[len(self.folder) :] for name in names if not name.endswith("/")]
        return keys, page["NextContinuationToken"] if page.get("IsTruncated") else None

    def _path(self, key: str) -> str:
        return f"{self.bucket}/{self.folder}{key}"


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


def open_s3(max_attempts: int) -> Any:
    """Return a new S3 filesystem, as the user configured it, that caches no listing.

    AWS_MAX_ATTEMPTS, an AWS profile or fsspec's configuration may ask for other retries.
    """
    import botocore.session

    config = dict[str, Any](fsspec_conf.get("s3", {}).get("config_kwargs", {}))
    config.setdefault("max_pool_connections", Bucket.concurrency)
    if botocore.session.Session().get_config_variable("max_attempts") is None:
        config.setdefault("retries", {"total_max_attempts": max_attempts})
    return fsspec.filesystem(
        "s3", use_listings_cache=False, skip_instance_cache=True, config_kwargs=config
    )


def _http_status(error: OSError) -> int | None:
    response = getattr(error.__cause__, "response", None)
    return response["ResponseMetadata"]["HTTPStatusCode"] if response else None

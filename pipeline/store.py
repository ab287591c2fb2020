"""`ObjectStore`: an output's objects, on a local folder, in memory or on S3, with one behaviour.

What the ledger stands on: a write is whole or not there, `create` has exactly one winner, and a
read or a listing sees what was written before it. Keys are relative POSIX paths. Objects whose name
starts with `.tmp-` are unfinished or being probed; no listing shows them.

Retries are botocore's and s3fs's own; a 409 on a conditional write is retried here.
"""
# fsspec and s3fs carry no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
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
from typing import Any, TypeVar

import fsspec
from fsspec.config import conf as fsspec_conf

from pipeline.errors import UsageError

TEMPORARY = ".tmp-"
SHARDS = tuple(f"{shard:02x}" for shard in range(256))
CHUNK_BYTES = 8 << 20
CONFLICT_RETRIES = 6
CONFLICT_DELAY_S = 0.1
_T = TypeVar("_T")
_R = TypeVar("_R")


class AlreadyExistsError(Exception):
    """A create-only write found the key taken, maybe by itself: its reply may have been lost."""


class ObjectStore:
    """Objects by key under a URI: a path, `file://…`, `memory://…` or `s3://bucket/…`.

    Nothing is opened before the first call, and again in each process that an instance travels to,
    so it can be pickled. Safe in threads. S3 is configured as usual for AWS and fsspec.

    Raises:
        UsageError: the URI is of another kind, or names no bucket.
    """

    def __init__(self, uri: str | Path) -> None:
        """Keep the URI; a relative path becomes absolute."""
        scheme, separator, rest = str(uri).partition("://")
        if not separator or scheme == "file":
            folder = rest if separator else str(uri)
            self.uri = str(Path(os.path.abspath(Path(folder).expanduser())))  # noqa: PTH100
            self._places: _Folder | _Memory | _Bucket = _Folder(Path(self.uri))
            return
        if scheme not in ("memory", "s3"):
            raise UsageError(
                f"{uri}: no storage of the kind {scheme}://; use a path, file://, memory:// or s3://"
            )
        root = rest.strip("/")
        if scheme == "s3" and not root:
            raise UsageError(f"{uri}: no bucket; expected s3://BUCKET or s3://BUCKET/FOLDER")
        self.uri = f"{scheme}://{root}"
        self._places = _Bucket(root) if scheme == "s3" else _Memory(root)

    def __repr__(self) -> str:
        """Return the constructor call."""
        return f"ObjectStore({self.uri!r})"

    @property
    def concurrency(self) -> int:
        """Threads that reading many small objects is worth here."""
        return self._places.concurrency

    def locate(self, key: str) -> str:
        """Return the object's path, usable as it stands: an absolute path or a URI."""
        return f"{self.uri}/{_check_key(key)}"

    def locate_for_arrow(self, key: str) -> tuple[str, Any]:
        """Return the path and the fsspec filesystem by which another process reads an object.

        The filesystem is None for a local path.

        Raises:
            UsageError: a `memory://` store, which is of one process.
        """
        if isinstance(self._places, _Memory):
            raise UsageError(f"{self.uri}: memory:// is of one process; use a path or s3://")
        if isinstance(self._places, _Folder):
            return self.locate(key), None
        return self.locate(key).removeprefix("s3://"), self._places.open_filesystem()

    def put(self, key: str, data: bytes | Path) -> None:
        """Write an object from bytes or a file, whole or not at all, over what is there."""
        self._places.write(_check_key(key), data, exclusive=False)

    def create(self, key: str, data: bytes) -> None:
        """Write an object only where there is none: of any number of writers, one wins.

        Raises:
            AlreadyExistsError: the key is taken. After a lost reply that can be by this very call:
                read back what is there. Any other error leaves open whether it was written.
            ValueError: `data` is empty, which some stores don't guard.
        """
        if not data:
            raise ValueError(f"create-only object {key} must not be empty")
        self._places.write(_check_key(key), data, exclusive=True)

    def read(self, key: str) -> bytes:
        """Return an object's content.

        Raises:
            FileNotFoundError: there is no such object.
        """
        try:
            return self._places.read(_check_key(key))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"no object at {self.locate(key)}") from error

    def read_json(self, key: str) -> Any:
        """Return an object's content as JSON."""
        return json.loads(self.read(key))

    def download(self, key: str, path: Path) -> None:
        """Copy an object to a local file, whole or not at all."""
        with _temporary_beside(path) as temporary:
            with temporary.open("wb") as file:
                for chunk in self._chunks(key):
                    file.write(chunk)
            temporary.replace(path)

    def checksum(self, key: str) -> tuple[str, int]:
        """Return the SHA-256 and size in bytes of an object, read back from the store."""
        sha256, size_bytes = hashlib.sha256(), 0
        for chunk in self._chunks(key):
            sha256.update(chunk)
            size_bytes += len(chunk)
        return sha256.hexdigest(), size_bytes

    def exists(self, key: str) -> bool:
        """Return whether there is an object at `key`."""
        return self._places.size(_check_key(key)) is not None

    def size(self, key: str) -> int:
        """Return an object's size in bytes.

        Raises:
            FileNotFoundError: there is no such object.
        """
        size_bytes = self._places.size(_check_key(key))
        if size_bytes is None:
            raise FileNotFoundError(f"no object at {self.locate(key)}")
        return size_bytes

    def delete(self, key: str) -> None:
        """Remove an object; one that is gone already is fine."""
        self._places.delete(_check_key(key))

    def list(self, prefix: str = "") -> Iterator[str]:
        """Yield the keys below a folder, at any depth and in no particular order."""
        return _visible(self._places.walk(prefix and _check_key(prefix)))

    def list_shards(self, prefix: str) -> Iterator[str]:
        """Yield the keys below a folder of two-hex-digit folders, its shards side by side on S3.

        What lies outside the shards may be left out.
        """
        return _visible(self._places.walk_shards(_check_key(prefix)))

    def probe(self, *, write: bool = True) -> None:
        """Check that this place can be listed, and written with one winner for a create.

        Raises:
            UsageError: it can't; one line says why and what to do.
        """
        with _explained(self.uri, write=write):
            self._places.reach()
            next(self.list(), None)
            if write:
                self._probe_create()

    def _probe_create(self) -> None:
        key = f"{TEMPORARY}probe-{uuid.uuid4().hex}"
        try:
            with contextlib.suppress(AlreadyExistsError):  # a lost reply: nobody else has this key
                self.create(key, b"first")
            try:
                self.create(key, b"second")
            except AlreadyExistsError:
                if self.read(key) == b"first":
                    return
        finally:
            self.delete(key)
        raise UsageError(
            f"{self.uri}: create-only writes (If-None-Match) are not exclusive on this storage, so "
            "two writers could commit one clip twice; use an S3 that honours conditional writes, "
            "or a local folder"
        )

    def _chunks(self, key: str) -> Iterator[bytes]:
        size_bytes = self.size(key)
        for start in range(0, size_bytes, CHUNK_BYTES):
            yield self._places.read(key, start, min(start + CHUNK_BYTES, size_bytes))


class _Folder:
    """A local folder: a temporary file beside the object, synced, then renamed or linked."""

    concurrency = 4

    def __init__(self, root: Path) -> None:
        self.root = root

    def reach(self) -> None:
        if self.root.exists() and not self.root.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "not a folder", str(self.root))

    def write(self, key: str, data: bytes | Path, *, exclusive: bool) -> None:
        target = self.root / key
        with _temporary_beside(target) as temporary:
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
        _sync_folder(target.parent)

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


class _Memory:
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


class _Bucket:
    """A folder of an S3 bucket, through s3fs with its listing cache off."""

    concurrency = 32

    def __init__(self, root: str) -> None:
        self.bucket, _, folder = root.partition("/")
        self.folder = f"{folder}/" if folder else ""
        self._opened: tuple[int, Any] = (0, None)
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[_Bucket], tuple[str]]:
        return _Bucket, (f"{self.bucket}/{self.folder}".rstrip("/"),)

    @property
    def _files(self) -> Any:
        """The filesystem, opened once in each process."""
        with self._lock:
            if self._opened[0] != os.getpid():
                self._opened = (os.getpid(), _open_s3(max_attempts=8))
            return self._opened[1]

    def open_filesystem(self) -> Any:
        """Return a filesystem of this bucket's for a reader that wants one."""
        return _open_s3(max_attempts=8)

    def reach(self) -> None:
        """List one key with few retries: a wrong endpoint shows in seconds, not minutes."""
        from botocore.exceptions import BotoCoreError, NoCredentialsError

        impatient = _open_s3(max_attempts=2)
        impatient.retries = 1
        try:
            impatient.call_s3("list_objects_v2", Bucket=self.bucket, Prefix=self.folder, MaxKeys=1)
        except NoCredentialsError as error:
            raise PermissionError("no AWS credentials found") from error
        except (BotoCoreError, ValueError) as error:
            raise OSError(str(error)) from error

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

    def read(self, key: str, start: int | None = None, end: int | None = None) -> bytes:
        return self._files.cat_file(self._path(key), start=start, end=end, max_concurrency=1)

    def size(self, key: str) -> int | None:
        try:
            info = self._files.info(self._path(key), refresh=True)
        except FileNotFoundError:
            return None
        return info["size"] if info["type"] == "file" else None

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


def _check_key(key: str) -> str:
    """Return a key that stays inside the store.

    Raises:
        ValueError: it is empty or absolute, or a part of it is empty, `.` or `..`.
    """
    if "\\" in key or "\0" in key or any(part in ("", ".", "..") for part in key.split("/")):
        raise ValueError(f"key {key!r} is no relative path; expected one like commits/ab/name.json")
    return key


def _visible(keys: Iterator[str]) -> Iterator[str]:
    return (key for key in keys if not key.rpartition("/")[2].startswith(TEMPORARY))


@contextlib.contextmanager
def _temporary_beside(target: Path) -> Generator[Path]:
    """Yield a path in `target`'s folder that no listing shows; it is gone afterwards."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(TEMPORARY + uuid.uuid4().hex)
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename or link last; some network filesystems can't, and need not."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open_s3(max_attempts: int) -> Any:
    """Return a new S3 filesystem, as the user configured it, that caches no listing.

    AWS_MAX_ATTEMPTS, an AWS profile or fsspec's configuration may ask for other retries.
    """
    import botocore.session

    config = dict[str, Any](fsspec_conf.get("s3", {}).get("config_kwargs", {}))
    config.setdefault("max_pool_connections", _Bucket.concurrency)
    if botocore.session.Session().get_config_variable("max_attempts") is None:
        config.setdefault("retries", {"total_max_attempts": max_attempts})
    return fsspec.filesystem(
        "s3", use_listings_cache=False, skip_instance_cache=True, config_kwargs=config
    )


def _http_status(error: OSError) -> int | None:
    response = getattr(error.__cause__, "response", None)
    return response["ResponseMetadata"]["HTTPStatusCode"] if response else None


@contextlib.contextmanager
def _explained(uri: str, *, write: bool) -> Generator[None]:
    """Turn what a storage says into one line that says what to do."""
    try:
        yield
    except OSError as error:
        remote = uri.startswith("s3://")
        said = error.strerror or str(error)
        if error.filename2:
            why = "its filesystem has no hard links, which commits need; use another folder"
        elif isinstance(error, PermissionError) and remote:
            needed = "List, Get, Put and DeleteObject" if write else "List and GetObject"
            why = f"access denied ({said}); check the AWS credentials and their rights ({needed})"
        elif isinstance(error, PermissionError):
            why = "no permission; change the folder's or choose another one"
        elif isinstance(error, FileNotFoundError) and remote:
            why = "there is no such bucket; create it or mend its name"
        elif isinstance(error, NotADirectoryError | FileExistsError):
            why = "a file is where a folder is needed; choose another place"
        elif error.errno == errno.EROFS:
            why = "it is read-only; choose another place"
        elif error.errno == errno.ENOSPC:
            why = "no space left; free some or choose another place"
        else:
            why = f"{said}; check the " + ("endpoint and the network" if remote else "folder")
        raise UsageError(f"{uri}: can't be {'written' if write else 'read'}: {why}") from error

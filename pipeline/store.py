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
import os
import uuid
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.dirfs import DirFileSystem

from pipeline.bucket import Bucket, SetUpError, may_pass
from pipeline.errors import StorageAwayError, UsageError
from pipeline.places import (
    CHUNK_BYTES,
    TEMPORARY,
    AlreadyExistsError,
    Folder,
    Memory,
    Place,
    is_visible,
    visible,
)

_VERSION = "?versionId="


class ObjectStore:
    """Objects by key under a URI: a path, `file:/…`, `memory://…` or `s3://bucket/…`.

    Nothing is opened before the first call, and again in each process that an instance travels to,
    so it can be pickled. Safe in threads. S3 is configured as usual for AWS and fsspec.

    Raises:
        UsageError: the URI is empty or of another kind, is no text, names no bucket, or a version.
    """

    def __init__(self, uri: str | Path) -> None:
        """Keep the URI; a relative path becomes absolute."""
        scheme, separator, rest = str(uri).partition("://")
        if not separator or scheme == "file":
            self.uri = _find_folder(str(uri))
            self._places: Place = Folder(Path(self.uri))
            return
        if scheme not in ("memory", "s3"):
            raise UsageError(
                f"{uri}: no storage of the kind {scheme}://; use a path, file://, memory:// or s3://"
            )
        root = rest.strip("/")
        if scheme == "s3" and not root:
            raise UsageError(f"{uri}: no bucket; expected s3://BUCKET or s3://BUCKET/FOLDER")
        if scheme == "s3" and _VERSION in root:  # s3fs cuts it off, and all that follows
            raise UsageError(
                f"{uri}: {_VERSION} names a version, which outputs have not; leave it out"
            )
        self.uri = _check_text(f"{scheme}://{root}")
        self._places = Bucket(root) if scheme == "s3" else Memory(root)

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

        The path is the key: in one that has the output's name, readers may see a query, or escapes.

        Raises:
            UsageError: a `memory://` store, which is of one process; or AWS isn't set up.
        """
        if isinstance(self._places, Memory):
            raise UsageError(f"{self.uri}: memory:// is of one process; use a path or s3://")
        if isinstance(self._places, Bucket):
            with _explained(self.uri, write=False):
                files = self._places.open_filesystem()
        else:
            files = fsspec.filesystem("file")
        return _check_key(key), DirFileSystem(self.uri.removeprefix("s3://"), files)

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

    def read(self, key: str, start: int | None = None, end: int | None = None) -> bytes:
        """Return an object's content, or its bytes from `start` up to `end`.

        Raises:
            FileNotFoundError: there is no such object.
        """
        try:
            return self._places.read(_check_key(key), start, end)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"no object at {self.locate(key)}") from error

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
        return visible(self._places.walk(prefix and _check_key(prefix)))

    def list_unfinished(self) -> Iterator[str]:
        """Yield the keys that `list` passes over: what is being written, or was left cut off."""
        return (key for key in self._places.walk("") if not is_visible(key))

    def list_shards(self, prefix: str) -> Iterator[str]:
        """Yield the keys below a folder of two-hex-digit folders, its shards side by side on S3.

        What lies outside the shards may be left out.
        """
        return visible(self._places.walk_shards(_check_key(prefix)))

    def probe(self, *, write: bool = True) -> None:
        """Check that this place can be listed, and written with one winner for a create.

        Raises:
            StorageAwayError: it throttles, errs or gives no answer, for some tens of seconds.
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


def await_s3(uri: str, path: str) -> None:
    """Return once the S3 at `path`, a bucket's name and what is below it, answers, if with a no.

    Raises:
        StorageAwayError: it throttles, errs or gives no answer, for some tens of seconds.
        UsageError: there is no such endpoint, or AWS isn't set up.
    """
    with _explained(uri, write=False), contextlib.suppress(PermissionError, FileNotFoundError):
        Bucket(path).reach()


def _find_folder(given: str) -> str:
    """Return the absolute path of a local folder; a `file:` URI's is taken as it is, as a TABLE's.

    Raises:
        UsageError: it has no name, one that is no text, or is another host's.
    """
    path = given.removeprefix("file:")
    if path != given and path.startswith("//"):
        host, slash, rest = path[2:].partition("/")
        if host not in ("", "localhost"):
            raise UsageError(
                f"{given}: a folder of the host {host!r}, which can't be reached so; "
                "expected file:///FOLDER, or a path"
            )
        path = slash + rest
    if not path.strip():
        raise UsageError("the output has no name; expected a path or s3://BUCKET/FOLDER")
    return _check_text(str(Path(os.path.abspath(Path(path).expanduser()))))  # noqa: PTH100


def _check_text(uri: str) -> str:
    """Return a URI that manifests and pages can hold.

    Raises:
        UsageError: it has bytes that are no UTF-8.
    """
    try:
        uri.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{uri!a}: the output's path is not UTF-8; choose another") from error
    return uri


def _check_key(key: str) -> str:
    """Return a key that stays inside the store.

    Raises:
        ValueError: it is empty or absolute, or a part of it is empty, `.` or `..`.
    """
    if "\\" in key or "\0" in key or any(part in ("", ".", "..") for part in key.split("/")):
        raise ValueError(f"key {key!r} is no relative path; expected one like commits/ab/name.json")
    return key


@contextlib.contextmanager
def _explained(uri: str, *, write: bool) -> Generator[None]:
    """Turn what a storage says into one line that says what to do."""
    try:
        yield
    except OSError as error:
        remote = uri.startswith("s3://")
        said = error.strerror or str(error)
        is_away = remote and may_pass(error)
        if is_away:
            why = (
                f"the storage throttles or gives no answer ({said}); run it again later, or check "
                "the endpoint and the network"
            )
        elif error.filename2:
            why = "its filesystem has no hard links, which commits need; use another folder"
        elif isinstance(error, SetUpError):
            why = f"{said}; check the AWS configuration and login"
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
        kind = StorageAwayError if is_away else UsageError
        raise kind(f"{uri}: can't be {'written' if write else 'read'}: {why}") from error

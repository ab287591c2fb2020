"""`Bucket`: a place on S3, through s3fs; see `pipeline.places`."""

# fsspec and s3fs carry no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import contextlib
import logging
import mimetypes
import os
import threading
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import fsspec
from fsspec.config import conf as fsspec_conf

from pipeline.places import SHARDS, AlreadyExistsError, map_threads

CONFLICT_RETRIES = 6
CONFLICT_DELAY_S = 0.1
_PASSING = (429, 500, 502, 503, 504)
REACH_S, REACH_PAUSE_S = 30.0, 1.0
"""For how long, and how often, a storage that throttles or gives no answer is asked at first."""

for _name in ("aiobotocore", "botocore"):  # what they warn of, with its trace, is raised as well
    logging.getLogger(_name).addHandler(logging.NullHandler())

on_retry: Callable[[int], object] = int
"""Called, in whatever thread, with how often a call to S3 was made again; metrics count it.

Not seen is what aiohttp sends again by itself, on a connection that the server had closed.
"""


class SetUpError(OSError):
    """The AWS configuration or login that this process has is at fault, not the endpoint."""


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
                files = open_s3(max_attempts=8)
                files.connect()
                files.s3.meta.events.register("after-call.s3", _tell_retries)
                files.s3.meta.events.register("after-call-error.s3", _tell_error)
                self._opened = (os.getpid(), files)
            return self._opened[1]

    def open_filesystem(self) -> Any:
        """Return a filesystem of this bucket's for a reader that wants one."""
        return open_s3(max_attempts=8)

    def reach(self) -> None:
        """List one key: what waiting can't mend, a wrong endpoint or key, shows in seconds."""
        impatient = open_s3(max_attempts=2)
        impatient.retries = 1
        until = time.monotonic() + REACH_S
        while True:
            try:
                self._look(impatient)
            except OSError as error:
                if not may_pass(error) or time.monotonic() > until:
                    raise
                time.sleep(REACH_PAUSE_S)
            else:
                return

    def _look(self, files: Any) -> None:
        from botocore.exceptions import (
            BotoCoreError,
            ConnectionError,
            HTTPClientError,
            NoCredentialsError,
            ParamValidationError,
        )

        try:
            files.call_s3("list_objects_v2", Bucket=self.bucket, Prefix=self.folder, MaxKeys=1)
        except NoCredentialsError as error:
            raise PermissionError("no AWS credentials found") from error
        except (ConnectionError, HTTPClientError, ParamValidationError, ValueError) as error:
            raise OSError(" ".join(str(error).split())) from error
        except BotoCoreError as error:
            raise SetUpError(str(error)) from error

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


def open_s3(max_attempts: int) -> Any:
    """Return a new S3 filesystem, as the user configured it, that caches no listing.

    AWS_MAX_ATTEMPTS, an AWS profile or fsspec's configuration may ask for other retries.

    Raises:
        SetUpError: there is no such profile, or a setting that can't be read.
    """
    import botocore.session
    from botocore.exceptions import BotoCoreError

    try:
        attempts = botocore.session.Session().get_config_variable("max_attempts")
    except BotoCoreError as error:
        raise SetUpError(str(error)) from error
    except ValueError as error:
        raise SetUpError(f"max_attempts, or AWS_MAX_ATTEMPTS: {error}") from error
    config = dict[str, Any](fsspec_conf.get("s3", {}).get("config_kwargs", {}))
    config.setdefault("max_pool_connections", Bucket.concurrency)
    if attempts is None:
        config.setdefault("retries", {"total_max_attempts": max_attempts})
    return fsspec.filesystem(
        "s3", use_listings_cache=False, skip_instance_cache=True, config_kwargs=config
    )


def _tell_retries(parsed: dict[str, Any], **_: Any) -> None:
    if retries := parsed.get("ResponseMetadata", {}).get("RetryAttempts", 0):
        on_retry(retries)


def _tell_error(**_: Any) -> None:
    on_retry(1)  # what botocore gives up without an answer, s3fs makes again


def may_pass(error: OSError) -> bool:
    """Return whether S3 throttled, erred or gave no answer, which a while can mend.

    A name that isn't found or an endpoint that refuses connections is more likely a wrong one.
    """
    from aiohttp import ClientConnectorError
    from botocore.exceptions import ConnectTimeoutError, EndpointConnectionError, HTTPClientError

    cause = error.__cause__
    if isinstance(cause, EndpointConnectionError):  # also of a connection that was cut
        return not isinstance(cause.kwargs.get("error"), ClientConnectorError)
    if isinstance(cause, HTTPClientError | ConnectTimeoutError):
        return True
    return _http_status(error) in _PASSING


def _http_status(error: OSError) -> int | None:
    response = getattr(error.__cause__, "response", None)
    return response["ResponseMetadata"]["HTTPStatusCode"] if response else None

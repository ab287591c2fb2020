"""API keys: who may call, and whose videos are whose."""

from __future__ import annotations

import hashlib
import logging
import math
import re
import time
from collections.abc import Iterable
from http import HTTPStatus
from pathlib import Path

from jobs.api.wire import ApiError
from pipeline.errors import UsageError

LOOK_EVERY_S = 1.0
"""How old what a key file held may be."""
_HANDED = (("dev",), ("proc",))
_HASH = re.compile(r"[0-9a-f]{64}")
_log = logging.getLogger("ray.serve")


class KeyFile:
    """A file of digests, a line each, which is read again while the endpoint serves.

    A key that is taken out of it is let in no more; an empty file lets nobody in. One that is away
    or damaged says nothing: then the keys that it last held are let in. What a shell hands over
    (`/dev/stdin`, `/dev/fd/63`) is read once: other processes have others there.
    """

    def __init__(self, path: Path, look_every_s: float = LOOK_EVERY_S) -> None:
        """Read it.

        Raises:
            UsageError: it can't be read, or a line is no digest.
        """
        self._path = path.absolute()  # not resolved: Kubernetes changes a secret's by its links
        self._look_every_s = look_every_s
        # Of a clock that a process which this is sent to doesn't share.
        self._next_look = math.inf if self._path.parts[1:2] in _HANDED else 0.0
        self._wrong = ""
        self.digests = _read_file(path)
        """What it held when it was last read."""

    def look(self) -> frozenset[str]:
        """Return what it holds, or did a moment ago."""
        if (now := time.monotonic()) >= self._next_look:
            self._next_look = now + self._look_every_s
            try:
                self.digests, self._wrong = _read_file(self._path), ""
            except UsageError as error:
                if str(error) != self._wrong:
                    self._wrong = str(error)
                    _log.warning("%s; the keys that it held stay", error)
        return self.digests


class ApiKeys:
    """The SHA-256 digests of the keys that are let in; keys themselves are nowhere kept."""

    def __init__(
        self, listed: Iterable[str], file: KeyFile | None = None, *, insecure: bool = False
    ) -> None:
        """With `insecure`, everybody is let in, and everything is everybody's."""
        self._listed = frozenset(listed)
        self._file = file
        self._insecure = insecure

    @classmethod
    def read(
        cls,
        file: str | None,
        listed: str,
        *,
        insecure: bool = False,
        look_every_s: float = LOOK_EVERY_S,
    ) -> ApiKeys:
        """Return the keys of a file of digests, a line each, and of a comma-separated list.

        Raises:
            UsageError: no such file, a line is no digest, or there is no key and no `insecure`.
        """
        digests = [_digest(key.strip()) for key in listed.split(",") if key.strip()]
        held = KeyFile(Path(file), look_every_s) if file else None
        has_keys = bool(digests or (held and held.digests))
        if not has_keys and not insecure:
            raise UsageError(
                "no API keys: set RUSHES_API_KEYS, or --keys FILE with the SHA-256 of a key on "
                "each line (printf %s KEY | sha256sum); or let everybody in by --insecure"
            )
        return cls(digests, held, insecure=not has_keys)

    @property
    def insecure(self) -> bool:
        """Whether everybody is let in, and nobody asked for a key."""
        return self._insecure

    def identify(self, authorization: str | None) -> str:
        """Return the owner that an Authorization header stands for; empty if nobody is asked.

        Raises:
            ApiError: no key, or an unknown one.
        """
        if self._insecure:
            return ""
        scheme, _, key = (authorization or "").partition(" ")
        owner = _digest(key.strip())
        # The digest of an unknown key tells nothing of a known one's: a plain look-up does.
        if scheme.casefold() != "bearer" or not self._has(owner):
            error = ApiError(
                HTTPStatus.UNAUTHORIZED,
                "no valid API key; send one as Authorization: Bearer KEY",
                code="invalid_api_key",
            )
            error.headers["www-authenticate"] = "Bearer"
            raise error
        return owner

    def _has(self, digest: str) -> bool:
        return digest in self._listed or (self._file is not None and digest in self._file.look())


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _read_file(path: Path) -> frozenset[str]:
    try:
        lines = [line.partition("#")[0].strip() for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--keys {path}: can't be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if line and not _HASH.fullmatch(line.split()[0]):
            raise UsageError(
                f"--keys {path}: line {number} is no SHA-256 in hexadecimal digits; make one by "
                "printf %s KEY | sha256sum"
            )
    return frozenset(line.split()[0] for line in lines if line)

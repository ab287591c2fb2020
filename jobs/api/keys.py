"""API keys: who may call, and whose videos are whose."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from http import HTTPStatus
from pathlib import Path

from jobs.api.wire import ApiError
from pipeline.errors import UsageError

_HASH = re.compile(r"[0-9a-f]{64}")


class ApiKeys:
    """The SHA-256 digests of the keys that are let in; keys themselves are nowhere kept."""

    def __init__(self, digests: Iterable[str], *, insecure: bool = False) -> None:
        """With `insecure`, everybody is let in, and everything is everybody's."""
        self._digests = frozenset(digests)
        self._insecure = insecure

    @classmethod
    def read(cls, file: str | None, listed: str, *, insecure: bool = False) -> ApiKeys:
        """Return the keys of a file of digests, a line each, and of a comma-separated list.

        Raises:
            UsageError: no such file, a line is no digest, or there is no key and no `insecure`.
        """
        digests = [_digest(key.strip()) for key in listed.split(",") if key.strip()]
        if file:
            digests += _read_file(Path(file))
        if not digests and not insecure:
            raise UsageError(
                "no API keys: set RUSHES_API_KEYS, or --keys FILE with the SHA-256 of a key on "
                "each line (printf %s KEY | sha256sum); or let everybody in by --insecure"
            )
        return cls(digests, insecure=insecure and not digests)

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
        if scheme.casefold() != "bearer" or owner not in self._digests:
            error = ApiError(
                HTTPStatus.UNAUTHORIZED,
                "no valid API key; send one as Authorization: Bearer KEY",
                code="invalid_api_key",
            )
            error.headers["www-authenticate"] = "Bearer"
            raise error
        return owner


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _read_file(path: Path) -> list[str]:
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
    return [line.split()[0] for line in lines if line]

"""A store whose user dies at a write."""

from __future__ import annotations

import threading
from pathlib import Path

from pipeline.store import ObjectStore


class Crash(BaseException):
    """The process is gone: nothing that handles errors sees this."""


class CrashingStore(ObjectStore):
    """A store whose user dies, for good, at the n-th write: before it, or after it was carried out.

    Safe in threads, all of which are the user's.
    """

    def __init__(self, uri: str, at: int = -1, *, after: bool = False) -> None:
        super().__init__(uri)
        self.at, self.after = at, after
        self.writes: list[str] = []
        self.is_dead = False
        self._lock = threading.Lock()

    def _write(self, verb: str, key: str, *args: bytes | Path) -> None:
        with self._lock:
            if self.is_dead:
                raise Crash
            self.is_dead = len(self.writes) == self.at
            self.writes.append(f"{verb} {key}")
            try:
                if not self.is_dead or self.after:
                    getattr(super(), verb)(key, *args)
            finally:
                if self.is_dead:
                    raise Crash

    def put(self, key: str, data: bytes | Path) -> None:
        self._write("put", key, data)

    def create(self, key: str, data: bytes) -> None:
        self._write("create", key, data)

    def delete(self, key: str) -> None:
        self._write("delete", key)

"""`Inputs`: the images and videos that clips of an output begin with.

    inputs/<ab>/<sha256>   a PNG or an MP4 of ours, named by its content

A request names its input by that digest, so that what it shows is part of a clip's identity. What
is here was decoded and encoded anew, never the bytes that somebody sent: see `pipeline.untrusted`.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator

import numpy as np
from PIL import Image

from pipeline.errors import StoreError
from pipeline.probe import Frames, decode_frames
from pipeline.request import RenderRequest
from pipeline.store import ObjectStore

FOLDER = "inputs"
_KEY = re.compile(rf"{FOLDER}/../(?P<sha256>[0-9a-f]{{64}})")
_PNG = b"\x89PNG"


class Inputs:
    """The inputs of one output. Safe in threads; can be pickled."""

    def __init__(self, store: ObjectStore) -> None:
        """Touch nothing yet."""
        self.store = store

    def keep(self, content: bytes) -> str:
        """Keep a file; returns its SHA-256. The same content is kept once."""
        sha256 = hashlib.sha256(content).hexdigest()
        self.store.put(_key(sha256), content)
        return sha256

    def read_opening(self, request: RenderRequest) -> Iterator[Frames]:
        """Yield the frames that a clip begins with, one at a time: uint8 RGB, (1, h, w, 3).

        Raises:
            ValueError: they are gone, or damaged.
            StoreError: the store can't be read.
        """
        if not request.opening:
            return
        sha256 = request.opening.sha256
        try:
            content = self.store.read(_key(sha256))
        except FileNotFoundError as error:
            raise ValueError(f"the input {sha256[:16]} is gone: ask for the clip again") from error
        except OSError as error:
            raise StoreError(f"{type(error).__name__}: {error}") from error
        if hashlib.sha256(content).hexdigest() != sha256:
            raise ValueError(f"the input {sha256[:16]} is damaged: ask for the clip again")
        if content.startswith(_PNG):
            yield np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), np.uint8)[None]
        else:
            yield from decode_frames(io.BytesIO(content))

    def list(self) -> Iterator[tuple[str, str]]:
        """Yield the key and the SHA-256 of every input."""
        for key in self.store.list_shards(FOLDER):
            if match := _KEY.fullmatch(key):
                yield key, match["sha256"]


def _key(sha256: str) -> str:
    return f"{FOLDER}/{sha256[:2]}/{sha256}"

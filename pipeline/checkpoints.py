"""`Checkpoints`: denoising that is saved while it goes on, and finished latents until the commit.

    checkpoints/<ab>/<clip_id>/<attempt>.safetensors    packed state: see `pipeline.handoff`
    checkpoints/<ab>/<clip_id>/<attempt>.json           written last: what it is, its checksum

Only state whose document is there, and whose bytes are as the document says, is gone on from. What
isn't is passed over with a warning: the worst that a checkpoint can do is to be of no use.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Literal

from pydantic import ValidationError

from pipeline.documents import Artifact, Checkpoint, new_attempt
from pipeline.lease import check_epoch
from pipeline.store import ObjectStore

FOLDER = "checkpoints"


class Checkpoints:
    """The saved states of one output and model. Safe in threads and processes; can be pickled."""

    def __init__(
        self, store: ObjectStore, model_fingerprint: str, epoch: int | None = None
    ) -> None:
        """Touch nothing yet; with `epoch`, nothing is saved once another run has taken over."""
        self.store = store
        self.model_fingerprint = model_fingerprint
        self.epoch = epoch

    def clip_ids(self) -> set[str]:
        """Return the ids of all clips of which something is saved, from a listing alone."""
        keys = self.store.list_shards(FOLDER)
        return {match[2] for key in keys if (match := _CHECKPOINT.fullmatch(key))}

    def save(
        self,
        clip_id: str,
        kind: Literal["snapshot", "latents"],
        step: int,
        payload: bytes,
        *,
        layout: str = "1",
        device_seconds: float = 0.0,
        denoise_s: float = 0.0,
    ) -> Checkpoint:
        """Save a clip's state, whole or not at all; of those before it, keep the last one only.

        That one is there for the day on which this one turns out to be damaged.

        Raises:
            LeaseLostError: another run has taken over.
        """
        if self.epoch is not None:
            check_epoch(self.store, self.epoch)
        stem = f"{_folder(clip_id)}/{new_attempt()}"
        checksum = hashlib.sha256(payload).hexdigest()
        checkpoint = Checkpoint(
            clip_id=clip_id,
            attempt=stem.rpartition("/")[2],
            kind=kind,
            step=step,
            model_fingerprint=self.model_fingerprint,
            layout=layout,
            device_seconds=device_seconds,
            denoise_s=denoise_s,
            payload=Artifact(key=f"{stem}.safetensors", sha256=checksum, size_bytes=len(payload)),
        )
        before = list(self.store.list(_folder(clip_id)))
        self.store.put(checkpoint.payload.key, payload)
        self.store.put(f"{stem}.json", checkpoint.model_dump_json().encode())
        last = max((_stem(key) for key in before if key.endswith(".json")), default="")
        self._delete([key for key in before if _stem(key) != last])
        return checkpoint

    def load(self, clip_id: str, warn: Callable[[str], None]) -> tuple[Checkpoint, bytes] | None:
        """Return the most advanced whole state of a clip, with its bytes; None if there is none.

        `warn` is told of every one that is damaged or another model's.
        """
        found: list[Checkpoint] = []
        for key in self.store.list(_folder(clip_id)):
            if key.endswith(".json"):
                try:
                    checkpoint = Checkpoint.model_validate_json(self.store.read(key))
                    if checkpoint.model_fingerprint != self.model_fingerprint:
                        raise ValueError(f"of model {checkpoint.model_fingerprint}")
                except FileNotFoundError:
                    continue
                except (ValidationError, ValueError) as error:
                    warn(f"checkpoint {key} is passed over: {_first_line(error)}")
                    continue
                found.append(checkpoint)
        found.sort(key=lambda each: (each.kind == "latents", each.step, each.attempt), reverse=True)
        for checkpoint in found:
            try:
                payload = self.store.read(checkpoint.payload.key)
            except FileNotFoundError:
                payload = b""
            checksum = hashlib.sha256(payload).hexdigest()
            if checksum == checkpoint.payload.sha256:
                return checkpoint, payload
            warn(
                f"checkpoint {checkpoint.payload.key} is passed over: "
                f"{len(payload)} bytes that aren't what was saved"
            )
        return None

    def discard(self, clip_id: str) -> None:
        """Remove all that is saved of a clip: it is committed, or begins anew."""
        self._delete(list(self.store.list(_folder(clip_id))))

    def _delete(self, keys: list[str]) -> None:
        # Documents first: a payload without one is never looked at.
        for key in sorted(keys, key=lambda key: not key.endswith(".json")):
            self.store.delete(key)


_CHECKPOINT = re.compile(FOLDER + r"/(..)/(\1[0-9a-f]{62})/[0-9A-Za-z-]+\.json")


def _folder(clip_id: str) -> str:
    return f"{FOLDER}/{clip_id[:2]}/{clip_id}"


def _stem(key: str) -> str:
    return key.rpartition(".")[0]


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error)

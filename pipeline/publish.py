"""`Publisher`: the last stage of every runner: latents → files → a commit, or a failure."""

from __future__ import annotations

import contextlib
import errno
import tempfile
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from av.error import FFmpegError

from pipeline.checkpoints import Checkpoints
from pipeline.develop import Developer
from pipeline.documents import Commit, CommitDraft, new_attempt
from pipeline.errors import NotFiniteError, StoreError
from pipeline.inputs import Inputs
from pipeline.ledger import Ledger
from pipeline.recipe import Recipe
from pipeline.request import RenderRequest

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


@dataclass(frozen=True)
class Denoised:
    """Finished latents, packed, and how they came about."""

    latents: bytes
    gang: str
    layout: str = "1"
    attempts: int = 1
    device_seconds: float = 0.0
    timings: Mapping[str, float] = field(default_factory=dict[str, float])
    """Seconds by stage so far."""


class Publisher:
    """Develops clips and commits them to one output."""

    def __init__(
        self, recipe: Recipe, developer: Developer, model_fingerprint: str, ledger: Ledger
    ) -> None:
        """Hold what clips are developed with, and where they are committed."""
        self._recipe = recipe
        self._developer = developer
        self._fingerprint = model_fingerprint
        self._ledger = ledger
        self._inputs = Inputs(ledger.store)
        self._checkpoints = Checkpoints(ledger.store, model_fingerprint, ledger.epoch)

    def publish(self, clip_id: str, request: RenderRequest, denoised: Denoised) -> Commit:
        """Return the commit that holds for this clip; temporary files are gone afterwards.

        What was saved of the clip on the way is removed after the commit, and where the latents
        aren't finite: else every other try would begin with them.

        Raises:
            ValueError, ProbeError: the clip is bad.
            StoreError: the store is, or this machine's disk is full.
            LeaseLostError: another run has taken over.
        """
        began = time.perf_counter()
        with _blaming_store(), tempfile.TemporaryDirectory(prefix="rushes-") as folder:
            opening = self._inputs.read_opening(request)
            try:
                developed = self._developer.develop(
                    request, denoised.latents, Path(folder), opening
                )
            except NotFiniteError:
                self._checkpoints.discard(clip_id)
                raise
            seen = developed.probe
            draft = CommitDraft(
                clip_id=clip_id,
                attempt=new_attempt(),
                request=request,
                width=seen.width,
                height=seen.height,
                num_frames=seen.num_frames,
                fps=float(seen.fps),
                duration_s=seen.duration_s,
                has_audio=seen.has_audio,
                model=self._recipe.model.checkpoint,
                model_fingerprint=self._fingerprint,
                layout=denoised.layout,
                gang=denoised.gang,
                attempts=denoised.attempts,
                timings={**denoised.timings, "develop": time.perf_counter() - began},
                device_seconds=denoised.device_seconds,
            )
            commit = self._ledger.commit_clip(draft, developed.video, developed.poster)
            self._checkpoints.discard(clip_id)
            return commit


@contextlib.contextmanager
def _blaming_store() -> Generator[None]:
    """Tell a place that fails from a clip that is bad: FFmpeg's errors are OSErrors, too."""
    try:
        yield
    except (FFmpegError, OSError) as error:
        if isinstance(error, FFmpegError) and error.errno not in _DISK_ERRORS:
            raise
        raise StoreError(f"{type(error).__name__}: {error}") from error

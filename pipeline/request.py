"""`RenderRequest`: one clip to render, complete. A row of the table and the body of an API call."""

from __future__ import annotations

import unicodedata
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

MAX_SEED = 2**63 - 1


def normalize_text(text: str) -> str:
    """Return `text` in Unicode NFC without surrounding white space: what is hashed and rendered."""
    return unicodedata.normalize("NFC", text).strip()


Text = Annotated[str, AfterValidator(normalize_text)]


class Opening(BaseModel):
    """Frames that a clip begins with: an image, or a video that it goes on from.

    The clip has all of them, as they are; the model sees the last few and goes on from there.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """The content of the file that holds the frames: see `pipeline.inputs`."""
    num_frames: Annotated[int, Field(gt=0)]
    seen_frames: Annotated[int, Field(gt=0)]
    """How many of the last ones the model sees; a `RenderRequest.num_frames` has them in it."""

    @model_validator(mode="after")
    def _has_what_is_seen(self) -> Opening:
        if self.seen_frames > self.num_frames:
            raise ValueError(f"seen_frames: got {self.seen_frames} of {self.num_frames}")
        return self


class RenderRequest(BaseModel):
    """A clip as a pure function's arguments: every value present, none depending on a run.

    Sizes are in pixels, `fps` in frames a second. `seed` starts the one random generator that a
    clip uses. Which sizes a model can do is the recipe's `Limits`, checked where rows are read.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    prompt: Annotated[Text, Field(min_length=1)]
    negative_prompt: Text = ""
    width: Annotated[int, Field(gt=0)]
    height: Annotated[int, Field(gt=0)]
    num_frames: Annotated[int, Field(gt=0)]
    """What the model makes; before it come the frames of an opening that it doesn't see."""
    fps: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)]
    num_inference_steps: Annotated[int, Field(gt=0)]
    guidance_scale: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    opening: Opening | None = None
    """None: the clip is made from its text alone."""

    @property
    def total_frames(self) -> int:
        """Frames of the finished clip."""
        before = self.opening.num_frames - self.opening.seen_frames if self.opening else 0
        return before + self.num_frames

    @property
    def duration_s(self) -> float:
        """Playing time in seconds."""
        return self.total_frames / self.fps

    @property
    def work(self) -> int:
        """Estimated denoising work, in pixels times frames times steps: orders clips, no more."""
        return self.width * self.height * self.num_frames * self.num_inference_steps

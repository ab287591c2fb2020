"""`RenderRequest`: one clip to render, complete. A row of the table and the body of an API call."""

from __future__ import annotations

import unicodedata
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MAX_SEED = 2**63 - 1


def normalize_text(text: str) -> str:
    """Return `text` in Unicode NFC without surrounding white space: what is hashed and rendered."""
    return unicodedata.normalize("NFC", text).strip()


Text = Annotated[str, AfterValidator(normalize_text)]


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
    fps: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)]
    num_inference_steps: Annotated[int, Field(gt=0)]
    guidance_scale: Annotated[float, Field(ge=0, allow_inf_nan=False)]

    @property
    def duration_s(self) -> float:
        """Playing time in seconds."""
        return self.num_frames / self.fps

    @property
    def work(self) -> int:
        """Estimated denoising work, in pixels times frames times steps: orders clips, no more."""
        return self.width * self.height * self.num_frames * self.num_inference_steps

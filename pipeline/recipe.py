"""`Recipe`: one TOML file that says which model renders, how, and on what resources.

Strict and frozen: an unknown key is an error that names the nearest known one. A recipe holds
everything that a run needs besides the table and the output.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import UsageError
from pipeline.parallel.layout import ParallelLayout

Dtype = Literal["float32", "bfloat16", "float16"]
Positive = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0, le=1e9)]
"""A time to wait: 31 years stand for ever, and of more than 292 a thread fails."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelSpec(_Section):
    """[model]: the checkpoint and how it is loaded."""

    checkpoint: str
    """A folder in diffusers format, a hub id, or `package:MODULE/FOLDER` for package data."""
    revision: str | None = None
    """The hub revision; a commit hash pins the weights."""
    files_digest: str | None = None
    """What its files must be; a run sets it as it begins. See `pipeline.model.pin_model`."""
    dtype: Dtype = "bfloat16"
    dtypes: dict[str, Dtype] = {}
    """Components loaded in another dtype, by name: `{vae = "float32"}`."""
    blocks: str | None = None
    """The diffusers blocks class, for a checkpoint that the automatic mapping doesn't know."""
    configs: dict[str, bool | int | float | str] = {}
    """Pipeline configs that the checkpoint's index lacks: `{boundary_ratio = 0.0}`."""
    components: dict[str, dict[str, bool | int | float | str | list[int]]] = {}
    """Settings of a scheduler or guider that differ from the checkpoint's: `{scheduler =
    {flow_shift = 5.0}}`. A guider whose `guidance_scale` is here doesn't take the request's."""

    @property
    def loading(self) -> dict[str, Any]:
        """How a checkpoint's files are loaded: with them, what the model is."""
        return self.model_dump(include={"dtype", "dtypes", "blocks", "configs", "components"})


class RequestDefaults(_Section):
    """[request]: the values a row gets where its table has none."""

    negative_prompt: str = ""
    width: Positive
    height: Positive
    num_frames: Positive
    fps: Annotated[float, Field(gt=0)]
    num_inference_steps: Positive
    guidance_scale: Annotated[float, Field(ge=0)]


class Limits(_Section):
    """[limits]: what the model can do; a row outside is rejected with the nearest valid value."""

    size_multiple: Positive
    """Width and height are multiples of this: the VAE's spatial factor times the patch."""
    frame_multiple: Positive
    """Frame counts are a multiple of this, plus one: the VAE's temporal factor."""
    min_side: Positive
    max_side: Positive
    max_pixels: Positive
    """Most pixels in one frame."""
    min_frames: Positive = 1
    max_frames: Positive
    max_fps: Annotated[float, Field(gt=0)] = 120.0
    max_steps: Positive = 200
    max_guidance_scale: Annotated[float, Field(gt=0)] = 50.0
    max_prompt_chars: Positive = 4000
    max_seen_frames: Annotated[int, Field(ge=0)] = 0
    """Frames that the model can go on from, by its blocks' `video` and `mask`; with one, an image
    can begin a clip; with more, a clip can be extended. 0: it renders from text alone."""

    def count_tokens(self, width: int, height: int, num_frames: int) -> int:
        """Return how many tokens the transformer sees of a clip: latent frames times patches."""
        frames = (num_frames - 1) // self.frame_multiple + 1
        return frames * (width // self.size_multiple) * (height // self.size_multiple)


class StageSpec(_Section):
    """[encode]: the actors that run one stage."""

    workers: Positive = 1
    num_cpus: Annotated[float, Field(ge=0)] = 1.0
    num_gpus: Annotated[float, Field(ge=0, le=1)] = 0.0
    threads: Positive = 1
    """Threads that torch may use in one actor."""
    label_selector: Mapping[str, str] = {}
    """Labels of the nodes that its actors may be on, by Ray's syntax
    (docs.ray.io/en/latest/ray-core/scheduling/labels.html). None: any. Where encode may be,
    a batch's client of its gangs and an endpoint's ingress are, too."""

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """Where the stage's weights live."""
        return "cuda" if self.num_gpus else "cpu"


class DevelopSpec(StageSpec):
    """[develop]: its actors, and how they decode."""

    onednn: bool = False
    """On a CPU, whether small clips are convolved by oneDNN too; see `pipeline.onednn`."""


class GangShape(_Section):
    """[[gangs]]: a shape of gang, how many of it, and what one of its ranks takes."""

    name: str
    count: Positive = 1
    """How many there are at most."""
    min_count: Annotated[int, Field(ge=0)] | None = None
    """How many there are though no clip waits; None: all. See `PoolSpec.idle_s`."""
    tensor: Positive = 1
    """Ranks that share the transformer's layers (tensor parallelism)."""
    context: Positive = 1
    """Ranks that share a clip's tokens (context parallelism)."""
    guidance: Literal[1, 2] = 1
    """2: the predictions with and without the prompt are made side by side."""
    placement: Literal["STRICT_PACK", "PACK"] = "STRICT_PACK"
    """How Ray places a gang's ranks: on one node, or on as few as it can."""
    max_tokens: Positive | None = None
    """The largest clip that a gang of this shape takes; a clip goes to the smallest that takes it.
    See `Limits.count_tokens`. None: any."""
    num_cpus: Annotated[float, Field(gt=0)] = 1.0
    num_gpus: Annotated[float, Field(ge=0, le=1)] = 0.0
    threads: Positive = 1
    label_selector: Mapping[str, str] = {}
    """Labels of the nodes that its ranks may be on; as a stage's. Ray packs: without them, gangs of
    one rank fill the nodes that larger ones need whole."""

    @model_validator(mode="after")
    def _min_is_no_more(self) -> GangShape:
        if self.min_count is not None and self.min_count > self.count:
            raise ValueError(f"min_count: got {self.min_count}, expected up to count, {self.count}")
        return self

    @model_validator(mode="after")
    def _ranks_have_devices(self) -> GangShape:
        if self.layout.ranks > 1 and self.num_gpus not in (0, 1):
            raise ValueError(
                f"num_gpus: got {self.num_gpus:g} for each of {self.layout.ranks} ranks, expected "
                "1, or 0 for CPUs: NCCL wants a GPU for each rank, and a rank uses one"
            )
        return self

    def is_kept(self, number: int) -> bool:
        """Return whether the gang of this number, from 0, is there though no clip waits."""
        return self.min_count is None or number < self.min_count

    @property
    def layout(self) -> ParallelLayout:
        """How a gang's ranks deal out a clip's work."""
        return ParallelLayout(self.tensor, self.context, self.guidance)

    @property
    def device(self) -> Literal["cpu", "cuda"]:
        """Where a rank's weights live."""
        return "cuda" if self.num_gpus else "cpu"


class PoolSpec(_Section):
    """[pool]: how the gangs are driven."""

    max_attempts: Positive = 3
    """Gangs that a clip may lose before it is a failure."""
    chunk_s: Seconds = 0.25
    """Steps are driven in chunks of about this many seconds."""
    step_timeout_factor: Annotated[float, Field(gt=1)] = 20.0
    """A chunk that takes this many times its measured time hangs: its gang is killed."""
    step_timeout_min_s: Seconds = 60.0
    start_timeout_s: Seconds = 1800.0
    """Longest wait for a gang's place, then for its ranks to meet, then for its weights."""
    idle_s: Seconds = 300.0
    """A gang beyond its shape's `min_count` ends after so long without a clip."""
    tenant_limit_s: Seconds = 120.0
    """A run or endpoint of which the pool hears nothing for so long has died: it is let go."""
    online_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """The most of a gang's time that online clips take from batch."""


class CheckpointSpec(_Section):
    """[checkpoint]: what is saved of denoising that isn't done."""

    every_s: Seconds = 60.0
    """A clip's state is saved about this often: the most that a lost gang makes again."""
    grace_s: Seconds = 20.0
    """Longest wait for a last save when a run is stopped; below what the machine grants."""


class LeaseSpec(_Section):
    """[lease]: how long a run that gives no sign of life still holds its output."""

    limit_s: Seconds = 60.0
    """Signs of life are four times as frequent."""


class FinishSpec(_Section):
    """[finish]: how frames become files. Part of a clip's identity."""

    codec: Literal["h264"] = "h264"
    crf: Annotated[int, Field(ge=0, le=51)] = 18
    preset: Literal[
        "ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower"
    ] = "medium"
    audio_bitrate: Positive = 192_000
    poster_quality: Annotated[int, Field(ge=1, le=95)] = 88


class Recipe(_Section):
    """Everything a run needs besides the table and the output."""

    name: str
    description: str = ""
    model: ModelSpec
    request: RequestDefaults
    limits: Limits
    encode: StageSpec = StageSpec()
    gangs: Annotated[tuple[GangShape, ...], Field(min_length=1)]
    develop: DevelopSpec = DevelopSpec()
    pool: PoolSpec = PoolSpec()
    checkpoint: CheckpointSpec = CheckpointSpec()
    lease: LeaseSpec = LeaseSpec()
    finish: FinishSpec = FinishSpec()

    @property
    def max_tokens(self) -> int | None:
        """The largest clip that any gang takes; None: there is no bound but the limits."""
        bounds = [gang.max_tokens for gang in self.gangs]
        return None if None in bounds else max(bound for bound in bounds if bound)

    def find_gang(self, width: int, height: int, num_frames: int) -> GangShape | None:
        """Return the shape of gang that a clip goes to; None where it is too large for all."""
        tokens = self.limits.count_tokens(width, height, num_frames)
        for gang in sorted(self.gangs, key=lambda gang: gang.max_tokens or math.inf):
            if gang.max_tokens is None or tokens <= gang.max_tokens:
                return gang
        return None

    @model_validator(mode="after")
    def _names_differ(self) -> Recipe:
        names = [gang.name for gang in self.gangs]
        if len(set(names)) != len(names):
            raise ValueError(f"gangs: names must differ, got {names}")
        return self


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply `key=value` overrides, keys dotted: `request.width=128`.

    A value is read as TOML, and as plain text where it is none.

    Raises:
        UsageError: no such file, not TOML, an unknown key (with the nearest), a bad value.
    """
    try:
        data = tomllib.loads(path.read_text("utf-8-sig"))  # Notepad begins with a mark
    except FileNotFoundError as error:
        raise UsageError(f"no recipe at {path}") from error
    except OSError as error:
        raise UsageError(f"{path} can't be read as a recipe: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not a TOML file: {error}") from error
    for override in overrides:
        _apply_override(data, override)
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise UsageError(_explain(error, path)) from error


def _apply_override(data: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UsageError(f"--set {override!r}: expected key=value, for example request.width=128")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *parents, last = key.strip().split(".")
    place: Any = data
    for parent in parents:
        if isinstance(place, list) and parent.isdigit() and int(parent) < len(cast(Any, place)):
            place = cast(Any, place)[int(parent)]
            continue
        if isinstance(place, dict):
            place = cast(dict[str, Any], place).setdefault(parent, {})
            continue
        raise UsageError(f"--set {override!r}: {parent!r} is not a section of the recipe")
    if not isinstance(place, dict):
        raise UsageError(f"--set {override!r}: {'.'.join(parents)} is not a section of the recipe")
    place[last] = value


def _explain(error: ValidationError, path: Path) -> str:
    """Return a validation error as one line for each wrong key, with the nearest known key.

    What is said of a whole follows from what is wrong within it: a list that is short by that item.
    """
    lines: list[str] = []
    items = error.errors(include_url=False)
    places = [item["loc"] for item in items]
    for item in items:
        here = item["loc"]
        if any(len(each) > len(here) and each[: len(here)] == here for each in places):
            continue
        where = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            known = _known_keys(item["loc"][:-1])
            near = difflib.get_close_matches(str(item["loc"][-1]), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
            lines.append(f"unknown key {where!r}; {hint}")
        elif item["type"] == "missing":
            lines.append(f"{where} is missing")
        else:
            got = item.get("input")
            shown = "" if isinstance(got, Mapping | list) else f", got {got!r}"
            lines.append(f"{where or 'recipe'}: {item['msg']}{shown}")
    return f"{path.name}: " + "; ".join(lines)


def _known_keys(location: Sequence[int | str]) -> list[str]:
    model: type[BaseModel] = Recipe
    for part in location:
        if isinstance(part, int):
            continue
        field = model.model_fields[part]
        inner = GangShape if part == "gangs" else field.annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        model = inner
    return list(model.model_fields)

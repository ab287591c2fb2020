"""Rules: what each column of a prompt table may hold under one recipe, and the nearest it may."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pipeline.cells import (
    Moment,
    Problem,
    find_lost_digits,
    is_invisible,
    parse_number,
    read_text,
    show,
)
from pipeline.errors import UsageError
from pipeline.recipe import Limits, Recipe
from pipeline.request import MAX_SEED

MIN_FPS = 1.0


@dataclass(frozen=True)
class NumberRule:
    """The numbers that a column may hold: `low` to `high`, and `step` times k plus `offset`."""

    column: str
    low: float
    high: float
    fallback: str
    """The hint for a cell that has no nearest number."""
    whole: bool = True
    step: int = 1
    offset: int = 0

    @property
    def lowest(self) -> float:
        """The smallest number allowed."""
        if not self.whole:
            return self.low
        return -(-(int(self.low) - self.offset) // self.step) * self.step + self.offset

    @property
    def highest(self) -> float:
        """The largest number allowed."""
        if not self.whole:
            return self.high
        return (int(self.high) - self.offset) // self.step * self.step + self.offset

    @property
    def expected(self) -> str:
        """The rule in words: `4k+1 from 5 to 81`."""
        return f"{self.grid} from {show(self.lowest)} to {show(self.highest)}"

    @property
    def grid(self) -> str:
        """The numbers allowed, but for how large: `4k+1`."""
        if not self.whole:
            return "a number"
        if self.step == 1:
            return "a whole number"
        if self.offset:
            return f"{self.step}k+{self.offset}"
        return f"a multiple of {self.step}"

    def snap(self, number: float) -> float:
        """Return the nearest number on the rule's grid, whether or not it is in range."""
        if not self.whole:
            return number
        return math.floor((number - self.offset) / self.step + 0.5) * self.step + self.offset

    def nearest(self, number: float) -> float:
        """Return the nearest number allowed."""
        if number <= self.lowest or math.isnan(number):
            return self.lowest
        return self.highest if number >= self.highest else self.snap(number)

    def read(self, cell: Any) -> tuple[Any, Problem | None]:
        """Return a cell's number and its problem. Null and blank text are missing: None, None.

        A number that breaks the rule is returned beside its problem where 64 bits can hold it.
        """
        if type(cell) is int and self.whole and self._allows(cell):
            return cell, None
        number = parse_number(cell)
        if number is None:
            return None, None
        if isinstance(number, str):
            return None, Problem(self.column, number, self.expected, self.fallback)
        if self.whole and isinstance(number, float) and number.is_integer():
            lost = find_lost_digits(number)
            if lost and self.low <= number <= self.high:
                hint = f"{lost}; make the column integer"
                return None, Problem(self.column, f"the float {show(number)}", self.expected, hint)
            number = int(number)
        if self._allows(number):
            return (number if self.whole else float(number) + 0.0), None
        hint = self.fallback
        if not math.isnan(number):
            hint = f"nearest is {show(self.nearest(number))}"
        kept = number
        if not math.isfinite(number) or abs(number) > MAX_SEED or isinstance(number, float):
            kept = float(number) if not self.whole and math.isfinite(number) else None
        return kept, Problem(self.column, show(number), self.expected, hint)

    def _allows(self, number: float) -> bool:
        if not self.low <= number <= self.high:  # NaN and the infinities end here too
            return False
        return not self.whole or (
            isinstance(number, int) and (number - self.offset) % self.step == 0
        )


@dataclass(frozen=True)
class Rules:
    """What every column of a table may hold under one recipe."""

    width: NumberRule
    height: NumberRule
    num_frames: NumberRule
    fps: NumberRule
    seed: NumberRule
    num_inference_steps: NumberRule
    guidance_scale: NumberRule
    limits: Limits
    max_tokens: int | None
    """The largest clip that a gang takes, in tokens; None: any."""
    default_frames: int
    """What the recipe has where a row gives neither `num_frames` nor `seconds`."""

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> Rules:
        """Return a recipe's rules.

        Raises:
            UsageError: the recipe's own [request] breaks its [limits], or those exclude all.
        """
        limits, request = recipe.limits, recipe.request

        def rule(column: str, low: float, high: float, **grid: Any) -> NumberRule:
            default = show(getattr(request, column))
            return NumberRule(column, low, high, f"the recipe has {default}", **grid)

        multiple = limits.size_multiple
        rules = cls(
            width=rule("width", limits.min_side, limits.max_side, step=multiple),
            height=rule("height", limits.min_side, limits.max_side, step=multiple),
            num_frames=rule(
                "num_frames",
                limits.min_frames,
                limits.max_frames,
                step=limits.frame_multiple,
                offset=1 if limits.frame_multiple > 1 else 0,
            ),
            fps=rule("fps", MIN_FPS, limits.max_fps, whole=False),
            seed=NumberRule("seed", 0, MAX_SEED, "leave it empty to have one derived"),
            num_inference_steps=rule("num_inference_steps", 1, limits.max_steps),
            guidance_scale=rule("guidance_scale", 0, limits.max_guidance_scale, whole=False),
            limits=limits,
            max_tokens=recipe.max_tokens,
            default_frames=request.num_frames,
        )
        for each in rules.with_default():
            if each.lowest > each.highest:
                low, high = show(each.low), show(each.high)
                raise UsageError(
                    f"recipe {recipe.name}: its limits leave no {each.column}: from {low} to "
                    f"{high} nothing is {each.grid}; widen them"
                )
        problems = [each.read(getattr(request, each.column))[1] for each in rules.with_default()]
        problems.append(rules.read_negative_prompt(request.negative_prompt)[1])
        problems.append(rules.check_size(request.width, request.height))
        problems.append(rules.check_tokens(request.width, request.height, request.num_frames))
        for problem in problems:
            if problem:
                raise UsageError(f"recipe {recipe.name}: request.{problem.text}")
        return rules

    def with_default(self) -> Iterator[NumberRule]:
        """Yield the rules of the columns that have a default in the recipe."""
        yield from (self.width, self.height, self.num_frames, self.fps)
        yield from (self.num_inference_steps, self.guidance_scale)

    def read_prompt(self, cell: Any) -> tuple[str | None, Problem | None]:
        """Return a cell's prompt and its problem; a missing or blank one is a problem."""
        text, problem = read_text(cell, "prompt", self.limits.max_prompt_chars)
        if problem or (text and not is_invisible(text)):
            return text, problem
        return None, Problem("prompt", "null" if cell is None else "blank text", "some text")

    def read_negative_prompt(self, cell: Any) -> tuple[str | None, Problem | None]:
        """Return a cell's negative prompt, None where missing, and its problem."""
        return read_text(cell, "negative_prompt", self.limits.max_prompt_chars)

    def check_size(self, width: int, height: int) -> Problem | None:
        """Return the problem with two sides that are each allowed: too many pixels in all."""
        limits = self.limits
        limit = limits.max_pixels
        if width * height <= limit:
            return None
        size = nearest_size(
            width, height, limits.size_multiple, limits.min_side, limits.max_side, limit
        )
        hint = f"nearest is {size[0]}x{size[1]}" if size else ""
        got = f"{width}x{height} ({width * height} pixels)"
        return Problem("width, height", got, f"at most {limit} pixels", hint)

    def check_tokens(self, width: int, height: int, num_frames: int) -> Problem | None:
        """Return the problem with a clip that is too large for every gang."""
        tokens = self.limits.count_tokens(width, height, num_frames)
        if self.max_tokens is None or tokens <= self.max_tokens:
            return None
        fit = self.max_tokens // self.limits.count_tokens(width, height, 1)
        most = self.limits.frame_multiple * (fit - 1) + 1
        hint = ""
        if most >= self.num_frames.lowest:
            hint = f"at {width}x{height} up to {show(self.num_frames.nearest(most))} frames do"
        got = f"{num_frames} of {width}x{height} ({tokens} tokens)"
        expected = f"at most the {self.max_tokens} tokens of the largest gang"
        return Problem("num_frames", got, expected, hint)

    def read_seconds(
        self, cell: Any, fps: float, given: int | None = None
    ) -> tuple[int | None, Problem | None]:
        """Return the frames that `seconds` asks for at `fps`: the nearest count on the grid.

        Where the row has `num_frames` as well, as `given`, the two must agree.
        """
        is_duration = isinstance(cell, Moment) and cell.seconds is not None
        seconds = parse_number(cell.seconds if is_duration else cell)
        if seconds is None:
            return None, None
        frames = self.num_frames
        count = math.nan
        if not isinstance(seconds, str):
            wanted = float(seconds) * fps
            count = frames.snap(wanted) if abs(wanted) < MAX_SEED else wanted
            if wanted > 0 and frames.lowest <= count <= frames.highest:
                if given is None or given == count:
                    return int(count), None
                got = f"{show(seconds)} ({show(count)} frames at {show(fps)} fps)"
                hint = "give one of the two"
                return None, Problem("seconds", got, f"what num_frames={given} says", hint)
        low, high = (f"{edge / fps:.6g}" for edge in (frames.lowest, frames.highest))
        expected = (
            f"{low} to {high} at {show(fps)} fps "
            f"({show(frames.lowest)} to {show(frames.highest)} frames)"
        )
        hint = f"the recipe has {self.default_frames / fps:.6g}"
        if not math.isnan(count):
            hint = f"nearest is {frames.nearest(count) / fps:.6g}"
        got = seconds if isinstance(seconds, str) else show(seconds)
        return None, Problem("seconds", got, expected, hint)


@lru_cache(maxsize=1024)
def nearest_size(
    width: int, height: int, step: int, min_side: int, max_side: int, max_pixels: int
) -> tuple[int, int] | None:
    """Return the allowed size nearest to (width, height) scaled down to `max_pixels`."""
    scale = math.sqrt(max_pixels / (width * height))
    ideal = width * scale, height * scale
    sides = range(-(-min_side // step) * step, max_side + 1, step)
    best: tuple[float, tuple[int, int]] | None = None
    for side in sides:
        room = min(max_pixels // side, max_side) // step * step
        other = min(room, max(sides.start, math.floor(ideal[1] / step + 0.5) * step))
        if other < sides.start:
            continue
        distance = (side - ideal[0]) ** 2 + (other - ideal[1]) ** 2
        if best is None or distance < best[0]:
            best = distance, (side, other)
    return best[1] if best else None

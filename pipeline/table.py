# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownParameterType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false
"""Prompt tables: every row becomes a request, or a reject with its reason; labels ride along.

A table is Parquet, CSV or JSONL. `prompt` is the one column that it must have. A known column's
missing value comes from the recipe, and a missing seed is derived from the row's other values, so a
row alone determines its clip. Null and, in a number's column, blank text are missing. NaN is not:
pandas, DuckDB and Polars write a missing number as null, so a NaN in a file is a wrong number.

No torch and no ray: planning 10,000 rows takes well under a second.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from pipeline.arrow import build_array
from pipeline.cells import Problem, read_id
from pipeline.columns import KNOWN_COLUMNS, REQUEST_COLUMNS, RESERVED, ROW_TYPES
from pipeline.errors import UsageError
from pipeline.formats import Columns, Part
from pipeline.identity import derive_seed
from pipeline.plan import Plan, PlannedTable, Reason, merge_reasons
from pipeline.recipe import Recipe
from pipeline.request import RenderRequest, normalize_text
from pipeline.rules import Rules
from pipeline.source import Source, find_source, read_source

Reader = Callable[[Any], tuple[Any, Problem | None]]


class RowError(ValueError):
    """A row is no request."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        """Hold what is wrong."""
        super().__init__("; ".join(each.text for each in problems))
        self.problems = problems


def plan_tables(
    sources: Sequence[str], recipe: Recipe, clip_id_of: Callable[[RenderRequest], str]
) -> Plan:
    """Read prompt tables and plan every row.

    Args:
        sources: Files, folders or globs, local or in a store that fsspec reaches.
        recipe: Where missing values come from, and what the model can do.
        clip_id_of: The id of the clip that a request asks for.

    Raises:
        UsageError: a source names no readable table, has no `prompt` column or no rows, or is given
            twice; an id stands for two different requests; two labels need one name; or the
            recipe's own values break its limits.
    """
    rules = Rules.from_recipe(recipe)
    found = [find_source(source) for source in sources]
    _check_sources_differ(found)
    plan = Plan(tuple(_plan_table(source, rules, recipe, clip_id_of) for source in found))
    _check_ids(plan)
    return plan


def read_request(values: Mapping[str, Any], recipe: Recipe) -> RenderRequest:
    """Return the request that one row asks for: its values by column, missing ones left out.

    Raises:
        RowError: a value breaks the recipe's limits.
        UsageError: the recipe's own values do.
    """
    labels = pa.table({})
    cells = {name: [value] for name, value in values.items()}
    columns = Columns(1, tuple(values), {"prompt": [None], **cells}, labels)
    resolved, problems = _resolve(columns, Rules.from_recipe(recipe), recipe)
    if problems:
        raise RowError(tuple(problems[0]))
    unseeded = {name: resolved[name][0] for name in REQUEST_COLUMNS if name != "seed"}
    seed = resolved["seed"][0]
    return RenderRequest(**unseeded, seed=derive_seed(unseeded) if seed is None else seed)


def _plan_table(
    source: Source, rules: Rules, recipe: Recipe, clip_id_of: Callable[[RenderRequest], str]
) -> PlannedTable:
    columns = read_source(source, KNOWN_COLUMNS)
    if not columns.names and not columns.num_rows:
        raise UsageError(f"{source.given} is empty")
    _check_prompt_column(columns.names, source.given)
    for part in columns.parts:
        if part.num_rows:
            _check_prompt_column(part.names, part.shown)
    if not columns.num_rows:
        raise UsageError(f"{source.given} has no rows")
    names = _name_labels(columns.labels.column_names, source.given)
    resolved, problems = _resolve(columns, rules, recipe)
    clip_ids: list[str | None] = [None] * columns.num_rows
    seeds = resolved["seed"]
    fields = [name for name in REQUEST_COLUMNS if name != "seed"]
    for row, values in enumerate(zip(*(resolved[name] for name in fields), strict=True)):
        if row in problems:
            continue
        unseeded = dict(zip(fields, values, strict=True))
        if seeds[row] is None:
            seeds[row] = derive_seed(unseeded)
        clip_ids[row] = clip_id_of(RenderRequest(**unseeded, seed=seeds[row]))
    resolved["clip_id"] = clip_ids
    resolved["reject"] = [None] * columns.num_rows
    for row, found in problems.items():
        resolved["reject"][row] = "; ".join(each.text for each in found)
    resolved["row"] = list(range(columns.num_rows))
    rows = {name: build_array(resolved[name], kind) for name, kind in ROW_TYPES.items()}
    rows |= dict(zip(names, columns.labels.columns, strict=True))
    return PlannedTable(
        source=source.given,
        uri=source.uri,
        name=source.name,
        rows=pa.table(rows),
        reasons=_group_reasons(problems, columns.parts),
        hints=(*source.notes, *columns.notes, *_find_hints(columns.labels.column_names)),
        files=tuple((part.shown, part.num_rows) for part in columns.parts),
    )


def _resolve(
    columns: Columns, rules: Rules, recipe: Recipe
) -> tuple[dict[str, list[Any]], dict[int, list[Problem]]]:
    """Return every field's values in row order, and the problems of the rows that have any.

    A missing seed stays None. A value with a problem is what could be read of it, else None.
    """
    resolved: dict[str, list[Any]] = {}
    problems: dict[int, list[Problem]] = {}

    def read(column: str, reader: Reader, default: Any = None) -> None:
        cells = columns.cells.get(column)
        if cells is None:
            resolved[column] = [default] * columns.num_rows
            return
        values = resolved[column] = []
        for row, cell in enumerate(cells):
            value, problem = reader(cell)
            if problem:
                problems.setdefault(row, []).append(problem)
            values.append(default if value is None and not problem else value)

    request = recipe.request
    read("prompt", rules.read_prompt)
    negative_prompt = normalize_text(request.negative_prompt)
    read("negative_prompt", rules.read_negative_prompt, negative_prompt)
    read("width", rules.width.read, request.width)
    read("height", rules.height.read, request.height)
    _check_sizes(resolved, problems, rules)
    read("fps", rules.fps.read, request.fps)
    read("num_frames", rules.num_frames.read)
    _resolve_seconds(columns, resolved, problems, rules, request.num_frames)
    _check_tokens(resolved, problems, rules)
    read("seed", rules.seed.read)
    read("num_inference_steps", rules.num_inference_steps.read, request.num_inference_steps)
    read("guidance_scale", rules.guidance_scale.read, request.guidance_scale)
    read("id", read_id)
    return resolved, problems


def _check_sizes(
    resolved: dict[str, list[Any]], problems: dict[int, list[Problem]], rules: Rules
) -> None:
    for row, (width, height) in enumerate(zip(resolved["width"], resolved["height"], strict=True)):
        found = problems.get(row, ())
        if not any(each.column in ("width", "height") for each in found):
            problem = rules.check_size(width, height)
            if problem:
                problems.setdefault(row, []).append(problem)


def _resolve_seconds(
    columns: Columns,
    resolved: dict[str, list[Any]],
    problems: dict[int, list[Problem]],
    rules: Rules,
    default: int,
) -> None:
    """Fill in the frame counts that rows give as seconds, or not at all."""
    seconds = columns.cells.get("seconds") or [None] * columns.num_rows
    frames = resolved["num_frames"]
    for row, cell in enumerate(seconds):
        found = problems.get(row, ())
        if any(each.column in ("fps", "num_frames") for each in found):
            continue
        count, problem = rules.read_seconds(cell, resolved["fps"][row], frames[row])
        if problem:
            problems.setdefault(row, []).append(problem)
        elif frames[row] is None:
            frames[row] = default if count is None else count


def _check_tokens(
    resolved: dict[str, list[Any]], problems: dict[int, list[Problem]], rules: Rules
) -> None:
    """Reject the clips that are too large for every gang."""
    if rules.max_tokens is None:
        return
    sizes = zip(*(resolved[name] for name in ("width", "height", "num_frames")), strict=True)
    for row, size in enumerate(sizes):
        problem = None if row in problems else rules.check_tokens(*size)
        if problem:
            problems[row] = [problem]


def _check_sources_differ(sources: Sequence[Source]) -> None:
    given: dict[str, str] = {}
    for source in sources:
        uris = source.real_uris
        for uri in uris:
            if uri in given:
                also = "twice" if given[uri] == source.given else f"by {given[uri]} too"
                raise UsageError(f"{source.given}: {uri} is given {also}; give each table once")
        given |= dict.fromkeys(uris, source.given)


def _check_prompt_column(names: Sequence[str], source: str) -> None:
    if "prompt" in names:
        return
    near = difflib.get_close_matches("prompt", [name.casefold() for name in names], n=1)
    found = [name for name in names if name.casefold() in near]
    shown = ", ".join(repr(name[:40]) for name in names[:20]) + (", …" if len(names) > 20 else "")
    hint = f"; rename {found[0]!r} to 'prompt'" if found else ""
    raise UsageError(f"{source} has no column 'prompt'; its columns are {shown}{hint}")


def _check_ids(plan: Plan) -> None:
    """Raise where one id stands for two different requests. Rejected rows ask for nothing."""
    seen: dict[str, tuple[str, PlannedTable, int]] = {}
    for table in plan.tables:
        for clip_id, each_id, row in table.read_valid("id", "row"):
            if each_id is None:
                continue
            first, its_table, its_row = seen.setdefault(each_id, (clip_id, table, row))
            if first != clip_id:
                places = (its_table.locate(its_row), table.locate(row))
                one, other = (f"{file} row {number}" for file, number in places)
                raise UsageError(
                    f"id {each_id!r} stands for two different requests: {one} and {other} "
                    "(rows count from 0); give each its own id"
                )


def _name_labels(labels: Sequence[str], source: str) -> list[str]:
    """Return the names that labels get: their own, or `label_<name>` where it is taken."""
    names = [f"label_{name}" if name.casefold() in RESERVED else name for name in labels]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(
                f"{source}: two columns would be the label {name!r}, since {name[6:]!r} is a "
                "column of the manifest; rename one"
            )
    return names


def _find_hints(labels: Sequence[str]) -> list[str]:
    """Return a line for each label that looks like a misspelt known column."""
    known = {re.sub(r"[\W_]+", "", name): name for name in KNOWN_COLUMNS}
    hints: list[str] = []
    for label in labels:
        bare = re.sub(r"[\W_]+", "", label).casefold()
        near = difflib.get_close_matches(bare, known, n=1, cutoff=0.85)
        if near:
            hints.append(f"column {label!r} is carried as a label; is it {known[near[0]]!r}?")
    return hints


def _group_reasons(problems: dict[int, list[Problem]], parts: Sequence[Part]) -> tuple[Reason, ...]:
    def each() -> Iterator[Reason]:
        start = 0
        for part in parts:
            for row in range(start, start + part.num_rows):
                for problem in problems.get(row, ()):
                    yield Reason(problem.kind, 1, problem.text, part.shown, row - start)
            start += part.num_rows

    return merge_reasons(each())

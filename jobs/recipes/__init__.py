"""The recipes that ship with rushes, and how one is found by name."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import UsageError
from pipeline.recipe import Recipe, load_recipe

FOLDER = Path(__file__).parent
DEFAULT = "tiny-cpu"


def list_recipes() -> list[str]:
    """Return the names of the recipes that ship with rushes."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def find_recipe(name: str = DEFAULT, overrides: Sequence[str] = ()) -> Recipe:
    """Return a recipe by its name here, or by the path of a TOML file.

    Raises:
        UsageError: no such recipe (with the nearest name), or an invalid one.
    """
    if name.endswith(".toml") or "/" in name:
        return load_recipe(Path(name), overrides)
    names = list_recipes()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}"
        raise UsageError(f"no recipe {name!r}; {hint} (a path ends in .toml)")
    return load_recipe(FOLDER / f"{name}.toml", overrides)

"""What the command's help and the README say, against the code."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import typer
from click.testing import Result
from pydantic import BaseModel
from typer.testing import CliRunner

from jobs.cli import ExitCode, app
from jobs.plan import plan_rows
from jobs.recipes import find_recipe, list_recipes
from pipeline.columns import KNOWN_COLUMNS
from pipeline.recipe import GangShape, Recipe

WIDE = {"COLUMNS": "250", "NO_COLOR": "1", "TERM": "dumb"}


def call(*args: str) -> Result:
    return CliRunner().invoke(app, args, env=WIDE)


def test_help_names_every_column_option_and_exit_code() -> None:
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        result = call(name, "--help")
        assert result.exit_code == ExitCode.OK
        options = [each for param in command.params for each in param.opts if "--" in each]
        assert [each for each in options if each not in result.stdout] == [], name
        if any(param.name == "tables" for param in command.params):
            words = set(re.findall(r"\w+", result.stdout))
            assert set(KNOWN_COLUMNS) <= words, name
    shown = call("render", "--help").stdout
    codes = shown[shown.index("Exit codes") :]
    assert [int(code) for code in re.findall(r"\b\d+\b", codes)] == sorted(ExitCode)
    assert all(name in shown for name in list_recipes())


def test_help_without_a_command_lists_them() -> None:
    shown = call("--help").stdout
    assert all(name in shown for name in ("render", "plan", "status", "report"))
    assert call().exit_code == ExitCode.USAGE


def read_readme(topic: str) -> str:
    """Return the sections of the README whose heading names a topic."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    sections = re.split(r"^#+ ", readme, flags=re.MULTILINE)
    found = [text for text in sections if topic in text.partition("\n")[0].casefold()]
    assert found, f"the README has no section on {topic}"
    return "\n".join(found)


def test_make_demo_is_the_readme_s_call_and_its_table_has_no_bad_row() -> None:
    root = Path(__file__).parents[2]
    make = ["make", "--dry-run", "--file", root / "Makefile", "demo"]
    lines = subprocess.run(make, cwd=root, capture_output=True, text=True, check=True).stdout
    (line,) = (each for each in lines.splitlines() if "rushes render" in each)
    program, name, *args = shlex.split(line)
    assert (program, name) == (".venv/bin/rushes", "render")
    command = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    given = command.make_context(name, args).params
    assert (given["tables"], given["output"]) == (["examples/ads.parquet"], "out/demo")
    assert "renders examples/ads.parquet into out/demo" in read_readme("in a minute")
    plan = plan_rows([str(root / "examples" / "ads.parquet")], find_recipe(given["recipe"]))
    assert (plan.rows, plan.clips, plan.rejected) == (8, 8, 0)


def list_options() -> Iterator[tuple[str, str]]:
    """Yield (command, option) of everything that the command takes."""
    root = typer.main.get_command(app)
    commands = {"rushes": root, **root.commands}  # type: ignore[attr-defined]
    for name, command in commands.items():
        for param in command.params:
            yield from (
                (name, each) for each in (*param.opts, *param.secondary_opts) if "-" in each
            )


def test_readme_names_every_option_with_its_command() -> None:
    named: set[tuple[str, str]] = set()
    table = ""
    for line in read_readme("command").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line else []
        words = [re.findall(r"`([^` ]+)[^`]*`", cell) for cell in cells]
        if line.startswith("| option"):
            table = "render" if "render" in line else ""
        elif line.startswith("| `-"):
            commands = [table] if table else words[1]
            named |= {(command, option) for command in commands for option in words[0]}
    assert named == set(list_options())


def test_readme_names_every_column() -> None:
    named = set(re.findall(r"`(\w+)`", read_readme("table")))
    assert set(KNOWN_COLUMNS) <= named


def test_readme_names_every_recipe_key() -> None:
    text = read_readme("recipe")
    named = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", text))))
    for name, field in Recipe.model_fields.items():
        assert name in named
        section = GangShape if name == "gangs" else field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            assert set(section.model_fields) <= named, name

"""The `rushes` command."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from enum import IntEnum, StrEnum
from importlib import metadata
from typing import Annotated

import typer
from rich.console import Console

from jobs import stop
from jobs.recipes import DEFAULT, find_recipe, list_recipes
from jobs.streams import open_streams
from pipeline.errors import StorageAwayError, UsageError


class ExitCode(IntEnum):
    """What the command's exit status means."""

    OK = 0
    BROKEN = 1
    USAGE = 2
    INCOMPLETE = 3
    STOPPED = stop.STOPPED
    INTERRUPTED = 130


class LogFormat(StrEnum):
    """How a run tells how it goes."""

    TEXT = "text"
    JSON = "json"


EXIT_CODES = """
Exit codes: 0 every row of the tables is committed, with --limit every clip of the sample; 1 the run
broke, run it again; 2 the call is wrong, nothing was rendered; 3 some rows of the tables failed or
were rejected, with --limit some clips of the sample failed or no row is valid; 75 stopped by
SIGTERM or SIGHUP, run it again to go on; 130 interrupted, run it again to go on.
"""

COLUMNS = """
Columns of a table. [bold]prompt[/] is the one that is needed; a missing column or value comes from
the recipe: [bold]id[/] your own name for the row; [bold]negative_prompt[/]; [bold]width[/],
[bold]height[/] in pixels; [bold]num_frames[/], or [bold]seconds[/] instead; [bold]fps[/];
[bold]seed[/] (derived from the row where missing); [bold]num_inference_steps[/];
[bold]guidance_scale[/]. Every other column is a label: it is carried, with its type, into the
manifest and onto the review page.
"""

RECIPES = f"""
Recipes that come along: {", ".join(list_recipes())}.
"""


def _join_help(*parts: str) -> str:
    """Return paragraphs of help without line ends of their own: the terminal's width decides."""
    return "\n\n".join(" ".join(part.split()) for part in parts)


app = typer.Typer(
    name="rushes",
    epilog="Start with: rushes render examples/ads.parquet --output out/demo",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"rushes {metadata.version('rushes')}")
        raise typer.Exit


@app.callback()
def start(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    """Render tables of prompts into videos, with open video-diffusion models, on Ray."""


Tables = Annotated[
    list[str],
    typer.Argument(
        metavar="TABLE...",
        help="Parquet, CSV or JSONL: a file, a folder, a glob, or several; local or s3://.",
        show_default=False,
    ),
]
Output = Annotated[
    str,
    typer.Option("--output", "-o", help="Folder or s3:// URI of the output.", show_default=False),
]
RecipeName = Annotated[
    str,
    typer.Option(
        "--recipe",
        "-r",
        help="A recipe's name, as listed below, or the path of a TOML file.",
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one value of the recipe, as often as you like: request.width=128.",
        show_default=False,
    ),
]
Address = Annotated[
    str | None,
    typer.Option(
        envvar="RAY_ADDRESS",
        help="A Ray cluster: auto, or HOST:PORT. Without it a local one is started.",
        show_default=False,
    ),
]


@app.command(epilog=_join_help(COLUMNS, RECIPES, EXIT_CODES))
def render(
    tables: Tables,
    output: Output,
    recipe: RecipeName = DEFAULT,
    overrides: Overrides = None,
    limit: Annotated[
        int | None,
        typer.Option(
            help="Render the first clips of the tables alone, so many: a sample. Rejected rows "
            "don't count for its exit code, but for tables without a valid row.",
            min=1,
        ),
    ] = None,
    address: Address = None,
    retry_failed: Annotated[
        bool,
        typer.Option(
            "--retry-failed/--no-retry-failed",
            help="Try clips that failed before again, up to pool.max_attempts over all runs.",
        ),
    ] = True,
    ok_if_rejected: Annotated[
        bool,
        typer.Option(
            "--ok-if-rejected",
            help="Rejected rows don't count for the exit code, but for tables without a valid row; "
            "failed ones do: for schedulers that would call again what no retry can mend.",
        ),
    ] = False,
    wait: Annotated[
        bool,
        typer.Option(
            "--wait", help="Where another run writes the output: wait for its end, don't refuse."
        ),
    ] = False,
    report: Annotated[
        bool,
        typer.Option(
            "--report",
            help="At the end, also write the report, as rushes report OUTPUT does: for a night "
            "that nobody waits for.",
        ),
    ] = False,
    log_format: Annotated[
        LogFormat, typer.Option(help="How to tell how it goes: for people, or a line of JSON each.")
    ] = LogFormat.TEXT,
) -> None:
    """Render every clip that the tables ask for and the output doesn't hold yet.

    The same command again goes on where the last one stopped, and does nothing when all is done.
    Videos are in OUTPUT/clips, a row for each table row in OUTPUT/manifest, and a page to review
    them on is OUTPUT/index.html.

    [bold]Examples[/]

      rushes render ads.parquet -o out/ads

      rushes render "s3://ads/tonight/*.parquet" -o s3://ads/videos -r wan21-14b-80gb --address auto

      rushes render ads.csv -o out/try --limit 4 --set request.num_inference_steps=8
    """
    from jobs.json_log import JsonReporter

    log = JsonReporter(_name_output(output), typer.echo) if log_format is LogFormat.JSON else None
    with _errors(log.refused if log else None):
        from jobs.progress import ConsoleReporter
        from jobs.render import render_tables
        from jobs.run import RunBrokenError
        from jobs.stop import LAST_WORDS, StopSignal, stop_signals

        chosen = find_recipe(recipe, overrides or ())
        shows = log or ConsoleReporter(_console(), _complain)
        try:
            with shows as reporter, stop_signals(reporter.noted):
                result = render_tables(
                    tables,
                    output,
                    chosen,
                    reporter,
                    limit,
                    address,
                    retry_failed=retry_failed,
                    wait=wait,
                )
        except RunBrokenError as error:
            shows.broken(error)
            raise typer.Exit(ExitCode.BROKEN) from error
        except StopSignal as error:
            shows.noted(LAST_WORDS.format(error))
            raise typer.Exit(ExitCode.STOPPED) from error
        shows.finished(result)
        if report and not result.ended_by:
            _try_report(output, shows.noted)
        if result.ended_by:
            by_hand = result.ended_by == "Ctrl-C"
            raise typer.Exit(ExitCode.INTERRUPTED if by_hand else ExitCode.STOPPED)
        may_pass = result.plan.valid and (ok_if_rejected or limit is not None)
        rejected = result.plan.rejected and not may_pass
        unfinished = limit is None and (result.status.failed or result.status.remaining)
        if result.failed or result.given_up or rejected or unfinished:
            raise typer.Exit(ExitCode.INCOMPLETE)


@app.command(epilog=_join_help(COLUMNS, RECIPES))
def plan(
    tables: Tables,
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", help="Also count what this output holds already.", show_default=False
        ),
    ] = None,
    recipe: RecipeName = DEFAULT,
    overrides: Overrides = None,
) -> None:
    """Check tables without rendering: rows, rejects with reasons, duplicates, frames, pixels.

    The model is needed with --output alone, and then found, or fetched, once the tables are good.

    [bold]Example[/]

      rushes plan ads.parquet -o out/ads -r wan21-14b-80gb
    """
    with _errors():
        from jobs.plan import find_done, plan_call, plan_rows
        from jobs.summaries import print_plan
        from pipeline.ledger import Ledger
        from pipeline.store import ObjectStore

        chosen = find_recipe(recipe, overrides or ())
        if output is None:
            print_plan(_console(), plan_rows(tables, chosen), chosen, None)
            return
        ledger = Ledger(ObjectStore(output))
        call = plan_call(tables, chosen)
        print_plan(_console(), call.plan, chosen, len(find_done(call, ledger)))


@app.command(epilog=_join_help(RECIPES))
def serve(
    output: Output,
    recipe: RecipeName = DEFAULT,
    overrides: Overrides = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8000,
    address: Address = None,
    keys: Annotated[
        str | None,
        typer.Option(
            help="File with the SHA-256 of an API key on each line; also: RUSHES_API_KEYS, the "
            "keys themselves, comma-separated.",
            show_default=False,
        ),
    ] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Ask nobody for a key; all videos are everybody's.")
    ] = False,
    max_queued: Annotated[
        int, typer.Option(help="Videos that one key may have under way; more are refused.", min=1)
    ] = 100,
    max_per_minute: Annotated[
        int, typer.Option(help="Videos that one key may ask for a minute; more are refused.", min=1)
    ] = 60,
    webhook: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Told how each video and batch ends, in a POST that RUSHES_WEBHOOK_SECRET signs.",
            show_default=False,
        ),
    ] = None,
    alias: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Another name for the model, for programs that insist on one: sora-2.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Serve OpenAI's Videos API, for few requests that can't wait for the night.

    Point the openai client at it: OpenAI(base_url="http://127.0.0.1:8000/v1", api_key=...). What is
    accepted is in the output before it is acknowledged: the same command goes on after any crash.
    The output is the endpoint's own while it runs; a table's output is another one. At / is a page.

    [bold]Examples[/]

      rushes serve -o out/online --insecure

      RUSHES_API_KEYS=key1,key2 rushes serve -o s3://ads/online -r wan21-1.3b-24gb --alias sora-2
    """
    with _errors():
        from jobs.api.keys import ApiKeys
        from jobs.run import RunBrokenError
        from jobs.serve import ServeCall, find_webhook, serve_endpoint
        from pipeline.store import ObjectStore

        console = _console()
        listed = os.environ.get("RUSHES_API_KEYS", "")
        call = ServeCall(
            find_recipe(recipe, overrides or ()),
            ObjectStore(output),
            ApiKeys.read(keys, listed, insecure=insecure),
            tuple(each for each in alias or () if each.strip()),
            host,
            port,
            max_queued,
            max_per_minute,
            find_webhook(webhook),
        )
        try:
            serve_endpoint(call, address, lambda text: console.print(text, highlight=False))
        except RunBrokenError as error:
            _complain(str(error))
            raise typer.Exit(ExitCode.BROKEN) from error


@app.command(epilog=_join_help(RECIPES))
def fetch(recipe: RecipeName = DEFAULT, overrides: Overrides = None) -> None:
    """Fetch a recipe's model into the hub's cache (HF_HOME), and print the folder it is in.

    Without it, whoever needs the model first fetches it. Several at once wait for one.

    [bold]Example[/]

      HF_HOME=/models rushes fetch -r wan21-14b-80gb
    """
    with _errors():
        from pipeline.model import resolve_checkpoint

        typer.echo(resolve_checkpoint(find_recipe(recipe, overrides or ()).model))


@app.command()
def status(
    output: Annotated[str, typer.Argument(help="Folder or s3:// URI of an output.")],
    watch: Annotated[
        bool, typer.Option("--watch", help="Look again until no row remains, or Ctrl-C.")
    ] = False,
    every: Annotated[
        float,
        typer.Option(
            help="Seconds between looks of --watch; a look that takes longer waits as long.",
            min=0.1,
        ),
    ] = 2.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the counts as JSON, each time on one line.")
    ] = False,
) -> None:
    """Count an output's rows: committed, failed, rejected, remaining. Reads the store alone.

    Where rows of several tables are in it, each is listed, with where its rows came from.
    While a run writes the output, or has died without giving it back, that run is named.
    --watch shows rows an hour and the time that is left on a terminal, and elsewhere prints a line
    whenever the counts change. It waits for an output that isn't there yet, or has no rows, and for
    a storage that goes away meanwhile.
    """
    with _errors():
        from jobs.summaries import print_status
        from jobs.watch import watch_output
        from pipeline.lease import read_lease
        from pipeline.ledger import Ledger
        from pipeline.store import ObjectStore

        ledger = Ledger(ObjectStore(output))
        if watch:
            try:
                watch_output(ledger, _console(), every, _complain, as_json=as_json)
            except KeyboardInterrupt as error:
                raise typer.Exit(ExitCode.INTERRUPTED) from error
            return
        counts = ledger.status()
        if as_json:
            typer.echo(counts.model_dump_json())
        else:
            print_status(_console(), ledger.store.uri, counts, read_lease(ledger.store))


@app.command()
def report(
    output: Annotated[str, typer.Argument(help="Folder or s3:// URI of an output.")],
    by: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL",
            help="Break down by this label, as often as you like; else by up to 4 with few values.",
            show_default=False,
        ),
    ] = None,
    price: Annotated[
        float | None,
        typer.Option(help="Money for a device-hour: shows costs.", min=0, show_default=False),
    ] = None,
    currency: Annotated[str, typer.Option(help="What the price is in.")] = "$",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report as JSON, not the summary.")
    ] = False,
) -> None:
    """Write OUTPUT/report.html and report.json: rows, reasons, device time, cost, the runs' ends.

    Reads the store alone; of a run that still writes it tells what is there so far.

    [bold]Example[/]

      rushes report out/ads --by product --by locale --price 2.50
    """
    with _errors():
        from jobs.report.collect import Price
        from jobs.report.summary import print_report
        from jobs.report.write import write_report

        told = write_report(output, by or (), Price(price, currency))
        if as_json:
            typer.echo(told.model_dump_json(indent=1))
        else:
            print_report(_console(), told)


@app.command()
def clean(
    output: Annotated[str, typer.Argument(help="Folder or s3:// URI of an output.")],
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; without, it is listed.")] = False,
    unfinished: Annotated[
        bool,
        typer.Option(
            "--unfinished", help="Also saved work that a run would go on from: no run will come."
        ),
    ] = False,
    table: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Also this table's rows, manifest and rejects, by its name in `rushes status`, as "
            "often as you like. Its clips stay.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """List, and with --yes remove, what nobody will read: lost attempts, spent saves, leftovers.

    Commits, the files that they name and failures are never touched, nor are rows, manifests and
    rejects but of a table that --table names: one that was moved, is damaged, or no longer wanted.
    Nothing is removed while a run writes the output.
    """
    with _errors():
        from jobs.clean import clean_output
        from jobs.summaries import print_garbage

        console = _console()
        kinds = clean_output(
            output, remove=yes, unfinished=unfinished, say=console.print, tables=table or ()
        )
        print_garbage(console, kinds, removed=yes)


def main() -> None:
    """Run the command line."""
    open_streams()
    app()


def _console() -> Console:
    # A log or a pipe has no width of its own: lines that are found there stay whole. Nor is `:100:`
    # in an id or a path an emoji.
    width = None if os.isatty(1) else 160
    return Console(width=width, emoji=False)


def _complain(message: str) -> None:
    Console(stderr=True, soft_wrap=True, emoji=False).print(
        f"rushes: {message}", style="red", markup=False, highlight=False
    )


def _name_output(given: str) -> str:
    """Return an output as everything that tells of it names it; one that can't be, as given."""
    from pipeline.store import ObjectStore

    try:
        return ObjectStore(given).uri
    except UsageError:
        return given


def _try_report(output: str, note: Callable[[str], None]) -> None:
    """Write an output's report; a run has ended as it has, also where that can't be done."""
    from jobs.report.collect import Price
    from jobs.report.write import write_report
    from jobs.stop import stop_signals

    try:
        with stop_signals(note):
            write_report(output, (), Price())
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - any: the run ended before
        said = str(error).partition("\n")[0] or "it was interrupted"
        is_plain = isinstance(error, OSError | UsageError | KeyboardInterrupt)
        why = said if is_plain else f"{type(error).__name__}: {said}"
        note(f"the report can't be written: {why}; rushes report {output} tries again")


@contextmanager
def _errors(refuse: Callable[[UsageError, int], None] | None = None) -> Generator[None]:
    """End with one clear line where the call is wrong; `refuse` writes it, if given.

    A call that is right, to a storage that is away or goes away, is one that broke.
    """
    try:
        try:
            yield
        except OSError as error:
            if error.errno == errno.EPIPE:  # nobody reads on: typer ends without a word
                raise
            said = str(error) or type(error).__name__
            raise StorageAwayError(
                f"reading or writing failed: {said}; run it again later"
            ) from error
    except UsageError as error:
        code = ExitCode.BROKEN if isinstance(error, StorageAwayError) else ExitCode.USAGE
        if refuse:
            refuse(error, code)
        else:
            _complain(str(error))
        raise typer.Exit(code) from error


if __name__ == "__main__":
    main()

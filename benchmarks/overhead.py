"""What Rushes costs, and saves, beside a bare loop and beside Ray Data's documented pattern.

Renders the same clips with the embedded model, two workers of one thread each, by

  bare           two processes that loop over diffusers' WanVACEPipeline and write MP4s
  ray-data       Ray Data's `map_batches` with a class and a pool of two actors, as documented
  ray-data-rows  the same with one row a block
  rushes         `rushes render`, with all it does besides: posters, probes, checksums, commits
  rushes-plain   the same with `--set develop.onednn=false`, by the others' convolution kernels

and prints start-up (process start until the first denoising step is done) apart from the steady
state (from there until the last clip's file is complete). Each run is in fresh processes. Run it
on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from importlib import metadata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.probe import read_frames

NAMES = ("bare", "ray-data", "ray-data-rows", "rushes", "rushes-plain")
OURS = ("rushes", "rushes-plain")
WORKERS = 2
CLIPS = 48
SEEDS = 4
STEPS = 16
NUM_FRAMES = 17
SIDE = 64
TIMEOUT_S = 1800.0
STOP_S = 20.0
STEAL = 7
"""Where /proc/stat counts the time that a virtual machine was ready to run and was not let."""
PACKAGES = ("rushes", "torch", "diffusers", "transformers", "ray", "av")
REPORT = Path(__file__).with_name("overhead.md")
EXAMPLES = """\
examples:
  python benchmarks/overhead.py --clips 4 --steps 4       does it work?
  python benchmarks/overhead.py --only bare rushes        the ratio that matters, alone
  python benchmarks/overhead.py --repeat 3 --write        medians of three, into overhead.md
"""

PRODUCTS = ("bottle", "ring", "cup")
PLACES = (
    ("en-US", "a red {} turning slowly on a white table, soft studio light"),
    ("de-DE", "a blue {} sliding to the left in front of a yellow wall"),
    ("fr-FR", "a green {} growing towards the camera on a dark background"),
    ("ja-JP", "a white {} rising from the bottom, purple background, close-up"),
)
NEGATIVE = "blurry, low quality, distorted, watermark, text, logo, extra objects"


@dataclass(frozen=True)
class Run:
    """One contender's run, in seconds."""

    startup: float
    """Process start until the first denoising step was done, in any of its processes."""
    steady: float
    """From there until the last clip's file was complete."""
    wall: float
    """Process start until all of its processes had ended."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, check and print; write the report if asked to."""
    options = _parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"note: the machine's load is {load:.1f}; figures from a busy machine mislead")
    names = [name for name in NAMES if name in options.only]
    before = _read_cpu_ticks()
    runs: dict[str, list[Run]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory(prefix="rushes-bench-") as folder:
        table = Path(folder) / "ads.parquet"
        pq.write_table(make_table(options.clips, options.steps), table)
        for turn in range(options.repeat):
            files: dict[str, dict[str, Path]] = {}
            for name in names:
                out = Path(folder) / f"{name}-{turn}"
                run = measure(name, table, out)
                files[name] = find_videos(name, table, out)
                check_videos(files[name].values())
                runs[name].append(run)
                print(
                    f"{turn + 1}/{options.repeat} {name:14} start-up {run.startup:6.2f} s   "
                    f"steady {run.steady:6.2f} s   wall {run.wall:6.2f} s",
                    flush=True,
                )
            same = count_same(list(files.values()))
    median = {name: _median(each) for name, each in runs.items()}
    lines = _tabulate(median, options.clips)
    lines += ["", f"{same} of {options.clips} MP4s are the same bytes from every contender."]
    if before:
        spent = [now - then for then, now in zip(before, _read_cpu_ticks(), strict=True)]
        lines += [
            f"The host withheld {spent[STEAL] / sum(spent):.0%} of the cores' time meanwhile."
        ]
    print("\n" + "\n".join(lines))
    if options.write:
        REPORT.write_text("\n".join(_head(options) + lines) + "\n", "utf-8")
        print(f"\nwritten: {os.path.relpath(REPORT)}")


def make_table(clips: int, steps: int) -> pa.Table:
    """Return an ad table: each prompt in four seeds, one negative prompt, labels beside them."""
    rows = []
    for product in PRODUCTS:
        for locale, prompt in PLACES:
            for seed in range(SEEDS):
                rows.append(
                    {
                        "id": f"{product}-{locale}-{seed}",
                        "prompt": prompt.format(product),
                        "negative_prompt": NEGATIVE,
                        "seed": seed,
                        "width": SIDE,
                        "height": SIDE,
                        "num_frames": NUM_FRAMES,
                        "fps": 8.0,
                        "num_inference_steps": steps,
                        "guidance_scale": 4.0,
                        "product": product,
                        "locale": locale,
                    }
                )
    return pa.Table.from_pylist(rows[:clips])


def measure(name: str, table: Path, out: Path) -> Run:
    """Run one contender in fresh processes."""
    out.mkdir()
    parts = [[str(part), str(WORKERS)] for part in range(WORKERS)] if name == "bare" else [[]]
    script = str(Path(__file__).with_name("contenders.py"))
    began = time.time()
    with _processes([[script, name, str(table), str(out), *part] for part in parts], out) as all_:
        for process in all_:
            if process.wait(TIMEOUT_S):
                log = (out / "log.txt").read_text("utf-8", "replace")
                raise SystemExit(f"{name} ended with {process.returncode}:\n{log[-4000:]}")
    ended = time.time()
    first = min(float(path.read_text()) for path in (out / "first-step").iterdir())
    done = "output/commits/*/*.json" if name in OURS else "*.mp4"
    last = max(path.stat().st_mtime for path in out.glob(done))
    return Run(startup=first - began, steady=last - first, wall=ended - began)


def find_videos(name: str, table: Path, out: Path) -> dict[str, Path]:
    """Return the MP4 of each row of the table, by the row's id."""
    ids = pq.read_table(table, columns=["id"])["id"].to_pylist()
    if name not in OURS:
        return {each: out / f"{each}.mp4" for each in ids}
    manifest = pq.read_table(out / "output" / "manifest", columns=["id", "uri"])
    found = dict(zip(*(manifest[column].to_pylist() for column in ("id", "uri")), strict=True))
    return {each: Path(found[each].removeprefix("file://")) for each in ids}


def check_videos(paths: Sequence[Path] | Iterator[Path]) -> None:
    """Decode every clip; end the benchmark where one is not what was asked for."""
    for path in paths:
        shape = read_frames(path).shape
        if shape != (NUM_FRAMES, SIDE, SIDE, 3):
            raise SystemExit(f"{path.name}: {shape} decoded")


def count_same(files: Sequence[dict[str, Path]]) -> int:
    """Return how many rows have the same bytes in every contender's output."""
    return sum(len({each[row].read_bytes() for each in files}) == 1 for row in files[0])


@contextmanager
def _processes(commands: list[list[str]], out: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start Python processes side by side; none outlives the block, nor does a Ray of theirs."""
    environment = {**os.environ, "RAY_TMPDIR": str(out.parent / "ray"), "PYTHONWARNINGS": "ignore"}
    started: list[subprocess.Popen[bytes]] = []
    with (out / "log.txt").open("wb") as log:
        try:
            for command in commands:
                started.append(
                    subprocess.Popen(
                        [sys.executable, *command],
                        env=environment,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )
            yield started
        finally:
            for process in started:
                if process.poll() is None:
                    process.send_signal(signal.SIGINT)
                    try:
                        process.wait(STOP_S)
                    except subprocess.TimeoutExpired:
                        os.killpg(process.pid, signal.SIGKILL)


def _median(runs: list[Run]) -> Run:
    return Run(
        *(statistics.median(getattr(run, field) for run in runs) for field in Run.__annotations__)
    )


def _tabulate(median: dict[str, Run], clips: int) -> list[str]:
    """Return the results as a Markdown table and the ratios to Rushes."""
    titles = ("contender", "start-up s", "steady s", "wall s", "clips/s", "steady / rushes")
    lines = [f"| {' | '.join(titles)} |", "|---|" + "---:|" * (len(titles) - 1)]
    ours = median.get("rushes")
    for name, run in median.items():
        ratio = f"{run.steady / ours.steady:.2f}" if ours else ""
        rate = clips / run.steady
        lines.append(
            f"| {name} | {run.startup:.1f} | {run.steady:.1f} | {run.wall:.1f} | {rate:.2f} | "
            f"{ratio} |"
        )
    return lines


def _head(options: argparse.Namespace) -> list[str]:
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES)
    runs = "one run each" if options.repeat == 1 else f"medians of {options.repeat} runs each"
    return [
        "# Overhead",
        "",
        f"{options.clips} clips of {SIDE}×{SIDE}, {NUM_FRAMES} frames, {options.steps} steps, "
        f"guidance 4, from {-(-options.clips // SEEDS)} prompts in {SEEDS} seeds with one negative "
        f"prompt; the embedded model in float32, two workers of one thread each; {runs}, "
        "interleaved, each in fresh processes.",
        "",
        f"Machine: {describe_cpu()}, {os.cpu_count()} cores, {_memory_gib():.0f} GiB. "
        f"{platform.system()}, Python {platform.python_version()}, {versions}. {date.today()}.",
        "",
        "Start-up is from process start until the first denoising step is done; steady is from "
        "there until the last clip's file is complete. The bare processes and the Ray Data actors "
        "loop over diffusers' WanVACEPipeline and write their MP4s by Rushes' VideoWriter, with "
        "the same x264 settings; Rushes also writes a poster, decodes each file again, checks "
        "its SHA-256 after the upload and commits it. Its recipe decodes by oneDNN "
        "(`[develop] onednn`), the others by the kernels of PyTorch's choice: those round "
        "otherwise, so some files differ. `rushes-plain` is Rushes by those kernels: what it saves "
        "beside `bare` it saves by encoding once what repeats.",
        "",
        "Made by `python benchmarks/overhead.py " + " ".join(sys.argv[1:]) + "`.",
        "",
    ]


def _read_cpu_ticks() -> list[int]:
    """Return the ticks of all cores since boot by kind (proc(5): user to steal); [] elsewhere."""
    stat = Path("/proc/stat")
    return [int(each) for each in stat.read_text().split()[1 : STEAL + 2]] if stat.exists() else []


def describe_cpu() -> str:
    """Return the processor's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory_gib() -> float:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--clips", type=int, default=CLIPS, help=f"clips to render, 1 to {CLIPS} (default all)"
    )
    parser.add_argument(
        "--steps", type=int, default=STEPS, help=f"denoising steps of each (default {STEPS})"
    )
    parser.add_argument(
        "--repeat", type=int, default=1, help="runs of each, interleaved; medians are printed"
    )
    parser.add_argument(
        "--only", nargs="+", choices=NAMES, default=NAMES, help="contenders to run (default all)"
    )
    parser.add_argument(
        "--write",
        action="store_true",
        help=f"write the results to {REPORT.parent.name}/overhead.md",
    )
    options = parser.parse_args(arguments)
    if not 1 <= options.clips <= CLIPS:
        parser.error(f"--clips {options.clips}: expected 1 to {CLIPS}")
    if options.steps < 1 or options.repeat < 1:
        parser.error("--steps and --repeat: expected 1 or more")
    return options


if __name__ == "__main__":
    main()

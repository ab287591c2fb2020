"""What a rank holds, reads and sends when a gang shares a transformer's layers.

    python -m benchmarks.sharding            print the tables
    python -m benchmarks.sharding --write    write them to benchmarks/sharding.md

A random Wan 2.1 transformer of the 1.3B model's width, with fewer layers, in several safetensors
files in float32, loaded in bfloat16 and run by 1, 2 and 4 ranks, each a fresh process with one
thread. Every weight is thereby copied: one of the files' own dtype would stay mapped from its file
on a CPU, and not be resident until it is used.

Then, by counting alone, what a rank holds of published models (`published.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date
from importlib import metadata
from pathlib import Path

import torch
import torch.distributed as dist
from diffusers import WanTransformer3DModel

from benchmarks.overhead import describe_cpu
from benchmarks.published import PUBLISHED, tabulate_published
from pipeline.parallel.loading import load_share
from pipeline.parallel.plans import PLANS
from pipeline.parallel.tensor import TensorGroup, cut_transformer
from tests.support.ranks import run_ranks

REPORT = Path(__file__).with_name("sharding.md")
RANKS = (1, 2, 4)
WIDTH = {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960}
LATENTS = (1, 16, 4, 16, 16)
"""Batch, channels, frames, height, width; patches are 1 x 2 x 2."""
TOKENS = 4 * 8 * 8
TEXT_TOKENS = 64
FORWARDS = 3
FILES_DTYPE, DTYPE = torch.float32, torch.bfloat16
MIB = 1 << 20


@dataclass(frozen=True)
class Share:
    """One rank's figures; bytes, and seconds for the median forward."""

    parameters: int
    base: int
    """Resident before loading: the interpreter, torch, diffusers."""
    peak: int
    """Most that was resident while loading, mapped file pages included."""
    anonymous: int
    """Most that memory without a file behind it grew by meanwhile; the rest can be dropped."""
    seconds: float
    sent: int
    """What all ranks sent in a forward by the loopback device's own count, over their number."""


def main() -> None:
    """Measure and print; write the report if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layers", type=int, default=9, help="of the transformer (default 9)")
    parser.add_argument("--write", action="store_true", help="write the tables to sharding.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="rushes-sharding-") as name:
        folder = Path(name) / "transformer"
        config = {**WIDTH, "num_layers": options.layers}
        whole = WanTransformer3DModel(**config).to(FILES_DTYPE)
        whole.save_pretrained(folder, max_shard_size="400MB")
        del whole
        shares: dict[int, list[Share]] = {}
        for ranks in RANKS:
            run_ranks(ranks, Path(name), measure, folder, Path(name), method="spawn")
            shares[ranks] = [
                Share(**json.loads((Path(name) / f"{ranks}-{rank}.json").read_text()))
                for rank in range(ranks)
            ]
            print(f"{ranks} ranks: {shares[ranks][0]}", flush=True)
        files = len(list(folder.glob("*.safetensors")))
        table = "\n".join(tabulate(config, shares))
    print("\n" + table)
    published = "\n".join(tabulate_published(DTYPE))
    print("\n" + published)
    if options.write:
        head = describe(config, shares[1][0].parameters, files)
        REPORT.write_text(
            "\n\n".join(("# Sharding", head, table, PUBLISHED, published)) + "\n", "utf-8"
        )


def measure(folder: Path, out: Path) -> None:
    """One rank's work: load its share and run it; write its figures into `out`."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    base = read_status("VmRSS")
    before_anonymous = read_status("RssAnon")
    with watch_anonymous() as anonymous:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew: proc(5)
        if ranks == 1:
            model = WanTransformer3DModel.from_pretrained(str(folder), torch_dtype=DTYPE).eval()
        else:
            model = load_share(WanTransformer3DModel, folder, DTYPE, TensorGroup(rank, ranks))
        peak = read_status("VmHWM")
    generator = torch.Generator().manual_seed(0)
    clip = {
        "hidden_states": torch.randn(LATENTS, generator=generator).to(DTYPE),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.randn(1, TEXT_TOKENS, 4096, generator=generator).to(DTYPE),
    }
    times: list[float] = []
    with torch.no_grad():
        model(**clip)
        dist.barrier()
        before = read_sent()
        for _ in range(FORWARDS):
            began = time.perf_counter()
            model(**clip)
            times.append(time.perf_counter() - began)
        dist.barrier()
    share = Share(
        parameters=sum(each.nbytes for each in model.parameters()),
        base=base,
        peak=peak,
        anonymous=anonymous[0] - before_anonymous,
        seconds=statistics.median(times),
        sent=(read_sent() - before) // FORWARDS // ranks,
    )
    (out / f"{ranks}-{rank}.json").write_text(json.dumps(asdict(share)))


def read_status(field: str) -> int:
    """Return a field of this process's memory in bytes; see proc(5)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"/proc/self/status has no {field}: this benchmark needs Linux")


@contextmanager
def watch_anonymous() -> Iterator[list[int]]:
    """Yield the most anonymous memory that was resident in the block, watched by a thread."""
    most = [read_status("RssAnon")]
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.002):
            most[0] = max(most[0], read_status("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    yield most
    ended.set()
    watcher.join()


def read_sent() -> int:
    """Return the bytes that the loopback device has sent since boot: all that ranks exchange."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, counts = line.partition(":")
        if name.strip() == "lo":
            return int(counts.split()[8])
    raise SystemExit("no loopback device")


def find_shardable(config: dict[str, int]) -> int:
    """Return how many bytes of the parameters tensor parallelism cuts."""
    with torch.device("meta"):
        model = WanTransformer3DModel(**config).to(DTYPE)
    whole = {name: each.nbytes for name, each in model.named_parameters()}
    cuts = cut_transformer(model, PLANS["WanTransformer3DModel"], TensorGroup(0, 2))
    return sum(whole[name] for name in cuts)


def expect_sent(layers: int, ranks: int) -> int:
    """Return the bytes that a rank sends in a forward, by arithmetic.

    A ring sums n bytes over N ranks by sending 2 (N - 1) / N n from each. A layer sums three
    outputs (tokens x width, bfloat16) and the squares of four norms (tokens or text tokens, fp32).
    """
    width = WIDTH["num_attention_heads"] * WIDTH["attention_head_dim"]
    summed = 3 * TOKENS * width * DTYPE.itemsize + (3 * TOKENS + TEXT_TOKENS) * 4
    return round(layers * summed * 2 * (ranks - 1) / ranks)


def tabulate(config: dict[str, int], shares: dict[int, list[Share]]) -> Iterator[str]:
    """Yield the lines of the table: the worst rank of each number of ranks."""
    whole = shares[1][0].parameters
    shardable = find_shardable(config)
    yield (
        "| ranks | parameters MiB | ideal MiB | base MiB | peak while loading MiB "
        "| (peak - base) / parameters | the same without file pages | sent in a forward MiB "
        "| by formula MiB | forward s |"
    )
    yield "|---|" + "---:|" * 9
    for ranks, each in shares.items():
        worst = max(each, key=lambda share: share.peak - share.base)
        ideal = whole - shardable + shardable / ranks
        cells = [
            f"{ranks}",
            f"{worst.parameters / MIB:.1f}",
            f"{ideal / MIB:.1f}",
            f"{worst.base / MIB:.0f}",
            f"{worst.peak / MIB:.0f}",
            f"{(worst.peak - worst.base) / worst.parameters:.2f}",
            f"{worst.anonymous / worst.parameters:.2f}",
            f"{worst.sent / MIB:.2f}",
            f"{expect_sent(config['num_layers'], ranks) / MIB:.2f}",
            f"{max(share.seconds for share in each):.2f}",
        ]
        yield f"| {' | '.join(cells)} |"


def describe(config: dict[str, int], whole: int, files: int) -> str:
    """Return what was measured, on what."""
    shardable = find_shardable(config) / whole
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "diffusers"))
    return (
        f"A random WanTransformer3DModel with {config['num_layers']} layers: "
        f"{whole // DTYPE.itemsize / 1e6:.0f} M parameters in bfloat16, from {files} "
        f"safetensors files in float32, so that every weight is copied; tensor parallelism "
        f"cuts {shardable:.1%} of its bytes. One rank loads it by diffusers' "
        f"`from_pretrained`, several by `load_share`; figures are the worst rank's. A forward has "
        f"{TOKENS} tokens of video and {TEXT_TOKENS} of text. Ideal: what is cut over the ranks, "
        "the rest on each. Ranks exchange over gloo on loopback, so forward "
        "times show that it runs, not how fast GPUs would.\n\n"
        f"Machine: {describe_cpu()}, {os.cpu_count()} cores. {platform.system()}, Python "
        f"{platform.python_version()}, {versions}. {date.today()}.\n\n"
        "Made by `python -m benchmarks.sharding --write`."
    )


if __name__ == "__main__":
    main()

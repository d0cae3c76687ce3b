#!/usr/bin/env python3
"""Every table of recall, perplexity and divergence that the README and docs/ quote of one model, in one command.

    python tools/recall_tables.py -o tables                            (the embedded model; many hours on a CPU)
    python tools/recall_tables.py -o tables -d cuda --seconds 600      (what they do not suffice for is left out)
    python tools/recall_tables.py -o tables --share 0.1 --longest 4096 --only paper cheaper
    python tools/recall_tables.py -o tables -d cuda -m base.gguf -a adapter.gguf --types f16.gguf q4_k_m.gguf

paper           softmax, windows, policies and sizes of the sparse cache (the README's rows are those at 4,096)
tasks           five tasks from 4K to 32K
cheaper, perplexity-cheaper                 the cache's scope, and the type of all exact pairs
perplexity, softmax-to-lola, cpu-to-gpu, types     what LoLA, the GPU and Q4_K_M change where nothing is hidden

A table has a folder in -o, with pictures; tables.md has them all. Both are written anew whenever a part is done: each
part is a `lola-cpp eval` of its own, and the most wanted come first.
"""

from __future__ import annotations

import argparse
import datetime
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lola_cpp.convert.quantize import quantize
from lola_cpp.eval.report import read_recall, recall_markdown, recall_pictures, write_report
from lola_cpp.model import default_files

PAPER = {"passkey": (200, 16384), "needle": (100, 8192)}  # samples of a cell, and the longest prompts
TASKS = {
    "passkey": ["passkey"],
    "needle": ["needle"],
    "text": ["needle", "--haystack", "stdlib"],
    "keys": ["four_keys"],
    "variables": ["variable_chain"],
}
SAMPLES = {4096: 100, 8192: 100, 16384: 64, 32768: 64}
SIZES = ["--softmax", "--vary", "sparse_size=0,64,192"]
POLICIES = ["--vary", "policy=weighted_recall,self_recall"]
CHEAPER = ["--vary", "sparse_scope=head,group", "--vary", "pair_type=f32,f16,q8_0"]
TOGETHER = 1 << 19  # tokens of the prompts of a part

MERGED = ("paper", "tasks", "cheaper")  # recall, from several parts
TABLES = (*MERGED, "perplexity-cheaper", "perplexity", "softmax-to-lola", "cpu-to-gpu", "types")


@dataclass(frozen=True)
class Part:
    """arguments: of `lola-cpp eval`. length: of its prompts; 0 without prompts."""

    table: str
    name: str
    arguments: tuple[str, ...]
    length: int = 0


def recall_parts(table: str, name: str, arguments: list[str], length: int, samples: int) -> Iterator[Part]:
    """Of one cell, each with prompts of its own."""
    most = max(1, TOGETHER // length)
    for seed, begin in enumerate(range(0, samples, most)):
        count = min(most, samples - begin)
        shape = ["--lengths", str(length), "--samples", str(count), "--seed", str(seed)]
        yield Part(table, f"{table}-{name}-{length}-{seed}", (*arguments, *shape), length)


def paper(length: int, given: argparse.Namespace) -> Iterator[Part]:
    for task, (samples, longest) in PAPER.items():
        if length <= longest:
            arguments = ["paper", "--tasks", task, "--sparse-sizes", *map(str, given.sparse_sizes)]
            yield from recall_parts("paper", task, arguments, length, math.ceil(samples * given.share))


def tasks(length: int, given: argparse.Namespace) -> Iterator[Part]:
    for name, task in TASKS.items():
        arguments = ["recall", "--tasks", *task, *SIZES, *POLICIES]
        yield from recall_parts("tasks", name, arguments, length, math.ceil(SAMPLES[length] * given.share))


def cheaper(given: argparse.Namespace) -> Iterator[Part]:
    for name in ("needle", "text", "keys"):
        arguments = ["recall", "--tasks", *TASKS[name], *POLICIES, *CHEAPER]
        yield from recall_parts("cheaper", name, arguments, 2048, math.ceil(100 * given.share))
    yield Part("perplexity-cheaper", "perplexity-cheaper", ("perplexity", *segments(given), *CHEAPER))


def texts(given: argparse.Namespace) -> Iterator[Part]:
    def part(table: str, *arguments: str) -> Part:
        return Part(table, table, (*arguments, *segments(given)))

    yield part("perplexity", "perplexity", *SIZES, *POLICIES)
    yield part("softmax-to-lola", "divergence", "--reference-adapter", "none", *SIZES[1:])
    if given.device != "cpu":
        yield part("cpu-to-gpu", "divergence", "--reference-device", "cpu")
    if given.types is not None:
        exact, quantized = map(str, given.types)
        adapter = str(given.adapter or default_files()[1])
        yield part("types", "divergence", "-m", quantized, "-a", adapter, "--reference-model", exact)


def segments(given: argparse.Namespace) -> tuple[str, str]:
    return "--segments", str(given.segments)


def parts(given: argparse.Namespace) -> list[Part]:
    """Those that were asked for; the most wanted first."""
    found = [part for length in (512, 1024, 2048, 4096) for part in paper(length, given)]
    found += [*tasks(4096, given), *texts(given), *cheaper(given)]
    for length in (8192, 16384, 32768):
        found += [*paper(length, given), *tasks(length, given)]
    return [part for part in found if part.table in given.only and part.length <= given.longest]


def write_types(source: Path, out: Path) -> tuple[Path, Path]:
    """The weights of the model, as it has them, in F16 and in Q4_K_M."""
    exact, quantized = out / "F16.gguf", out / "Q4_K_M.gguf"
    for file in (exact, quantized):
        quantize(source, file, file.stem, allow_requantize=True)
    return exact, quantized


def command_of(part: Part, given: argparse.Namespace) -> list[str]:
    model = [] if given.model is None or part.table == "types" else ["-m", str(given.model), "-a", str(given.adapter)]
    command = [sys.executable, "-m", "lola_cpp", "eval", *part.arguments, *model]
    return [*command, "-d", given.device, "-o", str(given.out / "parts" / part.name)]


class Run:
    """Parts side by side, and the tables of what is done."""

    def __init__(self, parts: list[Part], given: argparse.Namespace) -> None:
        self._parts, self._given, self._done = parts, given, list[Part]()

    def all(self) -> None:
        """Those that are not done in time are stopped."""
        end = time.monotonic() + self._given.seconds
        waiting, running = list(self._parts), dict[Part, subprocess.Popen[bytes]]()
        while waiting or running:
            while waiting and len(running) < self._given.side_by_side:
                part = waiting.pop(0)
                with self._log(part).open("wb") as log:
                    running[part] = subprocess.Popen(command_of(part, self._given), stdout=log, stderr=log)
            time.sleep(0.2)
            for part, process in list(running.items()):
                if process.poll() is not None:
                    del running[part]
                    self._finish(part, process.returncode)
            if time.monotonic() > end:
                print("no time was left for", *(part.name for part in [*running, *waiting]), flush=True)
                waiting.clear()
                for process in running.values():
                    process.kill()
                running.clear()

    def _log(self, part: Part) -> Path:
        return Path(self._given.out / "parts" / f"{part.name}.log")

    def _finish(self, part: Part, status: int) -> None:
        if status != 0:
            log = self._log(part).read_text(errors="replace").strip()
            print(f"{part.name}: ended with {status}: {log[-300:]}", flush=True)
            return
        self._done.append(part)
        if part.table in MERGED:
            self._merge(part.table)
        write_tables(self._given)

    def _merge(self, table: str) -> None:
        done = [part.name for part in self._parts if part in self._done and part.table == table]
        rows, about = read_recall([self._given.out / "parts" / name for name in done])
        text, pictures = f"{about}\n\n{recall_markdown(rows)}", recall_pictures(rows, about)
        settings = {"about": about, "parts": done}
        write_report(self._given.out / table, settings, [row.as_dict() for row in rows], text, pictures)


def write_tables(given: argparse.Namespace) -> None:
    lines = [f"`python {' '.join(sys.argv)}`, {datetime.date.today()}"]
    for table in given.only:
        report = given.out / ("." if table in MERGED else "parts") / table / "report.md"
        lines += [f"## {table}", report.read_text(encoding="utf-8") if report.is_file() else "not measured"]
    (given.out / "tables.md").write_text("\n\n".join(lines) + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", type=Path, help="a GGUF file; default: the embedded model")
    parser.add_argument("-a", "--adapter", type=Path)
    parser.add_argument("--types", type=Path, nargs=2, help="one base in two types; default: F16 and Q4_K_M of it")
    parser.add_argument("-o", "--out", type=Path, required=True, help="a folder")
    parser.add_argument("-d", "--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--only", nargs="+", choices=TABLES, default=TABLES)
    parser.add_argument("--longest", type=int, default=32768, help="prompts")
    parser.add_argument("--share", type=float, default=1.0, help="of all samples")
    parser.add_argument("--sparse-sizes", type=int, nargs="+", default=[32, 64, 128, 256])
    parser.add_argument("--segments", type=int, default=16, help="of text, 4,096 tokens each")
    parser.add_argument("--side-by-side", type=int, help="commands at a time; default: 1 on the CPU, 12 on a GPU")
    parser.add_argument("--seconds", type=float, default=math.inf, help="for all of it")
    given = parser.parse_args()
    if (given.model is None) != (given.adapter is None):
        parser.error("--model and --adapter go together")
    if not 0 < given.share <= 1:
        parser.error(f"--share: found {given.share}, wanted more than 0 and at most 1")
    if (given.out / "parts").exists():
        parser.error(f"--out: found parts of an earlier run in '{given.out}', wanted a new folder")
    given.side_by_side = given.side_by_side or (1 if given.device == "cpu" else 12)
    return given


def main() -> int:
    given = parse()
    (given.out / "parts").mkdir(parents=True)
    if given.types is None and "types" in given.only:
        given.types = write_types(Path(given.model or default_files()[0]), given.out)
    Run(parts(given), given).all()
    write_tables(given)
    print((given.out / "tables.md").read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())

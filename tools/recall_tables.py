#!/usr/bin/env python3
"""All tables of docs/recall.md that one model gives, by many `lola-cpp eval` side by side.

    python tools/recall_tables.py --device cuda -o tables                     (the embedded model)
    python tools/recall_tables.py --device cuda -o tables -m base.gguf -a adapter.gguf --types f16.gguf q4_k_m.gguf

Each part is a command of its own, whose folder in -o has its report.md, results.json and pictures; the parts of the
paper's comparison are put together. What --seconds do not suffice for is left out, and said.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from lola_cpp.model import default_files

PAPER_TASKS = ("passkey", "needle")
RULES = ["--vary", "sparse_size=0,64", "--vary", "policy=self_recall,weighted_recall"]
CHEAPER = ["--vary", "sparse_scope=head,group", "--vary", "pair_type=f16,q8_0"]


def parts(given: argparse.Namespace) -> dict[str, list[str]]:
    """The arguments of `lola-cpp eval`, by the name of a part; the most wanted first."""
    model = [] if given.model is None else ["-m", str(given.model), "-a", str(given.adapter)]
    device, samples = ["-d", given.device], ["--samples", str(given.samples)]
    sizes = ["--sparse-sizes", *map(str, given.sparse_sizes)]
    text = ["--segments", str(given.segments)]
    found = {"rules": ["recall", "--tasks", "passkey", "--lengths", "4096", *samples, *RULES]}
    short, long = [n for n in given.lengths if n <= 4096], [n for n in given.lengths if n > 4096]
    for task in PAPER_TASKS:
        for lengths in [short, *([n] for n in long)]:
            count = str(given.samples if lengths[-1] <= 8192 else max(1, given.samples // 4))
            found[f"paper-{task}-{lengths[-1]}"] = [
                *("paper", "--tasks", task, "--lengths", *map(str, lengths), "--samples", count, *sizes)
            ]
    recall = ["recall", "--lengths", "2048", *samples, "--sparse-size", "64", "--policy", "weighted_recall", *CHEAPER]
    found["cheaper-text"] = [*recall, "--tasks", "needle", "--haystack", "stdlib"]
    found["cheaper-keys"] = [*recall, "--tasks", "four_keys"]
    found["perplexity"] = ["perplexity", "--softmax", *RULES, *text]
    found["softmax-to-lola"] = ["divergence", "--reference-adapter", "none", "--vary", "sparse_size=0,64,256", *text]
    if given.device != "cpu":
        found["cpu-to-gpu"] = ["divergence", "--reference-device", "cpu", *text]
    found = {name: [*arguments, *device, *model] for name, arguments in found.items()}
    if given.types is not None:
        exact, quantized = map(str, given.types)
        adapter = str(given.adapter or default_files()[1])
        found["types"] = [*("divergence", "--reference-model", exact, "-m", quantized, "-a", adapter, *device, *text)]
    return found


def run(commands: dict[str, list[str]], given: argparse.Namespace) -> None:
    """All of them, `--side-by-side` at a time; those that are not done in time are stopped."""
    end = time.monotonic() + given.seconds
    waiting, running = list(commands), dict[str, subprocess.Popen[bytes]]()
    while waiting or running:
        while waiting and len(running) < given.side_by_side:
            name = waiting.pop(0)
            command = [sys.executable, "-m", "lola_cpp", "eval", *commands[name], "-o", str(given.out / name)]
            log = (given.out / f"{name}.log").open("wb")
            running[name] = subprocess.Popen(command, stdout=log, stderr=log)
        time.sleep(0.2)
        for name, process in list(running.items()):
            if time.monotonic() > end:
                process.kill()
                waiting.clear()
            if process.poll() is not None:
                del running[name]
                log_text = (given.out / f"{name}.log").read_text(errors="replace").strip()
                if process.returncode != 0:
                    print(f"{name}: ended with {process.returncode}: {log_text[-300:]}", flush=True)


def merge(given: argparse.Namespace) -> None:
    found = [sorted(given.out.glob(f"paper-{task}-*/results.json")) for task in PAPER_TASKS]
    folders = [str(path.parent) for paths in found for path in paths]
    if folders:
        command = [sys.executable, "-m", "lola_cpp", "eval", "merge", *folders, "-o", str(given.out / "paper")]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", type=Path, help="a GGUF file; default: the embedded model")
    parser.add_argument("-a", "--adapter", type=Path)
    parser.add_argument("--types", type=Path, nargs=2, help="one base in two types: how far the second diverges")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("-d", "--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192, 16384])
    parser.add_argument("--samples", type=int, default=200, help="of a cell; a quarter beyond 8,192 tokens")
    parser.add_argument("--sparse-sizes", type=int, nargs="+", default=[32, 64, 128, 256])
    parser.add_argument("--segments", type=int, default=16, help="of text, for perplexity and divergence")
    parser.add_argument("--side-by-side", type=int, default=6, help="commands at a time")
    parser.add_argument("--seconds", type=float, default=3600.0, help="for all of it")
    given = parser.parse_args()
    if (given.model is None) != (given.adapter is None):
        parser.error("--model and --adapter go together")
    given.out.mkdir(parents=True, exist_ok=True)
    commands = parts(given)
    run(commands, given)
    merge(given)
    for name in ["paper", *(name for name in commands if not name.startswith("paper-"))]:
        report = given.out / name / "report.md"
        print(f"\n## {name}\n", report.read_text(encoding="utf-8") if report.is_file() else "not measured", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
"""The embedded model from nothing but the Python standard library's sources and generated recall tasks.

    python tools/train_tiny.py work --compile
    python tools/convert.py hf work/base -o tiny.gguf --type q8_0 --name tiny

Every stage leaves its result in the folder and goes on from there: the corpus and its tokenizer, the softmax teacher
(a Hugging Face folder `trained`), the same polished (`base`), samples for the distillation, the adapter, and
results.json with the tables.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from lola_cpp.distill.options import Options
from lola_cpp.distill.run import distill
from tiny.calibration import calibrate
from tiny.corpus import Corpus, prepare
from tiny.evaluate import copy_tokenizer, evaluate
from tiny.memory import SETTINGS
from tiny.model import MAPS
from tiny.stages import POLISH
from tiny.tasks import TaskMaker
from tiny.teacher import Plan, train
from tiny.text import TextMaker

RECALL_SHARE = 0.5  # of the sequences the maps and the LoRA learn from


def write_samples(corpus: Corpus, path: Path, *, count: int, length: int) -> None:
    rng = np.random.default_rng(11)
    maker, text = TaskMaker(corpus, rng), TextMaker(corpus, rng)
    with path.open("w", encoding="utf-8") as lines:
        for _ in range(count):
            tokens = maker.task(length)[0] if rng.random() < RECALL_SHARE else text.sample(length, unseen=1.0)
            lines.write(json.dumps({"tokens": tokens.tolist()}) + "\n")


def make_teacher(given: argparse.Namespace, corpus: Corpus, output: Path, plan: Plan) -> None:
    if not (output / "model.safetensors").is_file():
        names = ("demand_weight", "longest", "workers", "compile")
        plan = replace(plan, tokens=given.teacher_tokens, **{name: getattr(given, name) for name in names})
        model = train(corpus, plan, given.folder, given.device)
        if plan.start is None:
            print(f"temperature {calibrate(model, corpus.unseen, length=min(4096, given.longest)):.3f}", flush=True)
        model.save(output)
        copy_tokenizer(given.folder, output)


def options_for(given: argparse.Namespace) -> Options:
    on_gpu = given.device.startswith("cuda")
    return Options(
        model=given.folder / "base",
        data=(given.folder / "samples.jsonl",),
        folder=given.folder / "distill",
        settings=SETTINGS,
        device=given.device,
        dtype="bfloat16" if on_gpu else "float32",
        length=given.length,
        batch=given.batch,
        micro_batch=max(1, given.batch // 2),
        maps=given.folder / "base" / MAPS,
        lora_steps=given.lora_steps,
        lora_rate=2e-4,
        lora_rank=given.lora_rank,
        lora_cache=(64,),
        lora_window=(64, 448),
        lora_target="text",
        lora_maps=True,
        replay=on_gpu,
        checkpoint_every=200,
        progress=True,
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--teacher-seconds", type=float, default=340)
    parser.add_argument("--teacher-tokens", type=int, default=65536, help="of a step")
    parser.add_argument("--polish-seconds", type=float, default=800)
    parser.add_argument("--start", type=Path, help="a trained teacher's folder, to polish in place of an own one")
    parser.add_argument("--longest", type=int, default=32768)
    parser.add_argument(
        "--demand-weight",
        type=float,
        default=0.05,
        help="of the loss that makes keys and values foretell what is asked for",
    )
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--workers", type=int, default=12, help="processes that make samples")
    parser.add_argument("--length", type=int, default=4096, help="of the distillation's sequences")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--samples", type=int, default=900)
    parser.add_argument("--lora-steps", type=int, default=85)
    parser.add_argument("--lora-rank", type=int, default=32)
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 8192, 16384, 32768])
    parser.add_argument("--sparse", type=int, nargs="+", default=[32, 64, 128, 192])
    parser.add_argument("--prompts", type=int, default=64, help="of a cell of the tables")
    parser.add_argument("--evaluation-seconds", type=float, default=200)
    return parser.parse_args()


def main() -> int:
    given, begin = parse(), time.perf_counter()
    torch.set_float32_matmul_precision("high")
    folder: Path = given.folder

    def say(stage: str) -> None:
        print(f"[{time.perf_counter() - begin:6.1f} s] {stage}", flush=True)

    corpus = prepare(folder)
    say(f"corpus: {len(corpus.training):,} tokens for training, {len(corpus.held_out):,} held out")
    trained = given.start or folder / "trained"
    make_teacher(given, corpus, trained, Plan(given.teacher_seconds))
    say("teacher")
    make_teacher(given, corpus, folder / "base", Plan(given.polish_seconds, POLISH, start=trained))
    say("polished")
    if not (folder / "samples.jsonl").is_file():
        write_samples(corpus, folder / "samples.jsonl", count=given.samples, length=given.length)
    say("samples")
    student = distill(options_for(given), folder / "tiny-lola.gguf")
    say("distilled")
    print((folder / "distill" / "report.json").read_text(encoding="utf-8"))
    evaluate(
        student,
        corpus,
        folder / "results.json",
        lengths=given.lengths,
        sparse=given.sparse,
        samples=given.prompts,
        seconds=given.evaluation_seconds,
    )
    say("evaluated")
    return 0


if __name__ == "__main__":
    sys.exit(main())

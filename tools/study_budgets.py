#!/usr/bin/env python3
"""Should the sizes of the sparse caches follow the data? Fixed, adaptive and shared budgets at equal total pairs: the
last table of docs/recall.md.

    python tools/study_budgets.py --device cuda -o budgets        (needs torch and gguf; the embedded model)

fixed            lambda pairs for every query head (the paper; what the engine does)
adaptive         every head keeps the fewest pairs with a fixed share of its error mass; the share is the one that
                 gives lambda pairs in the mean over heads and boundaries, found on the same prompts
layer, model     the heads of a layer, of the model, share lambda pairs each: the largest scores stay
... relative     with each score as a share of its head's mass

A head holds at most four times lambda. Answers are checked by teacher forcing: right where every token of the answer
is the most likely one.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from budgets.model import Counts, Student
from budgets.policies import Budget, adaptive, fixed, shared
from lola_cpp.eval.configurations import Configuration
from lola_cpp.eval.haystacks import find_haystack, read_text
from lola_cpp.eval.likelihood import segments_of
from lola_cpp.eval.statistics import mean_and_error, wilson
from lola_cpp.eval.tasks import Prompt, make_prompt
from lola_cpp.model import default_files

TASKS = {
    "needle in text": ("needle", "stdlib"),
    "four keys": ("four_keys", "noise"),
    "variables": ("variable_chain", "noise"),
}
POLICIES = ("self_recall", "weighted_recall")
SHARED = {
    "layer": {"layers": False, "relative": False},
    "layer, relative": {"layers": False, "relative": True},
    "model": {"layers": True, "relative": False},
    "model, relative": {"layers": True, "relative": True},
}
_SEARCH = 7  # halvings of the interval for the adaptive share
_Z = 1.96


@dataclass
class Row:
    """What one budget found in one task, or in text: pairs are those of a head, in the mean and at the most."""

    policy: str
    size: int
    budget: str
    task: str
    pairs: float
    most: int
    right: int = 0
    samples: int = 0
    losses: tuple[float, ...] = ()


@dataclass
class Batch:
    """Rows of one length [n, length], and where their answers stand."""

    tokens: Tensor
    places: list[range]

    @classmethod
    def of(cls, prompts: list[Prompt], encode: object) -> Batch:
        answers = [encode(f" {', '.join(prompt.answers)}", add_special=False) for prompt in prompts]
        rows = [prompt.tokens + answer for prompt, answer in zip(prompts, answers, strict=True)]
        longest = max(map(len, rows))
        places = [range(len(row) - len(answer), len(row)) for row, answer in zip(rows, answers, strict=True)]
        return cls(torch.tensor([row + [0] * (longest - len(row)) for row in rows]), places)

    def right(self, student: Student, budget: Budget, policy: str) -> tuple[int, Counts]:
        hidden, counts = student.hidden(self.tokens, budget, policy)
        right = 0
        for row, places in enumerate(self.places):
            at = torch.tensor(places)
            guess = student.logits(hidden[row, at - 1]).argmax(-1).cpu()
            right += bool((guess == self.tokens[row, at]).all())
        return right, counts


def text_losses(student: Student, segments: list[list[int]], budget: Budget, policy: str) -> tuple[list[float], Counts]:
    """The mean loss of each segment."""
    tokens = torch.tensor(segments)
    hidden, counts = student.hidden(tokens, budget, policy)
    losses = []
    for x, row in zip(hidden, tokens.to(hidden.device), strict=True):
        losses.append(torch.nn.functional.cross_entropy(student.logits(x[:-1]), row[1:]).item())
    return losses, counts


def share_for(student: Student, tokens: Tensor, size: int, policy: str) -> float:
    """The share of the score mass that keeps `size` pairs in the mean, on these rows."""
    low, high = 0.0, 1.0
    for _ in range(_SEARCH):
        middle = (low + high) / 2
        _, counts = student.hidden(tokens, adaptive(middle, size), policy)
        low, high = (middle, high) if counts.mean < size else (low, middle)
    return (low + high) / 2


class Study:
    def __init__(self, student: Student, given: argparse.Namespace, configuration: Configuration) -> None:
        self.student, self.given, self.rows = student, given, list[Row]()
        tokenizer = configuration.load().tokenizer
        encode = partial(tokenizer.encode, parse_special=False)
        self.batches = {task: self._batches(task, encode) for task in given.tasks}
        self.segments = segments_of(configuration, read_text("stdlib"), given.length, given.segments)

    def _batches(self, task: str, encode: object) -> list[Batch]:
        name, hay = TASKS[task]
        seeds = [random.Random(f"0 {name} {self.given.length} None {i}") for i in range(self.given.samples)]
        haystack = find_haystack(hay)
        prompts = [make_prompt(name, encode, self.given.length, rng=rng, haystack=haystack) for rng in seeds]
        at_once = self.given.at_once
        return [Batch.of(prompts[i : i + at_once], encode) for i in range(0, len(prompts), at_once)]

    def run(self) -> None:
        """Everything; what is finished is saved after every policy and size."""
        cases = [(policy, size) for policy in self.given.policies for size in self.given.sizes]
        for policy, size in tqdm(cases, desc="policies and sizes", file=sys.stderr, disable=None):
            for task, batches in self.batches.items():
                for name, budget in self._budgets(batches[0].tokens, size, policy).items():
                    found = [batch.right(self.student, budget, policy) for batch in batches]
                    right, pairs = sum(r for r, _ in found), sum(c.mean for _, c in found) / len(found)
                    most = max(c.most for _, c in found)
                    self.rows.append(Row(policy, size, name, task, pairs, most, right, self.given.samples))
            tokens = torch.tensor(self.segments[: self.given.at_once])
            for name, budget in self._budgets(tokens, size, policy).items():
                parts = range(0, len(self.segments), self.given.at_once)
                found = [
                    text_losses(self.student, self.segments[i : i + self.given.at_once], budget, policy) for i in parts
                ]
                losses = tuple(loss for part, _ in found for loss in part)
                pairs = sum(c.mean for _, c in found) / len(found)
                self.rows.append(Row(policy, size, name, "text", pairs, max(c.most for _, c in found), losses=losses))
            self.save()

    def save(self) -> None:
        if (out := self.given.out) is not None:
            out.mkdir(parents=True, exist_ok=True)
            (out / "report.md").write_text(self.table(), encoding="utf-8")
            (out / "results.json").write_text(json.dumps([asdict(row) for row in self.rows]), encoding="utf-8")

    def _budgets(self, tokens: Tensor, size: int, policy: str) -> dict[str, Budget]:
        """adaptive: matched to `size` on the first rows of what it is then measured on."""
        share = share_for(self.student, tokens[: self.given.matched], size, policy)
        return {
            "fixed": fixed(size),
            "adaptive": adaptive(share, size),
            **{name: shared(size, **options) for name, options in SHARED.items()},
        }

    def table(self) -> str:
        tasks = self.given.tasks
        lines = [
            "| policy, lambda | budget | " + " | ".join(tasks) + " | perplexity | log of it, against fixed "
            "| pairs of a head, mean by column | most |",
            "|---" * (len(tasks) + 6) + "|",
        ]
        for policy, size, budget in dict.fromkeys((r.policy, r.size, r.budget) for r in self.rows):
            mine = {r.task: r for r in self.rows if (r.policy, r.size, r.budget) == (policy, size, budget)}
            base = next(r for r in self.rows if (r.policy, r.size, r.budget, r.task) == (policy, size, "fixed", "text"))
            cells = [_recall(mine[task]) for task in tasks]
            text = mine["text"]
            change, error = mean_and_error([a - b for a, b in zip(text.losses, base.losses, strict=True)])
            against = "" if budget == "fixed" else f"{change:+.4f} ± {_Z * error:.4f}"
            perplexity = math.exp(sum(text.losses) / len(text.losses))
            pairs = ", ".join(f"{mine[task].pairs:.0f}" for task in (*tasks, "text"))
            most = max(row.most for row in mine.values())
            last = f"{perplexity:.3f} | {against} | {pairs} | {most}"
            lines.append(f"| {policy}, {size} | {budget} | {' | '.join(cells)} | {last} |")
        return "\n".join(lines) + "\n"


def _recall(row: Row) -> str:
    low, high = wilson(row.right, row.samples)
    return f"{row.right / row.samples:.3f} ({low:.2f} to {high:.2f})"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-m", "--model", type=Path, help="a llama GGUF; default: the embedded model")
    parser.add_argument("-a", "--adapter", type=Path)
    parser.add_argument("-o", "--out", type=Path, help="a folder for report.md and results.json")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--segments", type=int, default=64, help="of text, for the perplexity")
    parser.add_argument("--sizes", type=int, nargs="+", default=[8, 32, 128])
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--at-once", type=int, default=256, help="rows in one pass")
    parser.add_argument("--matched", type=int, default=16, help="rows that the adaptive share is found on")
    return parser.parse_args()


def main() -> None:
    given = parse()
    base, adapter = (Path(path) for path in default_files()) if given.model is None else (given.model, given.adapter)
    student = Student(base, adapter, given.device)
    study = Study(student, given, Configuration("model", str(base), str(adapter), threads=1))
    study.run()
    print(study.table(), end="")


if __name__ == "__main__":
    main()

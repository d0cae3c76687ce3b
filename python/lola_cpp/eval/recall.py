"""Recall: how often what a task asks for is found, by length and depth, for several configurations."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from .._core import UsageError
from .batching import Job, generate_each
from .configurations import Configuration
from .haystacks import NOISE, Haystack
from .progress import bar
from .statistics import wilson
from .tasks import Prompt, make_prompt


@dataclass(frozen=True)
class Cell:
    """Where samples are counted together. depth None: anywhere."""

    task: str
    length: int
    depth: float | None
    configuration: str


@dataclass
class RecallRow:
    """What was found in one cell: `right` samples with all answers, `share` of all answers, memory of a session."""

    cell: Cell
    samples: int = 0
    right: int = 0
    share: float = 0.0
    memory_bytes: int = 0

    def count(self, prompt: Prompt, answer: str, memory_bytes: int) -> None:
        self.samples += 1
        self.right += prompt.found_in(answer)
        self.share += prompt.share_found(answer)
        self.memory_bytes = max(self.memory_bytes, memory_bytes)

    @property
    def accuracy(self) -> float:
        return self.right / self.samples

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.right, self.samples)

    def as_dict(self) -> dict[str, object]:
        low, high = self.interval
        return {
            **vars(self.cell),
            "samples": self.samples,
            "right": self.right,
            "accuracy": self.accuracy,
            "low": low,
            "high": high,
            "share": self.share / self.samples,
            "memory_bytes": self.memory_bytes,
        }


def measure_recall(
    configurations: Sequence[Configuration],
    *,
    tasks: Sequence[str],
    lengths: Sequence[int],
    samples: Sequence[int],
    depths: Sequence[float | None] = (None,),
    haystack: Haystack = NOISE,
    seed: int = 0,
    active: int = 8,
) -> list[RecallRow]:
    """Greedy answers, counted. Every configuration gets the same prompts, several of them in a pass.

    samples  of each length: one number for all, or one for each length
    active   sessions that take part in a pass
    """
    if len(samples) not in (1, len(lengths)) or min(samples) < 1:
        raise UsageError(
            f"samples: found {list(samples)}, wanted one number, or one for each of {len(lengths)} lengths"
        )
    if any(depth is not None and not 0.0 <= depth <= 1.0 for depth in depths):
        raise UsageError(f"depths: found {list(depths)}, wanted numbers from 0 to 1")
    counts = dict(zip(lengths, samples if len(samples) > 1 else [samples[0]] * len(lengths), strict=True))
    rows: dict[Cell, RecallRow] = {}
    total = sum(length * counts[length] for length in lengths) * len(tasks) * len(depths) * len(configurations)
    with bar(total, "asking") as progress:
        for configuration in configurations:
            jobs = _jobs(configuration, tasks, counts, depths, haystack, seed)
            for job, answer, session in generate_each(jobs, active=active):
                cell, prompt = job.key
                rows.setdefault(cell, RecallRow(cell)).count(prompt, answer, session.memory_bytes)
                progress.update(cell.length)
    return list(rows.values())


def _jobs(
    configuration: Configuration,
    tasks: Sequence[str],
    counts: dict[int, int],
    depths: Sequence[float | None],
    haystack: Haystack,
    seed: int,
) -> Iterator[Job[tuple[Cell, Prompt]]]:
    encode = partial(configuration.load().tokenizer.encode, parse_special=False)  # a haystack may spell control pieces
    for task in tasks:
        for length, samples in counts.items():
            for depth in depths:
                for sample in range(samples):
                    rng = random.Random(f"{seed} {task} {length} {depth} {sample}")
                    prompt = make_prompt(task, encode, length, rng=rng, haystack=haystack, depth=depth)
                    most = len(encode(prompt.completion)) + 4 * len(prompt.answers)
                    yield Job(
                        (Cell(task, length, depth, configuration.name), prompt),
                        partial(configuration.session, len(prompt.tokens) + most),
                        prompt.tokens,
                        {"max_tokens": most},
                    )

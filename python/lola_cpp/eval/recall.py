"""Recall: how often what a task asks for is found, by length and depth, for several configurations."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from .._core import UsageError
from .batching import Job, generate_each
from .configurations import Configuration
from .haystacks import NOISE, Haystack
from .progress import bar
from .statistics import wilson
from .tasks import Prompt, make_prompt, title


@dataclass(frozen=True)
class Cell:
    """Where samples are counted together. task: its title; depth None: anywhere."""

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

    def add(self, other: RecallRow) -> None:
        """Counts the samples of another row of the same cell, too."""
        self.samples += other.samples
        self.right += other.right
        self.share += other.share
        self.memory_bytes = max(self.memory_bytes, other.memory_bytes)

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

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RecallRow:
        """The inverse of as_dict."""
        cell = Cell(*(values[name] for name in ("task", "length", "depth", "configuration")))
        samples = values["samples"]
        return cls(cell, samples, values["right"], values["share"] * samples, values["memory_bytes"])


def measure_recall(
    configurations: Sequence[Configuration],
    *,
    tasks: Sequence[str],
    lengths: Sequence[int],
    samples: Sequence[int],
    depths: Sequence[float | None] = (None,),
    haystack: Haystack = NOISE,
    seed: int = 0,
    active: int | None = None,
    after_prompts: Callable[[list[RecallRow]], None] = lambda rows: None,
) -> list[RecallRow]:
    """Greedy answers, counted. Every configuration gets the same prompts, several of them in a pass.

    samples        of each length: one number for all, or one for each length
    active         sessions that are open at a time; None: Configuration.active
    after_prompts  called with all rows so far whenever every configuration has answered the prompts of a task, length
                   and depth
    """
    counts = _samples_of(lengths, samples)
    if any(depth is not None and not 0.0 <= depth <= 1.0 for depth in depths):
        raise UsageError(f"depths: found {list(depths)}, wanted numbers from 0 to 1")
    rows: list[RecallRow] = []
    total = sum(length * counts[length] for length in lengths) * len(tasks) * len(depths) * len(configurations)
    with bar(total, "asking") as progress:
        for task, length, depth in itertools.product(tasks, lengths, depths):
            prompts: dict[str | None, list[Prompt]] = {}  # by base model, whose tokens they are
            for configuration in configurations:
                if configuration.model not in prompts:
                    seeds = [f"{seed} {task} {length} {depth} {sample}" for sample in range(counts[length])]
                    make = partial(make_prompt, task, _encoder(configuration), length, haystack=haystack, depth=depth)
                    prompts[configuration.model] = _side_by_side(make, seeds)
                row = RecallRow(Cell(title(task, haystack), length, depth, configuration.name))
                jobs = _jobs(configuration, prompts[configuration.model])
                for job, answer, session in generate_each(jobs, active=active or configuration.active):
                    row.count(job.key, answer, session.memory_bytes)
                    progress.update(length)
                rows.append(row)
            after_prompts(rows)
    return rows


def _samples_of(lengths: Sequence[int], samples: Sequence[int]) -> dict[int, int]:
    if len(samples) not in (1, len(lengths)) or min(samples) < 1:
        raise UsageError(
            f"samples: found {list(samples)}, wanted one number, or one for each of {len(lengths)} lengths"
        )
    return dict(zip(lengths, samples if len(samples) > 1 else [samples[0]] * len(lengths), strict=True))


def _side_by_side(make: Callable[..., Prompt], seeds: Sequence[str]) -> list[Prompt]:
    with ThreadPoolExecutor() as pool:  # tokenizers let other threads run
        return list(pool.map(lambda seed: make(rng=random.Random(seed)), seeds))


def _jobs(configuration: Configuration, prompts: Sequence[Prompt]) -> Iterator[Job[Prompt]]:
    encode = _encoder(configuration)
    for prompt in prompts:
        most = len(encode(prompt.completion)) + 4 * len(prompt.answers)
        length = len(prompt.tokens) + most
        yield Job(prompt, partial(configuration.session, length), prompt.tokens, {"max_tokens": most})


def _encoder(configuration: Configuration) -> Callable[[str], list[int]]:
    return partial(configuration.load().tokenizer.encode, parse_special=False)  # a haystack may spell control pieces

"""Recall and perplexity of teacher and student on the GPU: many prompts at once, answers checked by teacher forcing.

An answer is right where every one of its tokens is the most likely one, which is when greedy decoding gives it.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lola_cpp.distill.lora import Student
from tiny.corpus import BOS, Corpus
from tiny.tasks import TASKS, TaskMaker

_TOKENS_AT_ONCE, _WALKED_AT_ONCE = 1 << 20, 1 << 21  # the walk from boundary to boundary takes less memory a token
_PERPLEXITY_TOKENS = 1 << 17
_BEGINS = {"": True, ", no begin-of-text token": False}  # the engine's prompts have one


@dataclass(frozen=True)
class Memory:
    """How a row of the tables remembers; window 0 is softmax attention over everything."""

    window: int
    sparse: int
    policy: str = "weighted_recall"
    kappa: float = 0.0

    @property
    def name(self) -> str:
        if self.window == 0:
            return "softmax"
        policy = f" {self.policy} {self.kappa:g}" if self.sparse else ""
        return f"window {self.window} + {self.sparse}{policy}"


SOFTMAX = Memory(0, 0)


@dataclass
class Evaluation:
    student: Student
    corpus: Corpus
    seed: int = 7

    def recall(self, length: int, memories: Iterable[Memory], samples: int) -> dict[str, dict[str, float]]:
        """The share of right answers by task and memory, on the same prompts; those of all tasks run together."""
        prompts = [prompt for task in TASKS for prompt in self._prompts(task, length, samples)]
        found: dict[str, dict[str, float]] = {task: {} for task in TASKS}
        for memory in memories:
            at_once = max(1, (_WALKED_AT_ONCE if memory.sparse else _TOKENS_AT_ONCE) // length)
            parts = [prompts[i : i + at_once] for i in range(0, len(prompts), at_once)]
            right = np.concatenate([self._right(part, memory) for part in parts])
            for task, share in zip(TASKS, right.reshape(len(TASKS), samples).mean(1), strict=True):
                found[task][memory.name] = float(share)
        return found

    def _prompts(self, task: str, length: int, samples: int) -> list[tuple[np.ndarray, np.ndarray]]:
        maker = TaskMaker(self.corpus, np.random.default_rng((self.seed, length, TASKS.index(task))), held_out=True)
        return [maker.evaluation(task, length) for _ in range(samples)]

    def _right(self, prompts: list[tuple[np.ndarray, np.ndarray]], memory: Memory) -> np.ndarray:
        """For each prompt whether all tokens of its answer are the likeliest."""
        tokens = np.stack([row for row, _ in prompts]).astype(np.int64)
        rows = np.repeat(np.arange(len(prompts)), [len(places) for _, places in prompts])
        places = np.concatenate([places for _, places in prompts])
        guesses = self.student.teacher.head()(self._hidden(torch.from_numpy(tokens), memory)[rows, places - 1])
        wrong = guesses.argmax(-1).cpu().numpy() != tokens[rows, places]
        return np.bincount(rows, wrong) == 0

    def _hidden(self, tokens: torch.Tensor, memory: Memory) -> torch.Tensor:
        student = self.student
        if memory.window:
            student = student.with_settings(window_size=memory.window, policy=memory.policy, kappa=memory.kappa)
        with torch.no_grad():
            return student.hidden(tokens, sparse_size=memory.sparse, teacher=memory.window == 0)

    def perplexity(self, length: int, memories: Iterable[Memory], *, bos: bool = True) -> dict[str, float]:
        """On text that was not trained on, cut into rows of `length`; `bos`: the first token begins a text."""
        text, fresh = self.corpus.held_out[:_PERPLEXITY_TOKENS].astype(np.int64), length - bos
        rows = torch.from_numpy(text[: len(text) // fresh * fresh].reshape(-1, fresh))
        rows = torch.nn.functional.pad(rows, (int(bos), 0), value=BOS)
        found = {}
        for memory in memories:
            losses = []
            for part in rows.split(max(1, _TOKENS_AT_ONCE // 8 // length)):
                hidden, targets = self._hidden(part, memory), part.to(self.student.options.device)
                with torch.no_grad():
                    logits = self.student.teacher.head()(hidden[:, :-1]).float().flatten(0, 1)
                losses.append(torch.nn.functional.cross_entropy(logits, targets[:, 1:].flatten()).item() * len(part))
            found[memory.name] = math.exp(sum(losses) / len(rows))
        return found


def evaluate(
    student: Student,
    corpus: Corpus,
    output: Path,
    *,
    lengths: list[int],
    sparse: list[int],
    samples: int,
    seconds: float,
) -> None:
    """Writes and prints the tables that `output` lacks, in the order of `lengths`, until `seconds` are spent.

    Beyond twice the shortest length every other size of `sparse` is left out.
    """
    begin, evaluation = time.perf_counter(), Evaluation(student, corpus)
    kappa = student.options.settings.kappa
    large = [Memory(512, 0), *_by_both_rules([(448, 64), (320, 192), (256, 256)], kappa)]
    short = min(lengths)
    result: dict[str, Any] = json.loads(output.read_text()) if output.is_file() else {}
    if "perplexity" not in result:
        length, rows = min(4096, max(lengths)), [*_memories(sparse, kappa), *large]
        found = {f"{length}{name}": evaluation.perplexity(length, rows, bos=bos) for name, bos in _BEGINS.items()}
        result |= {"perplexity": found, "recall": {}}
        print(_table("perplexity by length", result["perplexity"]), flush=True)
        output.write_text(json.dumps(result, indent=1))
    for length in (length for length in lengths if str(length) not in result["recall"]):
        if time.perf_counter() - begin > seconds:
            print(f"left out from length {length} on: the evaluation's {seconds:.0f} s are spent")
            break
        memories = _memories(sparse if length <= 2 * short else sparse[1::2], kappa)
        cells = evaluation.recall(length, memories, samples)
        result["recall"][str(length)] = {"prompts": samples} | cells
        spent = time.perf_counter() - begin
        print(_table(f"recall at {length}, n = {samples}, after {spent:.0f} s", cells), flush=True)
        output.write_text(json.dumps(result, indent=1))


def _memories(sparse: list[int], kappa: float) -> list[Memory]:
    return [SOFTMAX, Memory(64, 0), *_by_both_rules([(64, size) for size in sparse], kappa)]


def _by_both_rules(shapes: list[tuple[int, int]], kappa: float) -> list[Memory]:
    return [Memory(*shape, *rule) for rule in (("weighted_recall", kappa), ("self_recall", 0.0)) for shape in shapes]


def _table(title: str, columns: dict[str, dict[str, float]]) -> str:
    names = list(columns)
    lines = [title, "| memory | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for row in columns[names[0]]:
        lines.append(f"| {row} | " + " | ".join(f"{columns[name][row]:.3f}" for name in names) + " |")
    return "\n".join(lines) + "\n"


def copy_tokenizer(source: Path, target: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (target / name).write_bytes((source / name).read_bytes())

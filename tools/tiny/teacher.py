"""Trains the softmax teacher: Muon and AdamW, lengths that grow, a fixed number of tokens a step."""

from __future__ import annotations

import math
import multiprocessing
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm

from tiny.corpus import Corpus
from tiny.model import TinyLlama
from tiny.tasks import ANSWER, TEXT, TaskMaker
from tiny.text import TextMaker

# From this share of the time on: lengths, and how often each is drawn.
SCHEDULE = [
    (0.00, {512: 1.0}),
    (0.12, {512: 0.4, 2048: 0.6}),
    (0.25, {512: 0.2, 2048: 0.4, 4096: 0.4}),
    (0.38, {512: 0.2, 2048: 0.3, 8192: 0.5}),
    (0.55, {1024: 0.3, 4096: 0.2, 8192: 0.1, 16384: 0.4}),
    (0.75, {512: 0.15, 2048: 0.15, 8192: 0.15, 16384: 0.1, 32768: 0.45}),
]
RECALL_SHARE = 0.5  # of the sequences
ANSWER_WEIGHT, REST_WEIGHT = 0.5, 0.1
DEMAND_FROM, DEMAND_LENGTH, DEMAND_QUERIES, NEAR = 0.3, 2048, 48, 64


@dataclass(frozen=True)
class Plan:
    seconds: float
    tokens: int = 65536  # a step
    longest: int = 32768
    workers: int = 12
    rate: float = 2e-3
    demand_weight: float = 0.05
    compile: bool = False
    start: Path | None = None  # a folder whose weights are trained on, from this share of the schedule:
    start_share: float = 0.65

    def progress(self, spent: float) -> float:
        first = self.start_share if self.start else 0.0
        return first + (1 - first) * spent / self.seconds


class Batches(IterableDataset):
    """Endless batches of the lengths that `progress` (shared with the trainer) asks for."""

    def __init__(self, corpus: Corpus, plan: Plan, seed: int) -> None:
        self.corpus, self.plan, self.seed = corpus, plan, seed
        self.progress = multiprocessing.Value("d", 0.0)

    def __iter__(self):
        torch.set_num_threads(1)
        info = torch.utils.data.get_worker_info()
        rng = np.random.default_rng((self.seed, info.id if info else 0))
        maker, text = TaskMaker(self.corpus, rng), TextMaker(self.corpus, rng)
        while True:
            share = max(row for row in SCHEDULE if row[0] <= self.progress.value)[1]
            length = min(int(rng.choice(list(share), p=list(share.values()))), self.plan.longest)
            tokens = np.empty((max(1, self.plan.tokens // length), length + 1), np.int64)
            kinds = np.full(tokens.shape, TEXT, np.uint8)
            for row in range(len(tokens)):
                if rng.random() < RECALL_SHARE:
                    tokens[row], kinds[row] = maker.sample(length + 1)
                else:
                    tokens[row] = text.sample(length + 1)
            yield torch.from_numpy(tokens), torch.from_numpy(kinds[:, 1:].copy())


def train(corpus: Corpus, plan: Plan, folder: Path, device: str, *, seed: int = 0) -> TinyLlama:
    """Trains until the plan's seconds are spent, those of earlier runs in the folder's checkpoint included."""
    torch.manual_seed(seed)
    model = TinyLlama().to(device)
    if plan.start:
        model.load(plan.start)
    optimizers = make_optimizers(model, model.matrices(), plan.rate)
    path = folder / "teacher.pt"
    step, spent = _load(path, model, optimizers, device)
    if plan.compile:
        model.compile_parts()
    batches = Batches(corpus, plan, seed + step)
    batches.progress.value = plan.progress(spent)
    loader = iter(DataLoader(batches, batch_size=None, num_workers=plan.workers))
    bar = tqdm(total=int(plan.seconds), initial=int(spent), unit="s", desc="teacher", mininterval=5)
    begin, saved, log, waited = time.perf_counter() - spent, spent, Log(), 0.0
    while spent < plan.seconds:
        asked = time.perf_counter()
        tokens, kinds = next(loader)
        waited += time.perf_counter() - asked
        progress = plan.progress(spent)
        set_rate(optimizers, plan.rate * rate_factor(step, progress))
        log.add(train_step(model, optimizers, tokens.to(device, non_blocking=True), kinds.to(device), plan, progress))
        step, spent = step + 1, time.perf_counter() - begin
        batches.progress.value = plan.progress(spent)
        if step % 100 == 0:
            bar.set_postfix_str(f"step {step} length {tokens.shape[1] - 1} {log.text()}")
            bar.update(int(spent) - bar.n)
            if spent - saved > 60:
                _save(path, model, optimizers, step, spent)
                saved = spent
    bar.close()
    _save(path, model, optimizers, step, spent)
    print(
        f"teacher: {step} steps of {plan.tokens:,} tokens in {spent:.0f} s, "
        f"{waited:.0f} s of them waiting for samples, {log.text()}",
        flush=True,
    )
    return model


def make_optimizers(
    model: torch.nn.Module, matrices: list[Tensor], rate: float, *, decay: float = 0.1, decay_of_rest: float = 0.0
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the rest."""
    rest = [p for p in model.parameters() if not any(p is matrix for matrix in matrices)]
    return [
        torch.optim.Muon(matrices, lr=rate, momentum=0.95, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.95), weight_decay=decay_of_rest),
    ]


def set_rate(optimizers: list[torch.optim.Optimizer], rate: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate


def rate_factor(step: int, progress: float) -> float:
    """Warm-up, constant, then linear to 3 %."""
    return min(1.0, (step + 1) / 150) * min(1.0, 1.0 - 0.97 * (progress - 0.65) / 0.35)


def train_step(
    model: TinyLlama, optimizers: list, tokens: Tensor, kinds: Tensor, plan: Plan, progress: float
) -> Tensor:
    length = tokens.shape[1] - 1
    queries = None
    if progress >= DEMAND_FROM and length >= min(DEMAND_LENGTH, plan.longest):
        # Answers, where there are any, and places drawn anywhere.
        order = (kinds == ANSWER) + 1.2 * torch.rand(kinds.shape, device=kinds.device)
        queries = order.topk(min(DEMAND_QUERIES, length)).indices
    with torch.autocast("cuda", torch.bfloat16, enabled=tokens.is_cuda):
        losses, demand = model(tokens[:, :-1], tokens[:, 1:], queries, NEAR)
    kinds = kinds.flatten()
    weights = torch.where(kinds == TEXT, 1.0, torch.where(kinds == ANSWER, 0.0, REST_WEIGHT))
    answers = (kinds == ANSWER).float()
    text = (losses * weights).sum() / weights.sum().clamp_min(1)
    answer = (losses * answers).sum() / answers.sum().clamp_min(1)
    (text + ANSWER_WEIGHT * answer + plan.demand_weight * demand).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return torch.stack([text.detach(), answer.detach(), demand.detach()])


class Log:
    """Running means of the three losses, read seldom: every reading waits for the GPU."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []

    def add(self, row: Tensor) -> None:
        self.rows = [*self.rows[-99:], row]

    def text(self) -> str:
        text, answer, demand = torch.stack(self.rows).mean(0).tolist()
        return f"text {text:.3f} answers {answer:.3f} demand {demand:.3f}"


def _save(path: Path, model: TinyLlama, optimizers: list, step: int, spent: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {
        "model": model.state_dict(),
        "optimizers": [o.state_dict() for o in optimizers],
        "step": step,
        "spent": spent,
    }
    torch.save(state, path.with_suffix(".partial"))
    os.replace(path.with_suffix(".partial"), path)


def _load(path: Path, model: TinyLlama, optimizers: list, device: str) -> tuple[int, float]:
    if not path.is_file():
        return 0, 0.0
    state = torch.load(path, map_location=device, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, stored in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(stored)
    return state["step"], state["spent"] if math.isfinite(state["spent"]) else 0.0

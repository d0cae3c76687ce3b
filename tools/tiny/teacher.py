"""Trains and polishes the softmax teacher: Muon and AdamW, a fixed number of tokens a step."""

from __future__ import annotations

import copy
import math
import multiprocessing
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm

from tiny.corpus import Corpus
from tiny.model import TinyLlama
from tiny.stages import TEACHER, Memory, Stage
from tiny.tasks import ANSWER, TEXT, TaskMaker
from tiny.text import TextMaker

ANSWER_WEIGHT, REST_WEIGHT, REMEMBERED_WEIGHT = 0.5, 0.1, 2.0
MAPS_FASTER = 10
DEMAND_FROM, DEMAND_LENGTH, DEMAND_QUERIES, NEAR = 0.3, 2048, 48, 64


@dataclass(frozen=True)
class Plan:
    seconds: float
    stage: Stage = TEACHER
    tokens: int = 65536  # a step
    longest: int = 32768
    workers: int = 12
    demand_weight: float = 0.05
    compile: bool = False
    start: Path | None = None  # a folder whose weights are trained on, and whose foretelling of plain text is kept

    def progress(self, spent: float) -> float:
        return spent / self.seconds if self.seconds else 1.0


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
            stage = self.plan.stage
            share = [lengths for first, lengths in stage.lengths if first <= self.progress.value][-1]
            length = min(int(rng.choice(list(share), p=list(share.values()))), self.plan.longest)
            tokens = np.empty((max(1, self.plan.tokens // length), length + 1), np.int64)
            kinds = np.full(tokens.shape, TEXT, np.uint8)
            for row in range(len(tokens)):
                if rng.random() < stage.recall:
                    tokens[row], kinds[row] = maker.sample(length + 1, stage.lookalikes)
                else:
                    tokens[row] = text.sample(length + 1, stage.unseen)
            yield torch.from_numpy(tokens), torch.from_numpy(kinds[:, 1:].copy())


def train(corpus: Corpus, plan: Plan, folder: Path, device: str, *, seed: int = 0) -> TinyLlama:
    """Trains until the plan's seconds are spent, those of earlier runs in the folder's checkpoint included."""
    torch.manual_seed(seed)
    model, anchor, stage = TinyLlama().to(device), None, plan.stage
    if plan.start:
        model.load(plan.start)
        anchor = copy.deepcopy(model).requires_grad_(False)
    optimizers = make_optimizers(model, model.matrices(), stage.rate, maps=model.maps.parameters())
    path = folder / f"{stage.name}.pt"
    step, spent = _load(path, model, optimizers, device)
    if plan.compile:
        model.compile_parts()
    batches = Batches(corpus, plan, seed + step)
    batches.progress.value = plan.progress(spent)
    loader = iter(DataLoader(batches, batch_size=None, num_workers=plan.workers))
    bar = tqdm(total=int(plan.seconds), initial=int(spent), unit="s", desc=stage.name, mininterval=5)
    begin, saved, log, waited = time.perf_counter() - spent, spent, Log(), 0.0
    while spent < plan.seconds:
        asked = time.perf_counter()
        tokens, kinds = next(loader)
        waited += time.perf_counter() - asked
        progress = plan.progress(spent)
        set_rate(optimizers, stage.rate_at(step, progress))
        tokens, kinds = tokens.to(device, non_blocking=True), kinds.to(device)
        log.add(train_step(model, optimizers, tokens, kinds, plan, progress, anchor))
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
        f"{stage.name}: {step} steps of {plan.tokens:,} tokens in {spent:.0f} s, "
        f"{waited:.0f} s of them waiting for samples, {log.text()}",
        flush=True,
    )
    return model


def make_optimizers(
    model: torch.nn.Module,
    matrices: list[Tensor],
    rate: float,
    *,
    decay: float = 0.1,
    decay_of_rest: float = 0.0,
    maps: Iterable[Tensor] = (),
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the rest; feature maps learn MAPS_FASTER times as fast."""
    maps = list(maps)
    apart = {id(p) for p in (*matrices, *maps)}
    groups = [{"params": [p for p in model.parameters() if id(p) not in apart]}]
    if maps:
        groups.append({"params": maps, "faster": MAPS_FASTER})
    return [
        torch.optim.Muon(matrices, lr=rate, momentum=0.95, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), weight_decay=decay_of_rest),
    ]


def set_rate(optimizers: list[torch.optim.Optimizer], rate: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate * group.get("faster", 1)


def train_step(
    model: TinyLlama,
    optimizers: list,
    tokens: Tensor,
    kinds: Tensor,
    plan: Plan,
    progress: float,
    anchor: TinyLlama | None = None,
) -> Tensor:
    length = tokens.shape[1] - 1
    queries = None
    if (anchor is not None or progress >= DEMAND_FROM) and length >= min(DEMAND_LENGTH, plan.longest):
        # Answers, where there are any, and places drawn anywhere.
        order = (kinds == ANSWER) + 1.2 * torch.rand(kinds.shape, device=kinds.device)
        queries = order.topk(min(DEMAND_QUERIES, length)).indices
    with torch.autocast("cuda", torch.bfloat16, enabled=tokens.is_cuda):
        hidden, demand = model.hidden(tokens[:, :-1], queries, NEAR)
        if anchor is None:
            text, answer = _losses(model, hidden, tokens, kinds)
        else:
            text, answer = _polished_losses(model, anchor, hidden, tokens, kinds, plan.stage.memories)
    (text + ANSWER_WEIGHT * answer + plan.demand_weight * demand).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return torch.stack([text.detach(), answer.detach(), demand.detach()])


def _losses(model: TinyLlama, hidden: Tensor, tokens: Tensor, kinds: Tensor) -> tuple[Tensor, Tensor]:
    """Mean next-token losses of plain text (with a little of the tasks' other tokens) and of answers."""
    losses, kinds = model.losses(hidden, model.output, tokens[:, 1:].flatten()), kinds.flatten()
    weights = torch.where(kinds == TEXT, 1.0, torch.where(kinds == ANSWER, 0.0, REST_WEIGHT))
    answers = (kinds == ANSWER).float()
    text = (losses * weights).sum() / weights.sum().clamp_min(1)
    return text, (losses * answers).sum() / answers.sum().clamp_min(1)


def _polished_losses(
    model: TinyLlama,
    anchor: TinyLlama,
    hidden: Tensor,
    tokens: Tensor,
    kinds: Tensor,
    memories: tuple[Memory, ...],
) -> tuple[Tensor, Tensor]:
    """The same, with `hidden` and then with one of the memories, where plain text is held at what the anchor foretells
    with attention to everything, by KL divergence.

    Next-token loss would go on learning the library by heart, and the perplexity of other text would rise. The anchor
    is not shown the begin-of-text token: it may be one that never saw it before text.
    """
    is_text, targets = kinds[:, 0] == TEXT, tokens[:, 1:]
    tokens, some_text, wanted = tokens[:, :-1], bool(is_text.any()), None
    if some_text:
        with torch.no_grad():
            wanted, _ = anchor.hidden(tokens[is_text, 1:], None, NEAR)
            wanted = functional.linear(wanted, anchor.output).float().log_softmax(-1)

    def losses(states: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Of states [tokens of the rows, hidden]."""
        states, text = states.unflatten(0, (-1, tokens.shape[1])), states.new_zeros((), dtype=torch.float32)
        if some_text:
            found = functional.linear(states[is_text[rows], 1:].flatten(0, 1), model.output).float().log_softmax(-1)
            text = functional.kl_div(found, wanted, reduction="batchmean", log_target=True)
        asked = kinds[rows] == ANSWER
        answers = functional.linear(states[asked], model.output).float()
        answer = functional.cross_entropy(answers, targets[rows][asked], reduction="sum")
        return text, answer / asked.sum().clamp_min(1)

    every = torch.ones_like(is_text)
    text, answer = losses(hidden, every)
    if memories:
        memory = memories[int(torch.randint(len(memories), ()))]
        rows = every if memory.answers else is_text
        if memory.answers or some_text:
            states, _ = model.hidden(tokens[rows], None, NEAR, (memory.window, memory.cache))
            again = losses(states, rows)
            text, answer = text + REMEMBERED_WEIGHT * again[0], answer + again[1]
    return text, answer


class Log:
    """Running means of the three losses, read seldom: every reading waits for the GPU."""

    def __init__(self) -> None:
        self.rows: list[Tensor] = []

    def add(self, row: Tensor) -> None:
        self.rows = [*self.rows[-99:], row]

    def text(self) -> str:
        if not self.rows:
            return "nothing left to do"
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

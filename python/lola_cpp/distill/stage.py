"""One stage of training: steps, their checkpoints, and the bar that shows them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from lola_cpp.distill.checkpoint import load_state, save_state
from lola_cpp.distill.data import Sequences
from lola_cpp.distill.options import Options, cosine

_BETAS = (0.9, 0.99)


@dataclass(frozen=True)
class Stage:
    name: str  # of its checkpoint too
    steps: int
    rate: float
    clip: float  # largest norm of all gradients together
    shown: str  # what learn() returns, on the bar


def run_stage(
    stage: Stage,
    options: Options,
    data: Sequences,
    tensors: dict[str, Tensor],
    learn: Callable[[Tensor], Tensor],
) -> None:
    """All steps that the checkpoint in the folder has not done yet.

    learn  of a batch of tokens [batch, length]: leaves gradients on the tensors, and returns one number
    """
    path, identity = options.folder / f"{stage.name}.pt", options.identity(stage.name, data.digest)
    optimizer = torch.optim.AdamW(tensors.values(), lr=stage.rate, betas=_BETAS, weight_decay=0.0)
    done, total = load_state(path, identity, tensors, optimizer), stage.steps
    bar = tqdm(
        range(done, total), initial=done, total=total, desc=stage.name, mininterval=2, disable=not options.progress
    )
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = stage.rate * cosine(step, total)
        found = learn(data.batch(step, options.batch))
        torch.nn.utils.clip_grad_norm_(tensors.values(), stage.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if options.progress:
            bar.set_postfix({stage.shown: f"{found.item():.4f}"})
        if (step + 1) % options.checkpoint_every == 0 or step + 1 == total:
            save_state(path, step + 1, identity, tensors, optimizer)

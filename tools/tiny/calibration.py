"""The teacher's temperature: what it learned by heart makes it too sure of other text."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from tiny.corpus import BOS
from tiny.model import TinyLlama

_MOST, _STEPS, _ROWS_AT_ONCE, _TOKENS_AT_ONCE = 4.0, 16, 8, 4096


@torch.no_grad()
def calibrate(model: TinyLlama, text: np.ndarray, *, length: int = 4096) -> float:
    """Divides the output matrix by the temperature at which `text`, that was not trained on, is foretold best.

    Temperature scaling (Guo et al. 2017, arXiv 1706.04599): no order of tokens changes. Returns the temperature.
    """
    device, fresh = model.output.device, length - 1
    rows = torch.from_numpy(text.astype(np.int64))[: len(text) // fresh * fresh].view(-1, fresh).to(device)
    parts = [_states_of(model, part) for part in rows.split(_ROWS_AT_ONCE)]
    low, high = 1 / _MOST, _MOST
    for _ in range(_STEPS):  # the loss is convex in the sharpness
        middle = (low + high) / 2
        low, high = (low, middle) if _slope(model.output, parts, middle) > 0 else (middle, high)
    model.output.mul_(high)
    return 1 / high


def _slope(output: torch.Tensor, parts: list[tuple[torch.Tensor, torch.Tensor]], sharpness: float) -> float:
    """How the summed loss grows with the sharpness that the logits are multiplied by."""
    slope = 0.0
    for states, targets in parts:
        for some, wanted in zip(states.split(_TOKENS_AT_ONCE), targets.split(_TOKENS_AT_ONCE), strict=True):
            logits = functional.linear(some, output.float())
            expected = ((sharpness * logits).softmax(-1) * logits).sum(-1)
            slope += (expected - logits.gather(1, wanted[:, None])[:, 0]).sum().item()
    return slope


def _states_of(model: TinyLlama, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The last states of rows after the begin-of-text token, and the tokens that follow them."""
    tokens = functional.pad(rows, (1, 0), value=BOS)[:, :-1]
    with torch.autocast("cuda", torch.bfloat16, enabled=rows.is_cuda):
        states, _ = model.hidden(tokens, None, 0)
    return states.float(), rows.flatten()

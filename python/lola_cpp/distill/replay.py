"""Steps of training as CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Step = Callable[[Tensor], tuple[Tensor, ...]]


class Replay:
    """Records what a step launches at its first call, and from then on launches it in one go.

    The step reads the same tensors in every call, tokens of one shape, and nothing of it waits for the GPU. What a call
    returns is overwritten by the next.
    """

    def __init__(self, step: Step, device: str) -> None:
        self._step, self._device = step, device
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, tokens: Tensor) -> tuple[Tensor, ...]:
        with torch.cuda.device(self._device):
            graph = self._graph or self._record(tokens)
            self._tokens.copy_(tokens)
            graph.replay()
            return self._found

    def _record(self, tokens: Tensor) -> torch.cuda.CUDAGraph:
        self._tokens, side = tokens.to(self._device), torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # libraries set themselves up, and what is kept is made
            self._step(self._tokens)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._found = self._step(self._tokens)
        return graph

"""Low-rank updates of q, k, v and o, trained in the model whose attention is already linear."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from lola_cpp.distill.data import Sequences
from lola_cpp.distill.feature_map import LayerMaps
from lola_cpp.distill.linear_attention import attend, attend_with_cache
from lola_cpp.distill.options import Options
from lola_cpp.distill.replay import Replay, Step
from lola_cpp.distill.stage import Stage, run_stage
from lola_cpp.distill.teacher import Teacher, Update, Updates, finish, project, softmax_attention

_CLIP = 1.0
_LOGITS_AT_ONCE = 1024
_REPORT_SEQUENCES = 8


@dataclass
class Student:
    """The teacher's weights under linear attention, with updates where there are any."""

    options: Options
    teacher: Teacher
    maps: dict[int, LayerMaps]
    updates: dict[int, Updates]

    @classmethod
    def start(cls, options: Options, teacher: Teacher, maps: dict[int, LayerMaps]) -> Student:
        """Updates that change nothing yet: a is random and b zero."""
        heads, hidden, rank = teacher.base.heads, teacher.base.embedding_length, options.lora_rank
        q_size, kv_size = heads.query * heads.dim, heads.key_value * heads.dim
        sizes = {"q": (hidden, q_size), "k": (hidden, kv_size), "v": (hidden, kv_size), "o": (q_size, hidden)}
        generator = torch.Generator().manual_seed(options.seed)

        def update(inputs: int, outputs: int) -> Update:
            a = torch.randn(rank, inputs, generator=generator) * inputs**-0.5
            b = torch.zeros(outputs, rank)
            a, b = (x.to(options.device).requires_grad_() for x in (a, b))
            return Update(a, b, options.settings.lora_alpha / rank)

        updates = {i: {name: update(*size) for name, size in sizes.items()} for i in maps}
        return cls(options, teacher, maps, updates)

    def with_settings(self, **changes: Any) -> Student:
        """The same weights, remembering otherwise."""
        settings = replace(self.options.settings, **changes)
        return replace(self, options=replace(self.options, settings=settings))

    def tensors(self) -> dict[str, Tensor]:
        """What LoRA trains."""
        tensors = {
            f"{i}.{name}.{half}": getattr(update, half)
            for i, updates in self.updates.items()
            for name, update in updates.items()
            for half in ("a", "b")
        }
        if self.options.lora_maps:
            tensors |= {f"{i}.{name}": value for i, maps in self.maps.items() for name, value in maps.tensors().items()}
        return tensors

    def train(self, data: Sequences) -> None:
        """All steps that the checkpoint in the folder has not done yet."""
        options, trained = self.options, list(self.tensors().values())
        steps: dict[tuple[int, int], Step] = {}
        for place in self._places():
            step = partial(self._gradients, *place, trained)
            steps[place] = Replay(step, options.device) if options.replay else step

        def learn(tokens: Tensor) -> Tensor:
            losses = []
            parts = tokens.split(options.micro_batch)
            for part, place in zip(parts, cycle(self._places()), strict=False):
                loss, *gradients = steps[place](part)
                losses.append(loss / len(parts))
                for value, gradient in zip(trained, gradients, strict=True):
                    share = gradient / len(parts)
                    value.grad = share if value.grad is None else value.grad + share
            return torch.stack(losses).sum()

        stage = Stage("lora", options.lora_steps, options.lora_rate, _CLIP, shown="loss")
        run_stage(stage, options, data, self.tensors(), learn)

    def _places(self) -> list[tuple[int, int]]:
        """Window and size of the cache of one micro-batch after the other."""
        options = self.options
        windows = options.lora_window or (options.settings.window_size,)
        count = options.batch // options.micro_batch
        return list(islice(zip(cycle(windows), cycle(options.lora_cache), strict=False), count))

    def _gradients(self, window: int, cache: int, trained: list[Tensor], tokens: Tensor) -> tuple[Tensor, ...]:
        """The loss of a micro-batch, and its gradients."""
        student = self.with_settings(window_size=window)
        measure = student.divergence if self.options.lora_target == "teacher" else student.loss
        loss = measure(tokens, sparse_size=cache)
        return loss.detach(), *torch.autograd.grad(loss, trained, allow_unused=True, materialize_grads=True)

    def hidden(self, tokens: Tensor, *, sparse_size: int = 0, teacher: bool = False) -> Tensor:
        """The states before the last norm. With `teacher` softmax attention and no updates."""
        x, rope = self.teacher.embed(tokens), self.teacher.rope(tokens.shape[1])
        for index in range(self.teacher.base.block_count):
            x = checkpoint(
                self._layer, index, x, rope, sparse_size, teacher, use_reentrant=False, preserve_rng_state=False
            )
        return x

    def _layer(self, index: int, x: Tensor, rope: tuple[Tensor, Tensor], sparse_size: int, teacher: bool) -> Tensor:
        layer = self.teacher.layer(index)
        updates = None if teacher else self.updates.get(index)
        q, k, v = project(layer, x, rope, updates)
        if teacher or index not in self.maps:
            y = softmax_attention(q, k, v)
        elif sparse_size:
            y = attend_with_cache(q, k, v, self.maps[index], self.options.settings, sparse_size)
        else:
            y = attend(q, k, v, self.maps[index], self.options.settings)
        return finish(layer, x, y, updates)

    def logits(self, tokens: Tensor, *, sparse_size: int = 0, teacher: bool = False) -> Tensor:
        """tokens [batch, length] -> [batch, length, vocabulary]."""
        return self.teacher.head()(self.hidden(tokens, sparse_size=sparse_size, teacher=teacher))

    def loss(self, tokens: Tensor, *, sparse_size: int = 0, teacher: bool = False) -> Tensor:
        """Mean next-token loss."""
        hidden = self.hidden(tokens, sparse_size=sparse_size, teacher=teacher)
        return self._mean(_summed_loss, hidden[:, :-1], tokens.to(hidden.device)[:, 1:])

    def divergence(self, tokens: Tensor, *, sparse_size: int = 0) -> Tensor:
        """Mean KL divergence of what is foretold from what the teacher foretells."""
        with torch.no_grad():
            wanted = self.hidden(tokens, teacher=True)
        return self._mean(_summed_divergence, self.hidden(tokens, sparse_size=sparse_size), wanted)

    def _mean(self, summed: Callable[..., Tensor], hidden: Tensor, wanted: Tensor) -> Tensor:
        """Over all tokens; logits exist for a part of the sequence at a time."""
        total, head = torch.zeros((), device=hidden.device), self.teacher.head()
        for x, y in zip(hidden.split(_LOGITS_AT_ONCE, 1), wanted.split(_LOGITS_AT_ONCE, 1), strict=True):
            total = total + checkpoint(summed, head, x, y, use_reentrant=False, preserve_rng_state=False)
        return total / hidden.shape[:2].numel()

    def report(self, data: Sequences) -> dict[str, float]:
        """Mean loss on sequences that are not trained on, of the teacher and of the student."""
        tokens = torch.from_numpy(data.held_out[:_REPORT_SEQUENCES].astype("int64"))
        with torch.no_grad():
            return {
                name: torch.stack([self.loss(part, teacher=teacher) for part in tokens.split(1)]).mean().item()
                for name, teacher in (("teacher", True), ("student", False))
            }


def _summed_loss(head: Callable[[Tensor], Tensor], x: Tensor, wanted: Tensor) -> Tensor:
    return functional.cross_entropy(head(x).float().flatten(0, 1), wanted.flatten(), reduction="sum")


def _summed_divergence(head: Callable[[Tensor], Tensor], x: Tensor, wanted: Tensor) -> Tensor:
    found, wanted = (head(y).float().flatten(0, 1).log_softmax(-1) for y in (x, wanted))
    return functional.kl_div(found, wanted, reduction="sum", log_target=True)

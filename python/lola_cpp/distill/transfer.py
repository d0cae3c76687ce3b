"""Attention transfer: feature maps and window factors learn the outputs of the teacher's attention, layer by layer.

The teacher's hidden states feed every layer, so the layers are independent, and one layer's weights at a time need to
be on the card: a step walks through the layers once with all its sequences.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lola_cpp.distill.checkpoint import load_tensors
from lola_cpp.distill.data import Sequences
from lola_cpp.distill.feature_map import LayerMaps, initial_maps
from lola_cpp.distill.linear_attention import attend
from lola_cpp.distill.options import Options
from lola_cpp.distill.stage import Stage, run_stage
from lola_cpp.distill.teacher import Teacher, finish, project, softmax_attention

_CLIP = 5.0
_REPORT_SEQUENCES = 8


@dataclass
class Transfer:
    """The maps in training, by layer; softmax layers have none."""

    options: Options
    teacher: Teacher
    maps: dict[int, LayerMaps]

    @classmethod
    def start(cls, options: Options, teacher: Teacher) -> Transfer:
        layers = [i for i in range(teacher.base.block_count) if i not in options.settings.softmax_layers]
        heads = teacher.base.heads
        maps = {i: initial_maps(heads, options.settings, i, seed=options.seed, device=options.device) for i in layers}
        return cls(options, teacher, maps)

    def tensors(self) -> dict[str, Tensor]:
        return {f"{i}.{name}": value for i, maps in self.maps.items() for name, value in maps.tensors().items()}

    def train(self, data: Sequences) -> None:
        """All steps that the checkpoint in the folder has not done yet; none with maps that are given."""
        options = self.options
        if options.maps is not None:
            load_tensors(options.maps, self.tensors())
            return
        stage = Stage("transfer", options.transfer_steps, options.transfer_rate, _CLIP, shown="error")
        run_stage(stage, options, data, self.tensors(), lambda tokens: self.step(tokens).mean())

    def step(self, tokens: Tensor, *, learn: bool = True) -> Tensor:
        """Relative errors by layer, [maps]; with `learn` their gradients are left on the maps."""
        parts = tokens.split(self.options.micro_batch)
        errors = []
        with torch.no_grad():
            rope = self.teacher.rope(tokens.shape[1])
            hidden = [self.teacher.embed(part) for part in parts]
            for index in range(self.teacher.base.block_count):
                layer = self.teacher.layer(index)
                error = torch.zeros((), device=self.options.device)
                for i, x in enumerate(hidden):
                    q, k, v = project(layer, x, rope)
                    wanted = softmax_attention(q, k, v)
                    if index in self.maps:
                        error += self._compare(index, (q, k, v), wanted, learn, len(parts))
                    hidden[i] = finish(layer, x, wanted)
                if index in self.maps:
                    errors.append(error)
        return torch.stack(errors)

    def _compare(
        self, index: int, qkv: tuple[Tensor, Tensor, Tensor], wanted: Tensor, learn: bool, parts: int
    ) -> Tensor:
        """Mean squared error over the variance of what is wanted, as this micro-batch's share."""
        with torch.set_grad_enabled(learn):
            found = attend(*qkv, self.maps[index], self.options.settings)
            error = (found - wanted.float()).square().mean() / wanted.float().var() / parts
            if learn:
                error.backward()
        return error.detach()

    def report(self, data: Sequences) -> dict[int, float]:
        """The relative error of each layer on sequences that are not trained on."""
        tokens = torch.from_numpy(data.held_out[:_REPORT_SEQUENCES].astype("int64"))
        errors = [self.step(part, learn=False) for part in tokens.split(1)]
        return dict(zip(self.maps, torch.stack(errors).mean(0).tolist(), strict=True))

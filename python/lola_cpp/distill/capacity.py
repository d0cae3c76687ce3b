"""Whether a card holds a distillation, said before the first weight is read."""

from __future__ import annotations

import torch

from lola_cpp._core import DeviceError
from lola_cpp.convert.adapter import Base
from lola_cpp.distill.options import Options

_GIB = 1 << 30


def needed_bytes(options: Options, base: Base, layer_bytes: int, other_bytes: int) -> dict[str, int]:
    """An estimate by what takes the memory, of the stage that takes more.

    layer_bytes, other_bytes: of one layer's weights, and of the embedding and the output.
    """
    settings, heads = options.settings, base.heads
    tokens, width = options.length * options.micro_batch, 2 if options.dtype == "bfloat16" else 4
    features = settings.feature_dim or heads.dim
    maps = 2 * heads.query * heads.dim * features * base.block_count
    resident = layer_bytes * (base.block_count if options.weights == "device" else 1) + other_bytes
    exact = max((settings.window_size, *options.lora_window)) + max(64, settings.chunk_size)
    # float32 per token and query head: logits, weights and their gradients; features of q and k; copies of k and v.
    attention = 4 * tokens * heads.query * (4 * exact + 12 * features + 12 * heads.dim * exact // 64)
    hidden = options.length * options.batch * base.embedding_length * width
    checkpoints = options.length * options.micro_batch * base.embedding_length * width * base.block_count
    logits = 12 * min(1024, options.length) * options.micro_batch * base.vocab_size
    return {
        "weights": resident,
        "maps with optimizer": 16 * maps,
        "attention of one layer": attention,
        "hidden states": max(hidden, checkpoints if options.lora_steps else 0),
        "logits": logits if options.lora_steps else 0,
    }


def check_capacity(options: Options, base: Base, layer_bytes: int, other_bytes: int) -> None:
    """Raises DeviceError where the card has less free memory than is needed, with what would make it fit."""
    if not options.device.startswith("cuda"):
        return
    parts = needed_bytes(options, base, layer_bytes, other_bytes)
    free, _ = torch.cuda.mem_get_info(options.device)
    if sum(parts.values()) > free:
        listed = ", ".join(f"{name} {size / _GIB:.1f}" for name, size in parts.items())
        raise DeviceError(
            f"{options.device}: found {free / _GIB:.1f} GiB free, wanted about {sum(parts.values()) / _GIB:.1f} "
            f"({listed}): try weights host, a smaller micro-batch or length, or dtype bfloat16"
        )

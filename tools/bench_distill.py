#!/usr/bin/env python3
"""Time and memory of distilling one layer in the shape of Llama-3.1-8B, with random weights.

    python tools/bench_distill.py --length 2048 --batch 4

What a whole step takes follows: transfer = 32 layers; LoRA = 32 layers and the output.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from lola_cpp.convert.adapter import Settings
from lola_cpp.convert.layout import Heads
from lola_cpp.distill.feature_map import initial_maps
from lola_cpp.distill.linear_attention import attend, attend_with_cache
from lola_cpp.distill.teacher import finish, project, softmax_attention

HEADS = Heads(32, 8, 128)


def measure(name: str, step: Callable[[], None], tokens: int) -> None:
    for _ in range(2):
        step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    resident, begin, repeats = torch.cuda.memory_allocated(), time.perf_counter(), 5
    for _ in range(repeats):
        step()
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - begin) / repeats
    peak = (torch.cuda.max_memory_allocated() - resident) / 2**30
    print(f"| {name} | {1e3 * seconds:.1f} | {tokens / seconds:,.0f} | {peak:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=4)
    given = parser.parse_args()
    torch.set_float32_matmul_precision("high")
    config = LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_attention_heads=32, num_key_value_heads=8, head_dim=128
    )
    layer = LlamaDecoderLayer(config, 0).to("cuda", torch.bfloat16).requires_grad_(False)
    settings = Settings(feature_dim=64)
    maps = initial_maps(HEADS, settings, 0, seed=0, device="cuda")
    x = torch.randn(given.batch, given.length, 4096, device="cuda", dtype=torch.bfloat16)
    angles = torch.arange(given.length, device="cuda")[:, None] * 5e5 ** (-torch.arange(128, device="cuda") % 64 / 64)
    rope = (angles.cos(), angles.sin())

    def teacher() -> None:
        with torch.no_grad():
            finish(layer, x, softmax_attention(*project(layer, x, rope)))

    def transfer() -> None:
        with torch.no_grad():
            q, k, v = project(layer, x, rope)
            wanted = softmax_attention(q, k, v)
            finish(layer, x, wanted)
        (attend(q, k, v, maps, settings) - wanted.float()).square().mean().backward()

    def lora(sparse_size: int) -> None:
        inputs = x.detach().requires_grad_()
        q, k, v = project(layer, inputs, rope)
        y = attend_with_cache(q, k, v, maps, settings, sparse_size) if sparse_size else attend(q, k, v, maps, settings)
        finish(layer, inputs, y).sum().backward()

    print(f"{torch.cuda.get_device_name()}, {given.batch} sequences of {given.length} tokens, bfloat16")
    print("| one layer | ms | tokens/s | GiB above the weights |\n|---|---|---|---|")
    tokens = given.batch * given.length
    measure("teacher, forward", teacher, tokens)
    measure("attention transfer, with the teacher", transfer, tokens)
    measure("LoRA, forward and backward", lambda: lora(0), tokens)
    measure("LoRA with a sparse cache of 64", lambda: lora(64), tokens)


if __name__ == "__main__":
    main()

"""`lola-cpp info`: a model, and what its sessions take."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from .shared import add_model_options, add_session_options, load_model, megabytes, session_options

if TYPE_CHECKING:
    from .shared import Subcommands

_DEPTHS = (512, 1024, 4096, 32768, 131072)


def add(commands: Subcommands) -> None:
    info = commands.add_parser("info", help="show a model, and what its sessions take beside a KV cache")
    add_model_options(info)
    add_session_options(info)
    info.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    model = load_model(options)
    info, defaults = model.info, {**model.session_defaults, **session_options(options)}
    print(f"{info.name or model.path}: {info.architecture}, {info.layers} layers of width {info.dim}")
    print(f"  heads {info.heads} query / {info.kv_heads} kv of {info.head_dim}, vocabulary {info.vocabulary:,}")
    speed = info.weight_bytes / model.load_seconds / 1e9
    print(f"  weights {megabytes(info.weight_bytes)}, loaded in {model.load_seconds:.2f} s ({speed:.1f} GB/s)")
    print(f"  {info.backend}")
    if info.has_lola:
        print(
            f"  LoLA on {info.layers - info.softmax_layers} of {info.layers} layers: window {defaults['window_size']}, "
            f"chunk {defaults['chunk_size']}, sparse cache {defaults['sparse_size']} per {defaults['sparse_scope']}, "
            f"policy {defaults['policy']}, mixing {defaults['mixing']}"
        )
    else:
        print("  no LoLA adapter: softmax attention with a KV cache")
    kv_per_token = 2 * info.layers * info.kv_heads * info.head_dim * 2
    print(f"\n{'tokens':>10}  {'this session':>14}  {'KV cache f16':>14}")
    for tokens in _DEPTHS:
        chosen = session_options(options)
        chosen["context_length"] = tokens
        mine = model.session_bytes(**chosen)
        print(f"{tokens:>10,}  {megabytes(mine):>14}  {megabytes(kv_per_token * tokens):>14}")
    return 0

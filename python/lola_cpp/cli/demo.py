"""`lola-cpp demo`: a pass key in a long text, with and without the sparse cache."""

from __future__ import annotations

import argparse
import random
from typing import TYPE_CHECKING

from ..eval.tasks import make_prompt
from ..model import Model
from .shared import add_device_option, megabytes, read

if TYPE_CHECKING:
    from .shared import Subcommands


def add(commands: Subcommands) -> None:
    demo = commands.add_parser("demo", help="find a pass key hidden in a long text, with and without the sparse cache")
    demo.add_argument("--tokens", type=int, default=4000, help="length of the text")
    demo.add_argument("--seed", type=int, default=1)
    demo.add_argument("--threads", type=int)
    add_device_option(demo)
    demo.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    model = Model.default(threads=options.threads, device=options.device)
    prompt = make_prompt("passkey", model.tokenizer.encode, options.tokens, rng=random.Random(options.seed))
    print(
        f"The pass key {prompt.answers[0]} is hidden {prompt.depth:.0%} into a text of {len(prompt.tokens):,} tokens.\n"
        "The text ends: What is the pass key? The pass key is ...\n"
    )
    found = {}
    for name, sparse_size in (("LoLA", None), ("without sparse cache", 0)):
        session = model.session() if sparse_size is None else model.session(sparse_size=sparse_size)
        seconds = read(session, prompt.tokens)
        print(f"{name:>22}: ", end="", flush=True)
        answer = ""
        for token in session.generate(max_tokens=8, stop="."):
            print(token.text, end="", flush=True)
            answer += token.text
        found[name] = prompt.found_in(answer)
        print(
            f"   {'found' if found[name] else 'missed'} "
            f"[{megabytes(session.memory_bytes)} of memory, {len(prompt.tokens) / seconds:,.0f} tokens/s read]"
        )
    info = model.info
    kv_bytes = 2 * info.layers * info.kv_heads * info.head_dim * 2 * len(prompt.tokens)
    print(f"\nA KV cache for this text would take {megabytes(kv_bytes)}; LoLA's memory is the same for any length.")
    return 0 if found["LoLA"] else 1

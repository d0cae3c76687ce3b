"""`lola-cpp bench`: tokens per second."""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from typing import TYPE_CHECKING

from tqdm import tqdm

from .shared import add_model_options, add_session_options, load_model, read, session_options

if TYPE_CHECKING:
    from .shared import Subcommands


def add(commands: Subcommands) -> None:
    bench = commands.add_parser("bench", help="measure tokens per second of prefill and decode")
    add_model_options(bench)
    add_session_options(bench)
    bench.add_argument("--prompt-tokens", type=int, default=512)
    bench.add_argument("--decode-tokens", type=int, default=64)
    bench.add_argument("--depth", type=int, nargs="+", default=[0], help="tokens already in the session")
    bench.add_argument("--repeat", type=int, default=5)
    bench.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    model = load_model(options)
    longest = max(options.depth) + options.prompt_tokens + options.decode_tokens
    chosen = session_options(options)
    chosen.setdefault("context_length", longest)
    rng = random.Random(0)
    print(f"{model.info.backend}; {options.repeat} runs, median tokens per second")
    print(f"{'depth':>8}  {'prefill ' + str(options.prompt_tokens):>14}  {'decode ' + str(options.decode_tokens):>12}")
    for depth in options.depth:
        filled = model.session(**chosen)
        read(filled, [rng.randrange(model.info.vocabulary) for _ in range(depth)], f"filling to {depth}")
        warm_up = filled.fork()
        warm_up.append([rng.randrange(model.info.vocabulary) for _ in range(options.prompt_tokens)])
        prefill, decode = [], []
        for _ in tqdm(range(options.repeat), desc="measuring", leave=False, file=sys.stderr, disable=None):
            session = filled.fork()
            tokens = [rng.randrange(model.info.vocabulary) for _ in range(options.prompt_tokens)]
            begin = time.perf_counter()
            session.append(tokens)
            middle = time.perf_counter()
            for token in tokens[: options.decode_tokens]:
                session.append([token])
            end = time.perf_counter()
            prefill.append(len(tokens) / (middle - begin))
            decode.append(min(options.decode_tokens, len(tokens)) / (end - middle))
        print(f"{depth:>8,}  {statistics.median(prefill):>14,.1f}  {statistics.median(decode):>12,.1f}", flush=True)
    return 0

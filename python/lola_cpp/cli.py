"""The command `lola-cpp`: run, info, bench, demo."""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from . import __version__
from ._core import LolaError
from .model import Model
from .recall import passkey_prompt
from .session import Session

if TYPE_CHECKING:
    from .options import SessionOptions

_DEPTHS = (512, 1024, 4096, 32768, 131072)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options))
    except (LolaError, OSError) as error:
        print(f"lola-cpp: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nlola-cpp: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lola-cpp", description="Linear-attention language models on GGUF weights.")
    parser.add_argument("--version", action="version", version=f"lola-cpp {__version__}")
    commands = parser.add_subparsers(required=True, metavar="run | info | bench | demo")

    run = commands.add_parser("run", help="stream a continuation of a prompt")
    _add_model_options(run)
    _add_session_options(run)
    prompt = run.add_mutually_exclusive_group(required=True)
    prompt.add_argument("-p", "--prompt", help="the text to continue")
    prompt.add_argument("-f", "--file", type=Path, help="a file with the text to continue; - is standard input")
    run.add_argument("-n", "--max-tokens", type=int, default=256)
    run.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default)")
    run.add_argument("--top-k", type=int, default=0)
    run.add_argument("--top-p", type=float, default=1.0)
    run.add_argument("--min-p", type=float, default=0.0)
    run.add_argument("--repetition-penalty", type=float, default=1.0)
    run.add_argument("--seed", type=int, help="default: a fresh one")
    run.add_argument("--stop", action="append", default=[], help="end before this text; may be given again")
    run.add_argument("--load", type=Path, help="continue a saved session")
    run.add_argument("--save", type=Path, help="save the session afterwards")
    run.set_defaults(command=_run)

    info = commands.add_parser("info", help="show a model, and what its sessions take beside a KV cache")
    _add_model_options(info)
    _add_session_options(info)
    info.set_defaults(command=_info)

    bench = commands.add_parser("bench", help="measure tokens per second of prefill and decode")
    _add_model_options(bench)
    _add_session_options(bench)
    bench.add_argument("--prompt-tokens", type=int, default=512)
    bench.add_argument("--decode-tokens", type=int, default=64)
    bench.add_argument("--depth", type=int, nargs="+", default=[0], help="tokens already in the session")
    bench.add_argument("--repeat", type=int, default=5)
    bench.set_defaults(command=_bench)

    demo = commands.add_parser("demo", help="find a pass key hidden in a long text, with and without the sparse cache")
    demo.add_argument("--tokens", type=int, default=4000, help="length of the text")
    demo.add_argument("--seed", type=int, default=1)
    demo.add_argument("--threads", type=int)
    _add_device_option(demo)
    demo.set_defaults(command=_demo)
    return parser


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument("-m", "--model", type=Path, help="a GGUF file; default: the small model inside the package")
    group.add_argument("-a", "--adapter", type=Path, help="a LoLA adapter for it")
    group.add_argument("-t", "--threads", type=int, help="default: the physical cores")
    _add_device_option(group)


def _add_device_option(group: argparse._ActionsContainer) -> None:
    group.add_argument("-d", "--device", default="cpu", help="cpu or cuda")


def _add_session_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("session", "what is not given comes from the adapter")
    group.add_argument("--window-size", type=int)
    group.add_argument("--chunk-size", type=int)
    group.add_argument("--sparse-size", type=int, help="pairs in the sparse cache; 0 is without")
    group.add_argument("--sparse-scope", choices=["head", "group"])
    group.add_argument("--policy")
    group.add_argument("--mixing", choices=["lolcats", "gated", "natural"])
    group.add_argument("--pair-type", choices=["f32", "f16", "q8_0"])
    group.add_argument("--context-length", type=int, help="tokens that softmax layers hold")


def _load(options: argparse.Namespace) -> Model:
    if options.model is None:
        return Model.default(threads=options.threads, device=options.device)
    return Model(options.model, options.adapter, threads=options.threads, device=options.device)


def _session_options(options: argparse.Namespace) -> SessionOptions:
    names = ("window_size", "chunk_size", "sparse_size", "sparse_scope", "policy", "mixing", "pair_type")
    given = {name: getattr(options, name) for name in (*names, "context_length")}
    return {name: value for name, value in given.items() if value is not None}  # type: ignore[return-value]


def _bar(total: int, what: str) -> tqdm[None]:
    return tqdm(total=total, desc=what, unit=" tokens", leave=False, file=sys.stderr, disable=None)


def _read(session: Session, tokens: Sequence[int], what: str = "reading") -> float:
    """Reads a prompt behind a progress bar; returns the seconds it took."""
    begin = time.perf_counter()
    with _bar(len(tokens), what) as bar:
        session.append(tokens, progress=lambda done: bar.update(done - bar.n) and None)
    return time.perf_counter() - begin


def _megabytes(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"


def _run(options: argparse.Namespace) -> int:
    model = _load(options)
    if options.load is not None:
        session = model.load_session(options.load)
    else:
        session = model.session(**_session_options(options))
    text = options.prompt
    if text is None:
        text = sys.stdin.read() if str(options.file) == "-" else options.file.read_text(encoding="utf-8")
    tokens = model.tokenize(text, add_special=session.position == 0)
    read_seconds = _read(session, tokens)
    begin, count = time.perf_counter(), 0
    for token in session.generate(
        max_tokens=options.max_tokens,
        stop=options.stop,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
        seed=options.seed,
    ):
        print(token.text, end="", flush=True)
        count += 1
    seconds = time.perf_counter() - begin
    print()
    print(
        f"[read {len(tokens)} tokens at {len(tokens) / max(read_seconds, 1e-9):,.0f}/s, wrote {count} at "
        f"{count / max(seconds, 1e-9):,.0f}/s; session {_megabytes(session.memory_bytes)}; {model.info.backend}]",
        file=sys.stderr,
    )
    if options.save is not None:
        session.save(options.save)
    return 0


def _info(options: argparse.Namespace) -> int:
    model = _load(options)
    info, defaults = model.info, {**model.session_defaults, **_session_options(options)}
    print(f"{info.name or model.path}: {info.architecture}, {info.layers} layers of width {info.dim}")
    print(f"  heads {info.heads} query / {info.kv_heads} kv of {info.head_dim}, vocabulary {info.vocabulary:,}")
    print(f"  weights {_megabytes(info.weight_bytes)}; {info.backend}")
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
        chosen = _session_options(options)
        chosen["context_length"] = tokens
        mine = model.session_bytes(**chosen)
        print(f"{tokens:>10,}  {_megabytes(mine):>14}  {_megabytes(kv_per_token * tokens):>14}")
    return 0


def _bench(options: argparse.Namespace) -> int:
    model = _load(options)
    longest = max(options.depth) + options.prompt_tokens + options.decode_tokens
    chosen = _session_options(options)
    chosen.setdefault("context_length", longest)
    rng = random.Random(0)
    print(f"{model.info.backend}; {options.repeat} runs, median tokens per second")
    print(f"{'depth':>8}  {'prefill ' + str(options.prompt_tokens):>14}  {'decode ' + str(options.decode_tokens):>12}")
    for depth in options.depth:
        filled = model.session(**chosen)
        _read(filled, [rng.randrange(model.info.vocabulary) for _ in range(depth)], f"filling to {depth}")
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


def _demo(options: argparse.Namespace) -> int:
    model = Model.default(threads=options.threads, device=options.device)
    prompt = passkey_prompt(model.tokenizer, options.tokens, rng=random.Random(options.seed))
    print(
        f"The pass key {prompt.answer} is hidden {prompt.depth:.0%} into a text of {len(prompt.tokens):,} tokens.\n"
        "The text ends: What is the pass key? The pass key is ...\n"
    )
    found = {}
    for name, sparse_size in (("LoLA", None), ("without sparse cache", 0)):
        session = model.session() if sparse_size is None else model.session(sparse_size=sparse_size)
        seconds = _read(session, prompt.tokens)
        print(f"{name:>22}: ", end="", flush=True)
        answer = ""
        for token in session.generate(max_tokens=8, stop="."):
            print(token.text, end="", flush=True)
            answer += token.text
        found[name] = prompt.found_in(answer)
        print(
            f"   {'found' if found[name] else 'missed'} "
            f"[{_megabytes(session.memory_bytes)} of memory, {len(prompt.tokens) / seconds:,.0f} tokens/s read]"
        )
    info = model.info
    kv_bytes = 2 * info.layers * info.kv_heads * info.head_dim * 2 * len(prompt.tokens)
    print(f"\nA KV cache for this text would take {_megabytes(kv_bytes)}; LoLA's memory is the same for any length.")
    return 0 if found["LoLA"] else 1


if __name__ == "__main__":
    sys.exit(main())

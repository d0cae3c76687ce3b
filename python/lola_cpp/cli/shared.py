"""Options and output that several commands share."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from .._core import UsageError
from ..model import Model
from ..session import Session

if TYPE_CHECKING:
    from ..options import SessionOptions

    Subcommands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_model_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument("-m", "--model", type=Path, help="a GGUF file; default: the small model inside the package")
    group.add_argument("-a", "--adapter", type=Path, help="a LoLA adapter for it")
    group.add_argument("-t", "--threads", type=int, help="default: the physical cores")
    add_device_option(group)
    group.add_argument(
        "--gpu-layers",
        type=_layer_count,
        metavar="N",
        help="layers on the GPU, the others on the CPU; auto: as many as fit; default: all",
    )


def add_device_option(group: argparse._ActionsContainer) -> None:
    group.add_argument("-d", "--device", default="cpu", help="cpu or cuda")


def _layer_count(text: str) -> int | str:
    return text if text == "auto" else int(text)


def add_session_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("session", "what is not given comes from the adapter")
    group.add_argument("--window-size", type=int)
    group.add_argument("--chunk-size", type=int)
    group.add_argument("--sparse-size", type=int, help="pairs in the sparse cache; 0 is without")
    group.add_argument("--sparse-scope", choices=["head", "group"])
    group.add_argument("--policy")
    group.add_argument("--mixing", choices=["lolcats", "gated", "natural"])
    group.add_argument("--pair-type", choices=["f32", "f16", "q8_0"])
    group.add_argument("--context-length", type=int, help="tokens that softmax layers hold")


def add_text_options(parser: argparse.ArgumentParser) -> None:
    text = parser.add_mutually_exclusive_group(required=True)
    text.add_argument("-p", "--prompt", help="the text")
    text.add_argument("-f", "--file", type=Path, help="a file with the text; - is standard input")


def text_of(options: argparse.Namespace) -> str:
    if options.prompt is not None:
        return str(options.prompt)
    try:
        return sys.stdin.read() if str(options.file) == "-" else str(options.file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise UsageError(f"{options.file}: byte {error.start}: found no UTF-8, wanted text") from None


def load_model(options: argparse.Namespace) -> Model:
    """Loads behind a progress bar."""
    where = {"threads": options.threads, "device": options.device, "gpu_layers": options.gpu_layers}
    if options.model is None:
        if options.adapter is not None:
            raise UsageError("adapter: found without a model, wanted the --model that it is for")
        return Model.default(**where)
    size = options.model.stat().st_size if options.model.is_file() else 0
    with tqdm(total=size, desc="loading", unit="B", unit_scale=True, leave=False, file=sys.stderr, disable=None) as bar:
        return Model(options.model, options.adapter, progress=lambda done: bar.update(done - bar.n) and None, **where)


def session_options(options: argparse.Namespace) -> SessionOptions:
    names = ("window_size", "chunk_size", "sparse_size", "sparse_scope", "policy", "mixing", "pair_type")
    given = {name: getattr(options, name) for name in (*names, "context_length")}
    return {name: value for name, value in given.items() if value is not None}  # type: ignore[return-value]


def bar(total: int, what: str) -> tqdm[None]:
    return tqdm(total=total, desc=what, unit=" tokens", leave=False, file=sys.stderr, disable=None)


def read(session: Session, tokens: Sequence[int], what: str = "reading") -> float:
    """Reads a prompt behind a progress bar; returns the seconds it took."""
    begin = time.perf_counter()
    with bar(len(tokens), what) as progress:
        session.append(tokens, progress=lambda done: progress.update(done - progress.n) and None)
    return time.perf_counter() - begin


def megabytes(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"

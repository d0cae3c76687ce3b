"""`lola-cpp doctor`: what this installation is, whether it works, what is missing and how to get it."""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import sys
import time
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING

from .. import _core
from ..model import Model

if TYPE_CHECKING:
    from .shared import Subcommands

# Optional packages: what they are for, and the extra that brings them.
_OPTIONAL = {
    "llguidance": ("grammars and JSON schemas", "grammar"),
    "huggingface_hub": ("Llama.from_pretrained", "hub"),
    "lm_eval": ("tasks of lm-evaluation-harness", "eval"),
    "gguf": ("conversion", "convert"),
    "safetensors": ("conversion", "convert"),
    "torch": ("conversion", "convert"),
}
_FASTER = ("avx512", "avx2", "neon")


def add(commands: Subcommands) -> None:
    parser = commands.add_parser("doctor", help="check this installation")
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    print(f"lola_cpp {_core.__version__}, compiled by {_core.compiler}")
    print(f"Python {platform.python_version()} on {platform.platform()}")
    working = _check_processor() and _check_model()
    _show_gpus()
    for name, (purpose, extra) in _OPTIONAL.items():
        if util.find_spec(name) is None:
            print(f"[missing] {name}, for {purpose}: pip install 'lola-cpp[{extra}]'")
        else:
            print(f"[ok] {name} {_version(name)}, for {purpose}")
    return 0 if working else 1


def _check_processor() -> bool:
    available = _core.testing.available_isas()
    forced = os.environ.get("LOLA_FORCE_ISA")
    if forced and forced not in available:
        print(f"[wrong] LOLA_FORCE_ISA={forced}: found {', '.join(available)}; unset it or name one of these")
        return False
    if forced and forced != available[0]:
        print(f"[slow] LOLA_FORCE_ISA={forced} is set; without it {available[0]} would be used")
    if not set(available) & set(_FASTER):
        print(f"[slow] instruction sets: {', '.join(available)}; no vector code for {platform.machine()} was built")
    else:
        print(f"[ok] instruction sets: {', '.join(available)}")
    return True


def _check_model() -> bool:
    try:
        model = Model.default()
        begin = time.perf_counter()
        session = model.session()
        session.append("def add(first, second):\n" * 20)
        count = sum(1 for _ in session.generate(max_tokens=32, stop_at_end=False))
        seconds = time.perf_counter() - begin
    except (_core.LolaError, OSError) as error:
        print(f"[wrong] the embedded model does not run: {error}", file=sys.stdout)
        return False
    print(f"[ok] device {model.info.backend} ({os.cpu_count()} logical processors)")
    print(f"[ok] the embedded model read a prompt and wrote {count} tokens in {seconds:.2f} s")
    return True


def _show_gpus() -> None:
    try:
        gpus = _core.testing.gpus()
    except _core.UnsupportedError as error:
        nvcc = shutil.which("nvcc") or "not found: install NVIDIA's CUDA toolkit first"
        print(f"[missing] {error}\n          nvcc: {nvcc}; driver: {_driver()}")
        return
    except _core.DeviceError as error:
        print(f"[missing] {error}; driver: {_driver()}")
        return
    for name, (major, minor), free, total in gpus:
        state = "ok" if major >= 8 else "too old"
        print(
            f"[{state}] device cuda: {name}, compute capability {major}.{minor}, "
            f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free; driver: {_driver()}"
        )


def _driver() -> str:
    """The version of NVIDIA's kernel driver."""
    try:
        found = re.search(r"\d+\.[\d.]+", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        found = None
    return found.group() if found else "not found"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "(version unknown)"

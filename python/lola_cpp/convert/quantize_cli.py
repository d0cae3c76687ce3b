"""Command line of the quantizer: quantize.py MODEL MIXTURE -o OUTPUT."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lola_cpp._core import LolaError
from lola_cpp.convert.mixtures import MIXTURES
from lola_cpp.convert.quantize import quantize


def main(arguments: Sequence[str] | None = None) -> int:
    """Quantizes one model; the exit status is 0, or 1 after an error message."""
    options = _parser().parse_args(arguments)
    try:
        quantize(
            options.model,
            options.output,
            options.mixture.upper(),
            importance=options.imatrix,
            overrides=dict(options.tensor_type),
            allow_requantize=options.allow_requantize,
            threads=options.threads,
            progress=sys.stderr.isatty(),
        )
    except (LolaError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="quantize.py", description="Quantizes a GGUF model.")
    parser.add_argument("model", type=Path, help="GGUF file in F32, F16 or BF16")
    parser.add_argument("mixture", help=f"one of {', '.join(MIXTURES)}")
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--imatrix", type=Path, help="importance matrix, GGUF or .dat")
    parser.add_argument(
        "--tensor-type",
        type=_override,
        action="append",
        default=[],
        metavar="PATTERN=FORMAT",
        help="format of the tensors whose names a regular expression matches",
    )
    parser.add_argument("--allow-requantize", action="store_true", help="accept a model that is quantized already")
    parser.add_argument("--threads", type=int, default=0, help="0 for one a core")
    return parser


def _override(text: str) -> tuple[str, str]:
    pattern, separator, kind = text.rpartition("=")
    if not separator or not pattern:
        raise argparse.ArgumentTypeError(f"found {text!r}, wanted PATTERN=FORMAT")
    return pattern, kind.upper()

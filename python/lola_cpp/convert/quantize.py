"""Quantizes a model: a GGUF file in, a smaller GGUF file out."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import tqdm

from lola_cpp import _core
from lola_cpp._core import GgufFile, UsageError
from lola_cpp.convert.importance import Importance, read_importance
from lola_cpp.convert.mixtures import MIXTURES, planned_formats

_FLOATS = ("F32", "F16", "BF16")
# Matrices that the imatrix tool does not measure.
_NEVER_MEASURED = ("token_embd.weight", "output.weight")

PlanRow = tuple[str, str, npt.NDArray[np.float32] | None]


def quantize(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    mixture: str,
    *,
    importance: str | os.PathLike[str] | None = None,
    overrides: Mapping[str, str] | None = None,
    allow_requantize: bool = False,
    threads: int = 0,
    progress: bool = False,
) -> None:
    """Writes `source` with its matrices in the formats of a mixture, "Q4_K_M". llama.cpp reads the file, too.

    Args:
        source: a GGUF model in F32, F16 or BF16; a split one is joined.
        output: appears when it is complete.
        mixture: one of lola_cpp.convert.mixtures.MIXTURES.
        importance: an importance matrix of llama.cpp's imatrix tool, GGUF or the older .dat.
        overrides: regular expression -> format, for tensors whose names it matches: {"attn_v": "Q8_0"}.
        allow_requantize: accept a source that is quantized already, whose errors add to the new ones.
        threads: 0 for one a core. The file does not depend on it.
        progress: show a progress bar.

    Raises:
        UsageError: an unknown mixture, one that needs an importance matrix, or a source that is quantized already.
        UnsupportedError: an architecture that does not run here, or a format that cannot be written.
        FormatError: a damaged file, or a weight that is not finite, by the tensor's name.
    """
    if mixture not in MIXTURES:
        raise UsageError(f"mixture: found {mixture!r}, wanted one of {', '.join(MIXTURES)}")
    chosen = MIXTURES[mixture]
    if chosen.needs_importance and importance is None:
        raise UsageError(f"mixture: {mixture} is of no use without an importance matrix, and none was given")
    _check_paths(Path(source), Path(output))
    file = GgufFile(source)
    formats = planned_formats(file, chosen, overrides or {}, has_importance=importance is not None)
    if not allow_requantize:
        _check_floats(file, formats)
    plan = _plan(formats, {} if importance is None else read_importance(importance), importance)
    total = sum(size for *_, size in file.tensors())
    with tqdm.tqdm(total=total, unit="B", unit_scale=True, desc=mixture, disable=not progress) as bar:
        _core.quantize_file(
            file, os.fspath(output), plan, chosen.file_type, threads, lambda done: bar.update(done - bar.n)
        )


def _check_paths(source: Path, output: Path) -> None:
    if not output.parent.is_dir():
        raise UsageError(f"cannot write '{output}': its folder does not exist")
    if output.exists() and source.exists() and output.samefile(source):
        raise UsageError(f"cannot write '{output}': it is the source")


def _check_floats(file: GgufFile, formats: Mapping[str, str]) -> None:
    for name, kind, *_ in file.tensors():
        if name in formats and kind not in _FLOATS:
            raise UsageError(
                f"'{file.path}': tensor '{name}': found {kind}, wanted one of {', '.join(_FLOATS)}: quantizing twice "
                "adds the errors (allow_requantize)"
            )


def _plan(formats: Mapping[str, str], importance: Importance, path: str | os.PathLike[str] | None) -> list[PlanRow]:
    for name, kind in formats.items():
        if importance and name not in importance and name not in _NEVER_MEASURED and kind not in _FLOATS:
            raise UsageError(f"'{path}': found no importance of tensor '{name}': it was measured with another model")
    return [(name, kind, importance.get(name) if kind not in _FLOATS else None) for name, kind in formats.items()]

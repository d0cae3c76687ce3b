"""The embedded model with keys `factor` times as large and queries as much smaller: the same attention, other norms.

    python -m reference.rescaled 2 base.gguf adapter.gguf       (in tests/)

What a policy says that looks at norms changes; what the model computes without a sparse cache does not.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np

from lola_cpp._core import GgufFile
from lola_cpp.convert.copying import copied_tensor, copy_keys
from lola_cpp.convert.output import OutputTensor, write_gguf
from lola_cpp.model import default_files

_KEYS = re.compile(r"blk\.\d+\.attn_(k\.weight(\.lora_b)?|lola_fq\.weight)")  # the maps see q and k, so they go against
_QUERIES = re.compile(r"blk\.\d+\.attn_(q\.weight(\.lora_b)?|lola_fk\.weight)")


def write_rescaled(factor: float, base: Path, adapter: Path) -> None:
    """factor: a power of two, so that every product stays exact."""
    import gguf

    for source, target in zip(default_files(), (base, adapter), strict=True):
        file = GgufFile(source)
        writer = gguf.GGUFWriter(None, file.get("general.architecture"))
        copy_keys(file, writer, lambda key: key)
        tensors = []
        for name, kind, shape, _ in file.tensors():
            scale = factor if _KEYS.fullmatch(name) else 1 / factor if _QUERIES.fullmatch(name) else 1.0
            data = scaled(file.tensor_data(name), kind, scale)
            tensor = copied_tensor(file, name, kind, tuple(shape))
            tensors.append(tensor if scale == 1.0 else OutputTensor(name, tuple(shape), kind, lambda data=data: data))
        write_gguf(writer, target, tensors)


def scaled(data: Any, kind: str, scale: float) -> Any:
    if kind == "Q8_0":  # blocks of a half-precision scale and 32 integers
        blocks = np.array(data).reshape(-1, 34)
        blocks[:, :2] = (blocks[:, :2].copy().view(np.float16) * np.float16(scale)).view(np.uint8)
        return blocks
    numbers = {"F32": np.float32, "F16": np.float16}
    return np.array(data).view(numbers[kind]) * numbers[kind](scale) if scale != 1.0 else data


if __name__ == "__main__":
    write_rescaled(float(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))

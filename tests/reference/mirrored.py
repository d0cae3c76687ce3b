"""The embedded model with the same attention, where small keys attract as much as large ones did.

    python -m reference.mirrored base.gguf adapter.gguf       (in tests/)

Every head gets 256 more dimensions, which no query, no feature map and no rotation looks at. What the keys hold there
is E u, u the normed hidden state: |u|^2 is the same for all tokens, and so with E'E = 6 (largest(A) - A), where
|k|^2 = u'Au, the norms become |k|^2 + |Eu|^2 = constant - 5 |k|^2: the weight of a pair, ||k||^2 / 2d, is mirrored.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import gguf
import numpy as np

from lola_cpp._core import GgufFile
from lola_cpp.convert.copying import copy_keys
from lola_cpp.convert.output import OutputTensor, write_gguf
from lola_cpp.model import default_files

Tensors = dict[str, np.ndarray]

DIM, MORE = 64, 256  # of a head, and of the hidden state
WIDE = DIM + MORE
QUERY_SCALE = (WIDE / DIM) ** 0.5  # logits are divided by sqrt(d)
LENGTHS = ("llama.attention.key_length", "llama.attention.value_length", "adapter.lola.base.key_length")


def tensors_of(file: GgufFile) -> Tensors:
    def values(name: str, kind: str, shape: tuple[int, ...]) -> np.ndarray:
        data = np.array(file.tensor_data(name)).reshape(shape[0], -1)
        return gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind]).reshape(shape)

    return {name: values(name, kind, tuple(shape)) for name, kind, shape, _ in file.tensors()}


def widened(rows: np.ndarray, extra: np.ndarray | None = None) -> np.ndarray:
    """[heads * DIM, n] -> [heads * WIDE, n], with zeros or extra [heads, MORE, n]."""
    heads = rows.reshape(-1, DIM, rows.shape[1])
    extra = np.zeros((len(heads), MORE, rows.shape[1])) if extra is None else extra
    return np.concatenate([heads, extra], axis=1).reshape(-1, rows.shape[1])


def mirror(base: Tensors, adapter: Tensors, layer: int) -> None:
    name = f"blk.{layer}.attn_"
    scale = base[name + "norm.weight"].astype(np.float64)
    low_rank = 16.0 / 8 * adapter[name + "k.weight.lora_b"] @ adapter[name + "k.weight.lora_a"]
    key = ((base[name + "k.weight"] + low_rank) * scale).reshape(-1, DIM, MORE)  # acts on u
    extra = []
    for head in key:
        values, vectors = np.linalg.eigh(head.T @ head)
        root = np.sqrt(np.maximum(6 * (values.max() - values), 0))
        extra.append((vectors * root) @ vectors.T / scale)
    base[name + "k.weight"] = widened(base[name + "k.weight"], np.array(extra))
    adapter[name + "k.weight.lora_b"] = widened(adapter[name + "k.weight.lora_b"])
    base[name + "q.weight"] = widened(base[name + "q.weight"]) * QUERY_SCALE
    adapter[name + "q.weight.lora_b"] = widened(adapter[name + "q.weight.lora_b"]) * QUERY_SCALE
    base[name + "v.weight"] = widened(base[name + "v.weight"])
    adapter[name + "v.weight.lora_b"] = widened(adapter[name + "v.weight.lora_b"])
    base[name + "output.weight"] = widened(base[name + "output.weight"].T).T
    adapter[name + "output.weight.lora_a"] = widened(adapter[name + "output.weight.lora_a"].T).T
    for which, factor in (("q", 1 / QUERY_SCALE), ("k", 1.0)):
        maps = adapter[name + f"lola_f{which}.weight"] * factor  # [heads, f, d]
        adapter[name + f"lola_f{which}.weight"] = np.pad(maps, ((0, 0), (0, 0), (0, MORE)))


def write_mirrored(base_path: Path, adapter_path: Path) -> None:
    files = [GgufFile(path) for path in default_files()]
    base, adapter = map(tensors_of, files)
    for layer in range(6):
        mirror(base, adapter, layer)
    for file, tensors, path in zip(files, (base, adapter), (base_path, adapter_path), strict=True):
        writer = gguf.GGUFWriter(None, "llama")
        copy_keys(file, writer, lambda key: None if key in LENGTHS else key)
        for key in LENGTHS:
            if key in file.keys():  # noqa: SIM118
                writer.add_uint32(key, WIDE)
        outputs = []
        for name, values in tensors.items():
            attention = re.search(r"attn_[qkvol]", name) is not None
            kind = "F32" if attention or values.ndim == 1 or "adapter.type" in file.keys() else "Q8_0"  # noqa: SIM118
            data = gguf.quants.quantize(np.float32(values), gguf.GGMLQuantizationType[kind])
            outputs.append(OutputTensor(name, values.shape, kind, lambda data=data: data))
        write_gguf(writer, path, outputs)


if __name__ == "__main__":
    write_mirrored(Path(sys.argv[1]), Path(sys.argv[2]))

"""The tiny model, its adapter and their files, with anything edited before it reaches the disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.gguf_writer import GGUFValue, TensorInfo

from lola_cpp import LolaError, Model
from reference import tiny_gguf
from reference.tiny_gguf import TinyAdapter, tiny

Edit = Callable[[gguf.GGUFWriter], None]
Kind = gguf.GGUFValueType

CONFIG = tiny(layers=1, hidden=8, ffn=8, head_dim=4, heads=2, kv_heads=1)
ADAPTER = TinyAdapter(feature_dim=2, window_size=2, chunk_size=2, sparse_size=1, lora_rank=2, softmax_layers=())
ODD_VALUES: dict[str, GGUFValue] = {
    "string": GGUFValue("x", Kind.STRING),
    "empty string": GGUFValue("", Kind.STRING),
    "no UTF-8": GGUFValue(b"\xff\xfe", Kind.STRING),
    "bool": GGUFValue(True, Kind.BOOL),
    "negative": GGUFValue(-1, Kind.INT32),
    "huge": GGUFValue(2**64 - 1, Kind.UINT64),
    "float": GGUFValue(0.5, Kind.FLOAT32),
    "nan": GGUFValue(float("nan"), Kind.FLOAT32),
    "infinity": GGUFValue(float("inf"), Kind.FLOAT64),
    "array of numbers": GGUFValue([1, 2], Kind.ARRAY, Kind.UINT32),
    "array of strings": GGUFValue(["x"], Kind.ARRAY, Kind.STRING),
    "array of floats": GGUFValue([float("nan")], Kind.ARRAY, Kind.FLOAT32),
}
# Odd values that are right for a key of that kind.
FITTING = {
    "int": (),
    "float": ("float",),
    "name": ("string", "empty string", "no UTF-8"),
    "choice": (),
    "bool": ("bool",),
    "layers": (),
}


def key(name: str, value: Any, kind: Kind, sub: Kind | None = None) -> Edit:
    def edit(writer: gguf.GGUFWriter) -> None:
        writer.kv_data[0][name] = GGUFValue(value, kind, sub)

    return edit


def without_key(name: str) -> Edit:
    return lambda writer: writer.kv_data[0].pop(name)


def without_tensor(name: str) -> Edit:
    return lambda writer: writer.tensors[0].pop(name)


def tensor(name: str, value: np.ndarray) -> Edit:
    def edit(writer: gguf.GGUFWriter) -> None:
        floats = np.ascontiguousarray(value, np.float32)
        kind = gguf.GGMLQuantizationType.F32
        writer.tensors[0][name] = TensorInfo(floats.shape, kind, floats.nbytes, floats)

    return edit


class Files:
    """Writes the tiny model and its adapter, edited before they reach the disk."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.model, self.adapter, self.state = (folder / f"{name}.gguf" for name in ("model", "adapter", "state"))
        self._monkeypatch, self._finish = monkeypatch, tiny_gguf._finish
        self.weights = tiny_gguf.random_weights(CONFIG, std=0.3)
        self.write_model(lambda _: None)
        self.write_adapter(lambda _: None)

    def write_model(self, edit: Edit) -> None:
        with self._editing(edit):
            tiny_gguf.write_model(self.model, CONFIG, self.weights)

    def write_adapter(self, edit: Edit) -> None:
        with self._editing(edit):
            tiny_gguf.write_adapter(self.adapter, CONFIG, ADAPTER, tiny_gguf.random_adapter(CONFIG, ADAPTER))

    def load(self) -> Model:
        return Model(self.model, self.adapter, threads=1)

    def _editing(self, edit: Edit) -> Any:
        def finish(writer: gguf.GGUFWriter) -> None:
            edit(writer)
            self._finish(writer)

        context = self._monkeypatch.context()
        patch = context.__enter__()
        patch.setattr(tiny_gguf, "_finish", finish)
        return _Closing(context)


class _Closing:
    def __init__(self, context: Any) -> None:
        self._context = context

    def __enter__(self) -> None: ...

    def __exit__(self, *exception: object) -> None:
        self._context.__exit__(*exception)


def assert_refused(call: Callable[[], object], *parts: str) -> None:
    with pytest.raises(LolaError) as caught:
        call()
    for part in parts:
        assert part in str(caught.value)

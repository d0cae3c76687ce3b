"""A loaded model."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from typing import TYPE_CHECKING, Literal

from . import _core
from .session import Session

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from typing_extensions import Unpack

    from .embedding import Pooling
    from .options import SessionOptions
    from .tokenizer import Tokenizer

PathLike = str | os.PathLike[str]

MAX_THREADS = 1024


def default_files() -> tuple[str, str]:
    """Base and adapter of the small model that ships with the package."""
    folder = resources.files(__package__).joinpath("models")
    return str(folder.joinpath("tiny.gguf")), str(folder.joinpath("tiny-lola.gguf"))


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What a model is. Sizes are counts, weight_bytes is in bytes."""

    name: str
    architecture: str
    layers: int
    softmax_layers: int
    dim: int
    ffn_dim: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    training_context: int
    weight_bytes: int
    has_lola: bool
    fingerprint: str
    backend: str


def _read_tokenizer(path: str) -> Tokenizer:
    from .tokenizer import Tokenizer  # numpy and tokenizers take most of the time of an import

    return Tokenizer.from_gguf(_core.GgufFile(path))


class Model:
    """A GGUF file, with or without a LoLA adapter. Immutable; any number of threads and sessions may share it.

    path     a GGUF file (of a split file: any part), plain or of the one-file form `lola-<architecture>`
    adapter  a LoLA adapter for it; None runs the file with the attention it has
    threads  None: the physical cores
    device   "cpu", or "cuda" where the package was built with it
    gpu_layers  for a GPU that is smaller than the model: this many layers, the last ones, run there, with the output
                matrix, and the others on the CPU. None: all; "auto": as many as leave a tenth of the free memory to
                sessions. State files do not depend on it
    progress    called with the bytes of weights loaded so far, of about info.weight_bytes; Ctrl-C takes effect there

    Raises FormatError for a damaged file or an adapter of another model, UnsupportedError for an architecture, tensor
    type or tokenizer that is not implemented, DeviceError where the device is missing or too small, FileNotFoundError.
    """

    def __init__(
        self,
        path: PathLike,
        adapter: PathLike | None = None,
        *,
        threads: int | None = None,
        device: str = "cpu",
        gpu_layers: int | Literal["auto"] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        for file in (path, adapter):
            if file is not None and not os.path.isfile(file):
                raise FileNotFoundError(f"no such file: {os.fspath(file)}")
        if threads is not None and not 1 <= threads <= MAX_THREADS:
            raise _core.UsageError(f"threads: found {threads}, wanted 1 to {MAX_THREADS}, or None")
        if device == "cpu" and gpu_layers is not None:
            raise _core.UsageError(f"gpu_layers: found {gpu_layers!r} with device 'cpu', wanted a GPU")
        self.path = os.fspath(path)
        adapter = "" if adapter is None else os.fspath(adapter)
        begin = time.perf_counter()
        # The vocabulary of a large model takes as long as its weights, and more memory before than after.
        with ThreadPoolExecutor(1) as beside:
            self._tokenizer = beside.submit(_read_tokenizer, self.path)
            self._core = _core.Model(self.path, adapter, device, threads or 0, gpu_layers, progress)
            # Whether the device works on while Python does something else: tokens are then submitted early.
            self.runs_behind = self._core.runs_behind
            self.load_seconds = time.perf_counter() - begin

    @classmethod
    def default(
        cls, *, threads: int | None = None, device: str = "cpu", gpu_layers: int | Literal["auto"] | None = None
    ) -> Model:
        """The small model that ships with the package, with its LoLA adapter."""
        return cls(*default_files(), threads=threads, device=device, gpu_layers=gpu_layers)

    @property
    def tokenizer(self) -> Tokenizer:
        """From the file's own metadata; FormatError or UnsupportedError where that has none that can be used."""
        return self._tokenizer.result()

    @cached_property
    def info(self) -> ModelInfo:
        return ModelInfo(**self._core.info)

    @cached_property
    def session_defaults(self) -> SessionOptions:
        """What session() uses where an option is not given."""
        return self._core.defaults

    def session(self, *, rewind_budget: int | None = None, **options: Unpack[SessionOptions]) -> Session:
        """A new conversation; see SessionOptions. Raises UsageError for an impossible configuration.

        rewind_budget  bytes that Session.rewind may use for copies of the memories; it then also keeps the tokens, 4
                       bytes each. 0 keeps the tokens alone and replays from the beginning; None keeps no history
        """
        return Session(self, _core.Session(self._core, dict(options)), rewind_budget=rewind_budget)

    def session_bytes(self, **options: Unpack[SessionOptions]) -> int:
        """Bytes that session(**options) takes at most: those of LoLA layers at once and at any length, those of softmax
        layers as it grows to context_length. Nothing is allocated.
        """
        return self._core.session_bytes(dict(options))

    def load_session(self, path: PathLike, *, rewind_budget: int | None = None) -> Session:
        """A session that Session.save wrote, continuing bit for bit on the same backend; its history begins here.

        Raises FormatError when the file is damaged or was saved with another model or adapter.
        """
        if not os.path.isfile(path):
            raise FileNotFoundError(f"no such file: {os.fspath(path)}")
        session, extra = self._core.load_session(os.fspath(path))
        return Session.from_saved(self, session, extra, source=os.fspath(path), rewind_budget=rewind_budget)

    def embed(
        self, text: str | Sequence[int], *, pooling: Pooling = "mean", **options: Unpack[SessionOptions]
    ) -> NDArray[np.float32]:
        """A text's hidden states after the final norm, from a session of its own; see Session.embed."""
        tokens = self.tokenize(text) if isinstance(text, str) else list(text)
        options.setdefault("context_length", max(1, len(tokens)))
        return self.session(**options).embed(tokens, pooling=pooling)

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Token ids of a text; add_special puts the model's begin-of-text token first where it has one."""
        return self.tokenizer.encode(text, add_special=add_special, parse_special=parse_special)

    def detokenize(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(tokens)

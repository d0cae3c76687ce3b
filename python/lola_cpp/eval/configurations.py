"""What is evaluated: a model with the options of its sessions."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

from .._core import UsageError
from ..model import Model, default_files
from ..options import SessionOptions
from ..session import Session

_OPTIONS = frozenset(get_type_hints(SessionOptions))
_INTEGERS = frozenset(("window_size", "chunk_size", "sparse_size", "policy_seed", "context_length"))


@dataclass(frozen=True)
class Configuration:
    """A model with session options; two that are equal answer alike.

    name     what tables show
    model    a GGUF file; None is the model inside the package
    adapter  a LoLA adapter; "none" runs the model's own softmax attention; None is the embedded model's, else none
    options  of Model.session, sorted by name
    device, threads, gpu_layers  as of Model
    """

    name: str
    model: str | None = None
    adapter: str | None = None
    device: str = "cpu"
    threads: int | None = None
    options: tuple[tuple[str, Any], ...] = ()
    gpu_layers: int | Literal["auto"] | None = None

    def load(self) -> Model:
        return _load(self.model, self.adapter, self.device, self.threads, self.gpu_layers)

    @property
    def active(self) -> int:
        """How many sessions side by side use the device well."""
        return 8 if self.device == "cpu" else 64

    def session(self, context_length: int) -> Session:
        """A new session; context_length is for the softmax layers, where the options name none."""
        return self.load().session(**{"context_length": context_length, **dict(self.options)})

    def describe(self) -> str:
        """The model and its memories in a line, for the heads of tables and pictures."""
        model = self.load()
        options = {**model.session_defaults, **dict(self.options)}
        names = [Path(file).name for file in (self.model, self.adapter) if file not in (None, "none")]
        files = " with ".join(names) or "the embedded model"
        if not model.info.has_lola:
            return f"{files} on {self.device}, softmax attention"
        sparse = f"{options['policy']}, lambda {options['sparse_size']} per {options['sparse_scope']}"
        return (
            f"{files} on {self.device}; where nothing else is said, window {options['window_size']} in chunks of "
            f"{options['chunk_size']}, {sparse}, {options['mixing']}, pairs {options['pair_type']}"
        )

    def with_options(self, **options: Any) -> Configuration:
        """The same with some options changed, named after those."""
        if unknown := sorted(set(options) - _OPTIONS):
            raise UsageError(f"option: found {unknown[0]!r}, wanted one of {', '.join(sorted(_OPTIONS))}")
        name = ", ".join(f"{key} {value}" for key, value in options.items()) or self.name
        return replace(self, name=name, options=tuple(sorted({**dict(self.options), **options}.items())))

    def softmax(self) -> Configuration:
        """The base model with its own attention."""
        return replace(self, name="softmax", adapter="none", options=())


@functools.lru_cache(maxsize=4)
def _load(
    path: str | None, adapter: str | None, device: str, threads: int | None, gpu_layers: int | Literal["auto"] | None
) -> Model:
    base, own = default_files() if path is None else (path, None)
    chosen = None if adapter == "none" else adapter or own
    return Model(base, chosen, device=device, threads=threads, gpu_layers=gpu_layers)


def parse_assignment(text: str) -> tuple[str, list[Any]]:
    """name=value,value of session options, as on the command line."""
    name, equals, values = text.partition("=")
    name = name.replace("-", "_")
    if not equals or not values or name not in _OPTIONS:
        raise UsageError(f"found {text!r}, wanted NAME=VALUE[,VALUE] with one of {', '.join(sorted(_OPTIONS))}")
    try:
        return name, [int(value) if name in _INTEGERS else value for value in values.split(",")]
    except ValueError:
        raise UsageError(f"{name}: found {values!r}, wanted whole numbers") from None


def combinations(base: Configuration, variations: Sequence[tuple[str, list[Any]]]) -> list[Configuration]:
    """Every combination of the values; what differs only in how an absent sparse cache is kept stands once."""
    names = [name for name, _ in variations]
    found: dict[Any, Configuration] = {}
    for values in itertools.product(*(choices for _, choices in variations)):
        chosen = base.with_options(**dict(zip(names, values, strict=True)))
        options = dict(chosen.options)
        if options.get("sparse_size") == 0 or options.get("policy") == "none":
            key = {k: v for k, v in options.items() if k not in ("policy", "sparse_scope", "sparse_size")}
        else:
            key = {**options, "sparse": True}
        found.setdefault(tuple(sorted(key.items())), chosen)
    return list(found.values())

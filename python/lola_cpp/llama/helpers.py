"""The small classes that code for llama-cpp-python imports beside Llama."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..grammar import Grammar
from ..session import Snapshot

LogitsProcessor = Callable[[NDArray[np.int64], NDArray[np.float32]], NDArray[np.float32]]
StoppingCriteria = Callable[[NDArray[np.int64], NDArray[np.float32]], bool]


class LogitsProcessorList(list[LogitsProcessor]):
    """Processors, called one after the other with ids [tokens] and logits [vocabulary]."""

    def __call__(self, input_ids: NDArray[np.int64], scores: NDArray[np.float32]) -> NDArray[np.float32]:
        for processor in self:
            scores = processor(input_ids, scores)
        return scores


class StoppingCriteriaList(list[StoppingCriteria]):
    """Criteria; one that is met stops."""

    def __call__(self, input_ids: NDArray[np.int64], logits: NDArray[np.float32]) -> bool:
        met = [criterion(input_ids, logits) for criterion in self]
        return any(met)


class MinTokensLogitsProcessor:
    """Forbids the end of the text before `min_tokens` tokens."""

    def __init__(self, min_tokens: int, token_eos: int) -> None:
        self.min_tokens = min_tokens
        self.token_eos = token_eos
        self.prompt_tokens: int | None = None

    def __call__(self, input_ids: NDArray[np.int64], scores: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.prompt_tokens is None:
            self.prompt_tokens = len(input_ids)
        if len(input_ids) - self.prompt_tokens < self.min_tokens:
            scores[self.token_eos] = -np.inf
        return scores


class LlamaGrammar:
    """A grammar (GBNF) or a JSON schema. `verbose` is accepted and prints nothing."""

    def __init__(self, grammar: Grammar) -> None:
        self.grammar = grammar

    @classmethod
    def from_string(cls, grammar: str, verbose: bool = True) -> LlamaGrammar:
        return cls(Grammar("gbnf", grammar))

    @classmethod
    def from_file(cls, file: str | Path, verbose: bool = True) -> LlamaGrammar:
        return cls.from_string(Path(file).read_text(encoding="utf-8"))

    @classmethod
    def from_json_schema(cls, json_schema: str, verbose: bool = True) -> LlamaGrammar:
        return cls(Grammar.json_schema(json_schema))


@dataclass(frozen=True)
class LlamaState:
    """What Llama.save_state gives and load_state takes, in memory. llama_state_size is in bytes."""

    snapshot: Snapshot
    input_ids: NDArray[Any]
    n_tokens: int
    llama_state_size: int
    seed: int

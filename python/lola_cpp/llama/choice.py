"""The sampling options of llama-cpp-python, as a sampler of this library."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .._core import Sampler
from ..grammar import Constraint
from ..session import Session
from . import arguments
from .helpers import LlamaGrammar, StoppingCriteriaList

if TYPE_CHECKING:
    from .llama import Llama


class Choice:
    """How one generation chooses its tokens.

    options: temp, top_k, top_p, min_p, repeat_penalty, frequency_penalty, presence_penalty, seed, logit_bias, grammar,
    logits_processor, stopping_criteria; TypeError for others.
    """

    def __init__(self, llama: Llama, options: Mapping[str, Any], *, top_logprobs: int = 0) -> None:
        own = dict(options)
        seed = own.pop("seed", None)
        grammar: LlamaGrammar | None = own.pop("grammar", None)
        processors = own.pop("logits_processor", None) or []
        self.processors = [processors] if callable(processors) and not isinstance(processors, list) else processors
        self.criteria: StoppingCriteriaList | None = own.pop("stopping_criteria", None)
        self.extra: list[int] = []  # tokens that the caller wants read after the next one
        self.top = top_logprobs
        self.constraint = (
            None if grammar is None else Constraint(grammar.grammar, llama._loaded, start=llama._running.position)
        )
        self.sampler = Sampler(
            temperature=max(0.0, own.pop("temp", 0.8)),
            top_k=max(0, own.pop("top_k", 40)),
            top_p=own.pop("top_p", 0.95),
            min_p=own.pop("min_p", 0.05),
            repetition_penalty=own.pop("repeat_penalty", 1.0),
            frequency_penalty=own.pop("frequency_penalty", 0.0),
            presence_penalty=own.pop("presence_penalty", 0.0),
            penalty_window=llama.last_n_tokens_size,
            logit_bias={int(token): float(bias) for token, bias in (own.pop("logit_bias", None) or {}).items()},
            seed=llama._seeds.getrandbits(32) if seed is None else seed % 2**64,
        )
        arguments.check_sampling(own)

    def adjust(self, session: Session) -> NDArray[np.float32] | None:
        if not self.processors and self.constraint is None:
            return None
        logits = session.logits
        for processor in self.processors:
            logits = processor(np.array(session.tokens, dtype=np.int64), logits)
        if self.constraint is not None:
            self.constraint.apply(logits)
        return logits

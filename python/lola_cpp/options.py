"""Keyword options shared by several calls, as typed dictionaries: an unknown one raises TypeError."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypedDict

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ._core import Sampler
    from .grammar import Constraint, Grammar

    LogitsProcessor = Callable[[NDArray[np.int64], NDArray[np.float32]], NDArray[np.float32]]
    StoppingCriterion = Callable[[NDArray[np.int64], NDArray[np.float32]], bool]

Policy = Literal["none", "first", "recent", "random", "self_recall", "weighted_recall", "self_recall_after"]


class SessionOptions(TypedDict, total=False):
    """How a session remembers. What is left out comes from the model's adapter.

    window_size     eta: the most recent pairs kept exactly; a multiple of chunk_size
    chunk_size      C: pairs leave the window at positions divisible by it; 1 is the strict sliding window
    sparse_size     lambda: hard-to-recall pairs kept exactly per owner; 0 is plain linear attention plus window
    sparse_scope    owner of a sparse cache: each query head ("head") or each kv head ("group": H/G times less memory)
    policy          which pairs the sparse cache keeps
    mixing          how exact pairs weigh against the linear term
    pair_type       storage of keys and values in window, sparse cache and KV cache
    policy_seed     of the policy "random"
    context_length  tokens that the KV cache of softmax layers holds; LoLA layers have no limit
    """

    window_size: int
    chunk_size: int
    sparse_size: int
    sparse_scope: Literal["head", "group"]
    policy: Policy
    mixing: Literal["lolcats", "gated", "natural"]
    pair_type: Literal["f32", "f16", "q8_0"]
    policy_seed: int
    context_length: int


class SamplingOptions(TypedDict, total=False):
    """How the next token is chosen. The default is greedy.

    temperature         0 takes the most likely token
    top_k               keep the k most likely tokens; 0 keeps all
    top_p               keep the most likely tokens whose probabilities sum to this
    min_p               keep tokens at least this fraction as likely as the most likely one
    repetition_penalty  divides positive and multiplies negative logits of recent tokens; 1 is off
    frequency_penalty   subtracted from a recent token's logit for each time it occurred
    presence_penalty    subtracted once
    penalty_window      tokens that the penalties look back on; -1 is all
    logit_bias          added to the logits of these token ids
    seed                None draws a fresh one from the operating system
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    penalty_window: int
    logit_bias: Mapping[int, float]
    seed: int | None


class GenerationOptions(SamplingOptions, total=False):
    """How a generation runs, for every call that starts one.

    max_tokens         None: until end of text, without limit
    stop               generation ends before these strings, across token borders too; the session has seen their tokens
    stop_at_end        False: goes on after end-of-text tokens
    top_logprobs       how many of the most likely tokens to report with each
    sampler            goes on with this one (of a loaded or forked session, say) in place of sampling options
    grammar            the text must follow it; a Constraint (of a forked or rewound session, say) goes on from there
    logits_processors  each is called with ids [tokens] and logits [vocabulary] and returns new logits, before grammar,
                       bias, penalties and filters; ids are the session's tokens where it keeps a history (see
                       Model.session), else the prompt of this generation and what it wrote
    stopping_criteria  each is called with the same arguments after a token was chosen; True ends the generation
    """

    max_tokens: int | None
    stop: str | Sequence[str]
    stop_at_end: bool
    top_logprobs: int
    sampler: Sampler | None
    grammar: Grammar | Constraint | None
    logits_processors: Sequence[LogitsProcessor]
    stopping_criteria: Sequence[StoppingCriterion]

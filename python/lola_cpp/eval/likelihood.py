"""Perplexity by position, and the divergence of one configuration's predictions from another's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .._core import UsageError
from ..passes import advance
from ..session import Session
from .configurations import Configuration
from .progress import bar
from .statistics import mean_and_error

Floats = NDArray[np.float64]

_TEXT_OF_TOKEN = 16  # characters, rather more than a token takes


@dataclass(frozen=True)
class PositionRow:
    """A mean over the tokens at positions first to last, with its standard error over the segments of the text."""

    configuration: str
    first: int
    last: int
    mean: float
    error: float
    same_choice: float | None = None  # divergence: the share of tokens where both find the same one most likely

    @property
    def perplexity(self) -> float:
        return math.exp(self.mean)


def segments_of(configuration: Configuration, text: str, length: int, count: int) -> list[list[int]]:
    """Up to `count` runs of `length` tokens, spread over a text. UsageError where it has not one."""
    if length < 2 or count < 1:
        raise UsageError(f"length and segments: found {length} and {count}, wanted at least 2 and 1")
    tokenizer = configuration.load().tokenizer
    opening = tokenizer.encode("")  # begin of text, where the model has one
    body = length - len(opening)
    room = _TEXT_OF_TOKEN * length
    if len(text) > count * room:  # much of it would be encoded for nothing
        spacing = len(text) // count
        runs = [text[i * spacing : i * spacing + room] for i in range(count)]
        bodies = [tokenizer.encode(run, add_special=False, parse_special=False)[:body] for run in runs]
    else:
        tokens = tokenizer.encode(text, add_special=False, parse_special=False)
        bodies = [tokens[i : i + body] for i in range(0, len(tokens), body)][:count]
    segments = [opening + tokens for tokens in bodies if len(tokens) == body]
    if not segments:
        raise UsageError(f"text: found too little, wanted at least {body} tokens for one segment")
    return segments


def measure_perplexity(configurations: Sequence[Configuration], segments: Sequence[list[int]]) -> list[PositionRow]:
    """Negative log-likelihood of the tokens given all before them, by position."""
    rows = []
    length = len(segments[0])
    with bar(len(configurations) * len(segments) * length, "scoring") as progress:
        for configuration in configurations:
            losses = []
            for segment in segments:
                session = configuration.session(length)
                losses.append(-session.score(segment).astype(np.float64)[1:])
                progress.update(length)
            rows += _by_position(configuration.name, np.array(losses), np.arange(1, length))
    return rows


def measure_divergence(
    reference: Configuration, others: Sequence[Configuration], segments: Sequence[list[int]], *, every: int
) -> list[PositionRow]:
    """KL(reference || other) of the next token after every `every` tokens, by position, in nats."""
    vocabulary = reference.load().info.vocabulary
    for other in others:
        if other.load().info.vocabulary != vocabulary:
            raise UsageError(f"{other.name}: found {other.load().info.vocabulary} tokens, wanted {vocabulary}")
    if not 1 <= every <= len(segments[0]):
        raise UsageError(f"every: found {every}, wanted 1 to {len(segments[0])}")
    at = np.arange(every, len(segments[0]) + 1, every)
    found: dict[str, list[tuple[Floats, Floats]]] = {other.name: [] for other in others}
    with bar(len(segments) * len(at) * every, "comparing") as progress:
        for begin in range(0, len(segments), reference.active):
            part = segments[begin : begin + reference.active]
            sessions = [[c.session(len(segment)) for segment in part] for c in (reference, *others)]
            steps = []  # of each place: of each other configuration: (KL, same choice) of each segment
            for end in at:
                steps.append(_compare(sessions, [segment[end - every : end] for segment in part]))
                progress.update(every * len(part))
            for i, other in enumerate(others):
                for kl, same in np.array([step[i] for step in steps]).transpose(2, 1, 0):
                    found[other.name].append((kl, same))
    rows = []
    for name, pairs in found.items():
        rows += _by_position(name, np.array([kl for kl, _ in pairs]), at, np.array([same for _, same in pairs]))
    return rows


def _compare(sessions: Sequence[Sequence[Session]], tokens: Sequence[list[int]]) -> list[tuple[Floats, Floats]]:
    """Of each configuration but the first, by session: KL and same choice against the first's, after the tokens.

    sessions  of each configuration, as many as there are runs of tokens
    """
    logs = []
    for mine in sessions:
        for session, part in zip(mine, tokens, strict=True):
            session.pending.extend(part)
        advance(mine)
        logs.append(_log_softmax(np.array([session.logits for session in mine], np.float64)))
    first = logs[0]
    return [
        ((np.exp(first) * (first - log)).sum(axis=1), (first.argmax(axis=1) == log.argmax(axis=1)).astype(np.float64))
        for log in logs[1:]
    ]


def _log_softmax(logits: Floats) -> Floats:
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def _by_position(name: str, values: Floats, at: NDArray[np.int64], same: Floats | None = None) -> list[PositionRow]:
    """values [segments, positions]; the borders of the rows are powers of two from 64 on, but for the end."""
    rows = []
    low, high, end = 1, 64, int(at[-1])
    while low <= end:
        high += high == end  # the last position is no row of its own
        inside = (at >= low) & (at < high)
        if inside.any():
            mean, error = mean_and_error(values[:, inside].mean(axis=1).tolist())
            agreement = None if same is None else float(same[:, inside].mean())
            rows.append(PositionRow(name, low, min(high - 1, end), mean, error, agreement))
        low, high = high, 2 * high
    mean, error = mean_and_error(values.mean(axis=1).tolist())
    return [
        *rows,
        PositionRow(name, int(at[0]), end, mean, error, None if same is None else float(same.mean())),
    ]

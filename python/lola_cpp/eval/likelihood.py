"""Perplexity by position, and the divergence of one configuration's predictions from another's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .._core import UsageError
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
        for segment in segments:
            sessions = [c.session(len(segment)) for c in (reference, *others)]
            steps = []
            for end in at:
                steps.append(_compare(sessions, segment[end - every : end]))
                progress.update(every)
            for i, other in enumerate(others):
                kl, same = zip(*(step[i] for step in steps), strict=True)
                found[other.name].append((np.array(kl), np.array(same)))
    rows = []
    for name, pairs in found.items():
        rows += _by_position(name, np.array([kl for kl, _ in pairs]), at, np.array([same for _, same in pairs]))
    return rows


def _compare(sessions: Sequence[Session], tokens: list[int]) -> list[tuple[float, float]]:
    """(KL, same choice) of every session but the first against the first, after reading the tokens."""
    logs = []
    for session in sessions:
        session.append(tokens)
        logs.append(_log_softmax(session.logits.astype(np.float64)))
    first = logs[0]
    return [(float(np.exp(first) @ (first - log)), float(first.argmax() == log.argmax())) for log in logs[1:]]


def _log_softmax(logits: Floats) -> Floats:
    shifted = logits - logits.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))


def _by_position(name: str, values: Floats, at: NDArray[np.int64], same: Floats | None = None) -> list[PositionRow]:
    """values [segments, positions]; the borders of the rows are powers of two from 64 on."""
    rows = []
    low, high = 1, 64
    while low <= at[-1]:
        inside = (at >= low) & (at < high)
        if inside.any():
            mean, error = mean_and_error(values[:, inside].mean(axis=1).tolist())
            agreement = None if same is None else float(same[:, inside].mean())
            rows.append(PositionRow(name, low, min(high - 1, int(at[-1])), mean, error, agreement))
        low, high = high, 2 * high
    mean, error = mean_and_error(values.mean(axis=1).tolist())
    return [
        *rows,
        PositionRow(name, int(at[0]), int(at[-1]), mean, error, None if same is None else float(same.mean())),
    ]

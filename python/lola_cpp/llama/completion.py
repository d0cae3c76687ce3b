"""Text completions as dictionaries and chunks in the shape of llama-cpp-python."""

from __future__ import annotations

import codecs
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .llama import Llama

Chunk = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """One sampled token: the bytes of its text, its log-probability and the most likely tokens with theirs."""

    id: int
    piece: bytes
    logprob: float
    top: Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Part:
    """Text that became certain, with the tokens it came from."""

    text: str
    steps: Sequence[Step]


class PartReader:
    """Cuts generated tokens into parts: as a rule one token each; more where one alone is no whole character.

    Bytes that may begin a stop string are held back. stopped: one was found.
    """

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = [stop.encode() for stop in stops]
        self._held: list[Step] = []
        self.stopped = False

    def push(self, step: Step) -> list[Part]:
        self._held.append(step)
        held = self._held_bytes()
        if _incomplete(held):
            return []
        if any(stop in held for stop in self._stops):
            self.stopped = True
            return self.finish()
        return self._certain(len(held) - self._beginning_of_stop(held))

    def finish(self) -> list[Part]:
        """What was held back, up to a stop string."""
        held = self._held_bytes()
        end = min((held.index(stop) for stop in self._stops if stop in held), default=len(held))
        decoder = codecs.getincrementaldecoder("utf-8")(errors="ignore")  # a character may lie across tokens
        parts, at = [], 0
        for step in self._held:
            piece = step.piece[: max(0, end - at)]
            at += len(step.piece)
            parts.append(Part(decoder.decode(piece), [step]))
            if at >= end:
                break
        self._held = []
        return parts

    def _held_bytes(self) -> bytes:
        return b"".join([step.piece for step in self._held])

    def _beginning_of_stop(self, text: bytes) -> int:
        """Length of the longest end of the text that begins a stop string."""
        sizes = (size for stop in self._stops for size in range(len(stop), 0, -1) if text.endswith(stop[:size]))
        return max(sizes, default=0)

    def _certain(self, end: int) -> list[Part]:
        """Whole characters of the held tokens that end at or before `end`."""
        parts, at, first = [], 0, 0
        while first < len(self._held):
            count = next(
                (n for n in range(1, len(self._held) - first + 1) if _decodes(self._held[first : first + n])), None
            )
            if count is None:
                break
            steps = self._held[first : first + count]
            piece = b"".join([step.piece for step in steps])
            at += len(piece)
            if at > end:
                break
            parts.append(Part(piece.decode(), steps))
            first += count
        self._held = self._held[first:]
        return parts


def _decodes(steps: Sequence[Step]) -> bool:
    try:
        b"".join([step.piece for step in steps]).decode()
    except UnicodeDecodeError:
        return False
    return True


def _incomplete(text: bytes) -> bool:
    """Whether the text ends within a character."""
    for back in range(1, min(4, len(text) + 1)):
        byte = text[-back]
        if byte & 0xC0 != 0x80:  # not a continuation
            return back < (2 if byte & 0xE0 == 0xC0 else 3 if byte & 0xF0 == 0xE0 else 4 if byte & 0xF8 == 0xF0 else 0)
    return False


class Completion:
    """One completion: run it with `stream` (chunks) or `whole` (one dictionary)."""

    def __init__(
        self,
        llama: Llama,
        steps: Iterator[Step],
        *,
        model: str,
        prompt: str | None,
        prompt_tokens: int,
        stops: Sequence[str],
        max_tokens: int | None,
        logprobs: int | None,
        echo: bool,
        suffix: str | None,
    ) -> None:
        self._llama = llama
        self._steps = steps
        self._head = {
            "id": f"cmpl-{uuid.uuid4()}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": model,
        }
        self._prompt = prompt or ""
        self._prompt_tokens = prompt_tokens
        self._stops = stops
        self._max_tokens = max_tokens
        self._logprobs = logprobs
        self._echo = echo
        self._suffix = suffix
        self._taken: list[Step] = []
        self._finish_reason = "length"

    def stream(self) -> Iterator[Chunk]:
        offset = len(self._prompt)
        for part in self._parts():
            logprobs = self._logprobs_of(part.steps, offset)
            offset += len(part.text)
            yield self._chunk(part.text, logprobs, None)
        yield self._chunk("", None, self._finish_reason)

    def whole(self) -> Chunk:
        text = "".join([part.text for part in self._parts()])
        logprobs = self._logprobs_of(self._taken, 0 if self._echo else len(self._prompt))
        if self._echo:
            text = self._prompt + text
        usage = {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": len(self._taken),
            "total_tokens": self._prompt_tokens + len(self._taken),
        }
        return {**self._chunk(text + (self._suffix or ""), logprobs, self._finish_reason), "usage": usage}

    def _parts(self) -> Iterator[Part]:
        reader = PartReader(self._stops)
        for step in self._steps:
            if self._llama.is_end(step.id):
                self._finish_reason = "stop"
                break
            self._taken.append(step)
            yield from reader.push(step)
            if reader.stopped:
                self._finish_reason = "stop"
                return
            if self._max_tokens is not None and len(self._taken) >= self._max_tokens:
                break
        else:  # a stopping criterion ended it
            self._finish_reason = "stop"
        yield from reader.finish()

    def _chunk(self, text: str, logprobs: dict[str, Any] | None, finish_reason: str | None) -> Chunk:
        choice = {"text": text, "index": 0, "logprobs": logprobs, "finish_reason": finish_reason}
        return {**self._head, "choices": [choice]}

    def _logprobs_of(self, steps: Sequence[Step], offset: int) -> dict[str, Any] | None:
        if self._logprobs is None:
            return None
        tokens, offsets, tops = [], [], []
        for step in steps:
            text = step.piece.decode(errors="ignore")
            top = {self._llama.piece(token).decode(errors="ignore"): logprob for token, logprob in step.top}
            tops.append({**top, text: step.logprob})
            tokens.append(text)
            offsets.append(offset)
            offset += len(text)
        return {
            "tokens": tokens,
            "text_offset": offsets,
            "token_logprobs": [step.logprob for step in steps],
            "top_logprobs": tops,
        }

"""Training text: files, folders and JSON lines, as one row of tokens cut into sequences of one length."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from lola_cpp._core import FormatError, UsageError
from lola_cpp.convert.optional import require

SUFFIXES = (".txt", ".md", ".py", ".jsonl")  # what of a folder is read
_HELD_OUT = 50  # every so many sequences one is kept for the reports
_TEXTS_AT_ONCE = 256


@dataclass(frozen=True)
class Sequences:
    """tokens [sequences, length]. The order of training is a function of seed and step alone, so a run can go on."""

    tokens: npt.NDArray[np.uint32]
    seed: int

    @property
    def held_out(self) -> npt.NDArray[np.uint32]:
        return self.tokens[::_HELD_OUT]

    @property
    def digest(self) -> str:
        return hashlib.sha256(np.ascontiguousarray(self.tokens).data).hexdigest()[:16]

    def batch(self, step: int, size: int) -> Tensor:
        """[size, length]: each sequence once in every epoch."""
        training = np.delete(np.arange(len(self.tokens)), np.s_[::_HELD_OUT])
        rows = []
        for number in range(step * size, (step + 1) * size):
            epoch, place = divmod(number, len(training))
            rows.append(training[_order(self.seed, epoch, len(training))[place]])
        return torch.from_numpy(self.tokens[rows].astype(np.int64))


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng((seed, epoch)).permutation(count)


def read_sequences(
    paths: Sequence[Path], model_folder: Path, *, length: int, vocab_size: int, seed: int, progress: bool = False
) -> Sequences:
    """Reads and tokenizes everything; documents stand one after the other, with the end-of-text token between.

    Raises:
        UsageError: a path is missing, or there is too little text.
        FormatError: a file is not UTF-8, a line no JSON object with "text" or "tokens", or a token out of range.
    """
    files = _find_files(paths)
    tokenizer: Any = None
    parts: list[npt.NDArray[np.uint32]] = []
    for documents in _batches(tqdm(_documents(files), desc="reading", unit=" texts", disable=not progress)):
        texts = [text for text, _ in documents if text is not None]
        if texts and tokenizer is None:
            tokenizer = require("transformers", extra="distill").AutoTokenizer.from_pretrained(model_folder)
        encoded = iter(tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else ())
        for text, tokens in documents:
            ids = tokens if text is None else [*next(encoded), *_end_of_text(tokenizer)]
            parts.append(_checked(ids, vocab_size))
    row = np.concatenate(parts) if parts else np.zeros(0, np.uint32)
    count = len(row) // length
    if count < 2:
        raise UsageError(f"data: found {len(row):,} tokens, wanted at least two sequences of {length}")
    return Sequences(row[: count * length].reshape(count, length), seed)


def _end_of_text(tokenizer: Any) -> list[int]:
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def _find_files(paths: Sequence[Path]) -> list[Path]:
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise UsageError(f"data: '{path}' does not exist")
        found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES and p.is_file())
        if not found:
            raise UsageError(f"data: '{path}' has no files ending in {', '.join(SUFFIXES)}")
        files += found
    return files


def _documents(files: Iterable[Path]) -> Iterator[tuple[str | None, list[int] | None]]:
    """Each document as text, or as tokens."""
    for path in files:
        try:
            if path.suffix == ".jsonl":
                with path.open(encoding="utf-8") as lines:
                    yield from (_json_document(path, number, line) for number, line in enumerate(lines, 1))
            else:
                yield path.read_text(encoding="utf-8"), None
        except UnicodeDecodeError as error:
            raise FormatError(f"data: '{path}' is not UTF-8: {error}") from error


def _json_document(path: Path, number: int, line: str) -> tuple[str | None, list[int] | None]:
    try:
        value = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise FormatError(f"data: '{path}', line {number}: not valid JSON: {error}") from error
    text, tokens = (value.get("text"), value.get("tokens")) if isinstance(value, dict) else (None, None)
    if isinstance(text, str):
        return text, None
    if isinstance(tokens, list) and all(type(token) is int for token in tokens):
        return None, tokens
    raise FormatError(f'data: \'{path}\', line {number}: wanted an object with a string "text" or numbers "tokens"')


def _batches(documents: Iterable[Any]) -> Iterator[list[Any]]:
    source = iter(documents)
    while batch := list(islice(source, _TEXTS_AT_ONCE)):
        yield batch


def _checked(ids: list[int], vocab_size: int) -> npt.NDArray[np.uint32]:
    if ids and not 0 <= min(ids) <= max(ids) < vocab_size:
        raise FormatError(f"data: found token {max(ids) if min(ids) >= 0 else min(ids)}, wanted 0 to {vocab_size - 1}")
    return np.asarray(ids, dtype=np.uint32)

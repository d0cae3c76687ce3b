"""The text of the tiny model: the sources of the Python standard library, its tokenizer, and its tokens."""

from __future__ import annotations

import json
import random
import re
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY = 4096
BOS, EOS = 0, 1
_SKIPPED = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "_bundled"}
_SPLIT = (  # Qwen2's: digits one by one
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_HELD_OUT = 15  # every so many files one is not trained on at all,
_UNSEEN = 8  # and of the rest every so many one not by the teacher
_BLANK_LINES = re.compile(r"\n[ \t]*(?=\n)")


@dataclass(frozen=True)
class Corpus:
    """Tokens as uint16. unseen: documents that the teacher is not trained on, but its polish, on what it foretells of
    them, and the LoRA; dense: without blank lines, for haystacks; words and sentences are for recall tasks.
    """

    tokenizer: Tokenizer
    training: np.ndarray
    unseen: np.ndarray
    held_out: np.ndarray
    dense_training: np.ndarray
    dense_held_out: np.ndarray
    words: list[str]
    sentences: list[str]

    def line_starts(self, tokens: np.ndarray) -> np.ndarray:
        """The places in `tokens` that follow a line's end."""
        size = self.tokenizer.get_vocab_size()
        ends = np.array([self.tokenizer.decode([i]).endswith("\n") for i in range(size)])
        return np.flatnonzero(ends[tokens[:-1]]) + 1


def prepare(folder: Path) -> Corpus:
    """Reads what the folder holds, or makes it."""
    if not (folder / "corpus.npz").is_file():
        _make(folder)
    arrays = np.load(folder / "corpus.npz")
    lists = json.loads((folder / "lists.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    names = ("training", "unseen", "held_out", "dense_training", "dense_held_out")
    return Corpus(tokenizer, *(arrays[name] for name in names), lists["words"], lists["sentences"])


def _make(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    texts = _library()
    random.Random(0).shuffle(texts)
    held_out, rest = texts[::_HELD_OUT], [text for i, text in enumerate(texts) if i % _HELD_OUT]
    unseen, training = rest[::_UNSEEN], [text for i, text in enumerate(rest) if i % _UNSEEN]
    tokenizer = _train_tokenizer(training)
    arrays = {"unseen": _tokens(tokenizer, unseen)}
    for name, part in (("training", training), ("held_out", held_out)):
        arrays[name] = _tokens(tokenizer, part)
        arrays[f"dense_{name}"] = _tokens(tokenizer, [_BLANK_LINES.sub("", text) for text in part])
    everything = "\n".join(training)
    words = sorted(set(re.findall(r"(?<= )[a-z]{4,9}(?=[ ,.])", everything)))
    sentences = sorted(set(re.findall(r"(?<=\n    )[A-Z][a-z]+(?: [a-z']+){2,9}\.(?=\n)", everything)))
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|bos|>", "eos_token": "<|eos|>"}
    settings |= {"add_bos_token": True, "add_eos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1))
    (folder / "lists.json").write_text(json.dumps({"words": words, "sentences": sentences}))
    np.savez(folder / "corpus.npz", **arrays)


def _library() -> list[str]:
    root, texts = Path(sysconfig.get_path("stdlib")), []
    for path in sorted(root.rglob("*.py")):
        if _SKIPPED.isdisjoint(path.relative_to(root).parts):
            texts.append(path.read_text(encoding="utf-8", errors="ignore"))
    return [text for text in texts if text.strip()]


def _train_tokenizer(texts: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|bos|>", "<|eos|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _tokens(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    row: list[int] = []
    for encoding in tokenizer.encode_batch(texts, add_special_tokens=False):
        row += [*encoding.ids, EOS]
    return np.array(row, dtype=np.uint16)

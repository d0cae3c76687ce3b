"""Text that follows a grammar or a JSON schema, through the library llguidance (extra `grammar`)."""

from __future__ import annotations

import json
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from . import _core

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .model import Model

Kind = Literal["gbnf", "json_schema", "lark", "regex"]

_tokenizers: weakref.WeakKeyDictionary[Model, Any] = weakref.WeakKeyDictionary()
_tokenizers_lock = threading.Lock()


@dataclass(frozen=True)
class Grammar:
    """What a generated text must follow; immutable, used by any number of generations.

        session.generate(prompt, grammar=Grammar("gbnf", 'root ::= "yes" | "no"'))
        session.generate(prompt, grammar=Grammar.json_schema({"type": "object"}))

    kind    "gbnf" (of llama.cpp), "json_schema" (its JSON text), "lark" or "regex"
    """

    kind: Kind
    source: str

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | str) -> Grammar:
        """From a schema, as JSON text or as what json.loads gives. `{}` allows any JSON value."""
        return cls("json_schema", schema if isinstance(schema, str) else json.dumps(schema))


class Constraint:
    """Where one generation stands in a grammar. It is copied with a fork and taken back with a rewind.

    start  position in the session of the first token that follows the grammar
    """

    def __init__(self, grammar: Grammar, model: Model, *, start: int) -> None:
        """UsageError names what is wrong in the grammar; UnsupportedError where llguidance is not installed."""
        llguidance = _llguidance()
        self.grammar = grammar
        self.start = start
        self.tokens: list[int] = []  # accepted so far
        self._size = model.info.vocabulary
        self._matcher = llguidance.LLMatcher(_tokenizer(model), _compiled(grammar), log_level=0)
        self._check()

    @property
    def finished(self) -> bool:
        """Nothing may follow but the end of the text."""
        return bool(self._matcher.is_stopped())

    def apply(self, logits: NDArray[np.float32]) -> None:
        """Sets the logits [vocabulary] of tokens that cannot come next to -infinity."""
        import numpy as np  # an import of the package must not wait for it

        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        allowed = np.unpackbits(bits, bitorder="little", count=self._size)
        logits[allowed == 0] = -np.inf

    def accept(self, token: int) -> None:
        """The token that was chosen."""
        self._matcher.consume_token(token)
        self._check()
        self.tokens.append(token)

    def rewind(self, position: int) -> None:
        """Takes back what was accepted from a position of the session on, which is `start` or later."""
        surplus = len(self.tokens) - (position - self.start)
        if surplus > 0:
            self._matcher.rollback(surplus)
            self._check()
            del self.tokens[-surplus:]

    def copy(self) -> Constraint:
        copy = object.__new__(Constraint)
        copy.grammar, copy.start, copy._size = self.grammar, self.start, self._size
        copy.tokens = list(self.tokens)
        copy._matcher = self._matcher.deep_copy()
        return copy

    def save(self) -> dict[str, Any]:
        """What `load` takes, for JSON."""
        return {
            "kind": self.grammar.kind,
            "source": self.grammar.source,
            "start": self.start,
            "tokens": self.tokens,
        }

    @classmethod
    def load(cls, model: Model, saved: Mapping[str, Any]) -> Constraint:
        """ValueError, KeyError or TypeError on what `save` does not give."""
        if not isinstance(saved["source"], str) or type(saved["start"]) is not int:
            raise ValueError("constraint: wanted a grammar and where it starts")
        constraint = cls(Grammar(saved["kind"], saved["source"]), model, start=saved["start"])
        for token in saved["tokens"]:
            constraint.accept(token)
        return constraint

    def _check(self) -> None:
        if self._matcher.is_error():
            raise _refusal(self._matcher.get_error())


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError:
        raise _core.UnsupportedError("grammar: needs llguidance: pip install 'lola-cpp[grammar]'") from None
    return llguidance


def _compiled(grammar: Grammar) -> str:
    """As llguidance wants it."""
    llguidance = _llguidance()
    from llguidance.gbnf_to_lark import gbnf_to_lark

    matcher = llguidance.LLMatcher
    compilers = {
        "gbnf": lambda source: matcher.grammar_from_lark(gbnf_to_lark(source)),
        # A model may go on with white space for ever where any is allowed.
        "json_schema": lambda source: matcher.grammar_from_json_schema(source, {"whitespace_flexible": False}),
        "lark": matcher.grammar_from_lark,
        "regex": matcher.grammar_from_regex,
    }
    if grammar.kind not in compilers:
        raise _core.UsageError(f"grammar: found kind {grammar.kind!r}, wanted one of {', '.join(compilers)}")
    try:
        return str(compilers[grammar.kind](grammar.source))
    except (Exception, RecursionError) as error:  # its parser has exceptions of its own, and recurses
        raise _refusal(error) from error


def _refusal(error: object) -> _core.UsageError:
    """Without what llguidance shows of its own state after the first line."""
    return _core.UsageError("grammar: " + str(error).split("\n", 1)[0])


class _Vocabulary:
    """A model's vocabulary in the shape that llguidance.TokenizerWrapper asks for."""

    def __init__(self, model: Model) -> None:
        tokenizer = model.tokenizer
        padding = model.info.vocabulary - tokenizer.vocab_size
        ids = range(tokenizer.vocab_size)
        self._encode = tokenizer.encode_bytes
        self.bos_token_id = tokenizer.bos_id
        self.eos_token_id = min(tokenizer.end_ids, default=model.info.vocabulary - 1)
        self.tokens: Sequence[bytes] = [*map(tokenizer.token_bytes, ids), *[b""] * max(0, padding)]
        self.special_token_ids = [token for token in ids if tokenizer.is_special(token)]

    def __call__(self, text: bytes) -> list[int]:
        return self._encode(text, add_special=False, parse_special=False)


def _tokenizer(model: Model) -> Any:
    """Made once for each model: it takes a second for a large vocabulary."""
    with _tokenizers_lock:
        if model not in _tokenizers:
            llguidance = _llguidance()
            vocabulary = _Vocabulary(model)
            ends = sorted(model.tokenizer.end_ids) or None
            wrapper = llguidance.TokenizerWrapper(vocabulary)
            _tokenizers[model] = llguidance.LLTokenizer(wrapper, eos_token=ends)
        return _tokenizers[model]

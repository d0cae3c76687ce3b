"""Where each token of a text sits in the memories of every layer and head, and how well it would be recalled."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING

import numpy as np

from . import _core

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Unpack

    from .model import Model
    from .options import SessionOptions

WINDOW, CACHE, HIDDEN = 0, 1, 2
PLACES = ("window", "sparse cache", "hidden state")

_COLOURS = {WINDOW: 29, CACHE: 166, HIDDEN: 240}  # of 256 terminal colours: green, orange, grey


@dataclass(frozen=True)
class Inspection:
    """A text after it was read.

    pieces  [tokens] the text of each token
    layers  [layers] which layers have LoLA attention
    place   [layers, heads, tokens] WINDOW, CACHE or HIDDEN
    error   [layers, heads, tokens] self-recall error |recall - v|^2 of the token's pair: of pairs held exactly against
            the hidden state now, of absorbed ones against the hidden state just before they were absorbed
    """

    pieces: list[str]
    layers: list[int]
    place: NDArray[np.uint8]
    error: NDArray[np.float32]

    def coloured(self, *, colour: bool = True) -> str:
        """The text; a token's colour is where most heads have it, and orange where at least a tenth cache it."""
        cached = (self.place == CACHE).mean(axis=(0, 1))
        hidden = (self.place == HIDDEN).mean(axis=(0, 1))
        parts = []
        for i, piece in enumerate(self.pieces):
            place = CACHE if cached[i] >= 0.1 else HIDDEN if hidden[i] >= 0.5 else WINDOW
            text = printable(piece)
            parts.append(f"\x1b[48;5;{_COLOURS[place]}m{text}\x1b[0m" if colour else f"{text}{'|*.'[place]}")
        return "".join(parts)

    def summary(self) -> str:
        """A line for each layer: pairs in each place, mean over the heads, with their median error."""
        lines = [f"{'layer':>5}" + "".join(f"  {name + ' (median error)':>30}" for name in PLACES)]
        for i, layer in enumerate(self.layers):
            cells = []
            for place in (WINDOW, CACHE, HIDDEN):
                there = self.place[i] == place
                error = f"{np.median(self.error[i][there]):.3g}" if there.any() else "-"
                cells.append(f"  {f'{there.sum(axis=1).mean():,.0f} ({error})':>30}")
            lines.append(f"{layer:>5}" + "".join(cells))
        return "\n".join(lines)

    def html(self, title: str) -> str:
        """One page that needs no other file: a heat map for each layer, heads by tokens, and values under the mouse."""
        data = {
            "title": title,
            "pieces": self.pieces,
            "layers": self.layers,
            "place": self.place.tolist(),
            "error": [[[float(f"{x:.3g}") for x in head] for head in layer] for layer in self.error],
        }
        page = resources.files(__package__).joinpath("inspection.html").read_text(encoding="utf-8")
        return page.replace("__DATA__", json.dumps(data).replace("<", "\\u003c"))


def inspect(
    model: Model,
    tokens: Sequence[int],
    *,
    progress: Callable[[int], None] | None = None,
    **options: Unpack[SessionOptions],
) -> Inspection:
    """Reads tokens and looks into the memories before every boundary. UsageError for a model without LoLA layers.

    progress  is called with the tokens done
    """
    if not model.info.has_lola:
        raise _core.UsageError("inspect: the model has no LoLA adapter, and so nothing but a KV cache")
    # Two sessions: the second reads without a stop, as append() does anywhere else, and says where the tokens are. The
    # first stops before each boundary, and where scores are nearly equal rounding may decide otherwise there.
    session, whole = model.session(**options), model.session(**options)
    chunk = session.config["chunk_size"]
    layers = lola_layers(model)
    shape = (len(layers), model.info.heads, len(tokens))
    place, error = np.full(shape, HIDDEN, dtype=np.uint8), np.zeros(shape, dtype=np.float32)
    begin = 0
    while begin < len(tokens):
        # A boundary follows the last token of a chunk; the errors before it are those that it decides by.
        stop = min(begin - begin % chunk + chunk, len(tokens))
        session.append(tokens[begin : stop - 1])
        if stop - 1 > 0:
            _record(session._core, layers, error)
        session.append(tokens[stop - 1 : stop])
        begin = stop
        if progress is not None:
            progress(begin)
    whole.append(tokens)
    _record(whole._core, layers, error, place)
    pieces = [model.tokenizer.token_bytes(token).decode(errors="replace") for token in tokens]
    return Inspection(pieces, layers, place, error)


def _record(
    core: _core.Session, layers: Sequence[int], error: NDArray[np.float32], place: NDArray[np.uint8] | None = None
) -> None:
    for i, layer in enumerate(layers):
        for head, (positions, errors, cached) in enumerate(core.recall_errors(layer)):
            error[i, head, positions] = errors
            if place is not None:
                place[i, head, positions[:cached]] = CACHE
                place[i, head, positions[cached:]] = WINDOW


def lola_layers(model: Model) -> list[int]:
    empty = _core.Session(model._core, {})
    layers = []
    for layer in range(model.info.layers):
        try:
            empty.recall_errors(layer)
        except _core.UsageError:  # softmax attention
            continue
        layers.append(layer)
    return layers


def printable(text: str) -> str:
    """What a terminal can show without being steered by it."""
    return "".join(character if character.isprintable() or character == "\n" else "\ufffd" for character in text)

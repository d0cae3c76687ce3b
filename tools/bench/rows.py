"""What is measured: one row of the table each, the sides taking turns."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from side import Side

KINDS = ("decode", "prefill", "share", "sampling", "load")
LONG_PROMPT = 4096  # tokens; beyond it one run has to do
CHUNK = 512  # tokens of a pass
SAMPLERS = {
    "greedy": {},
    "usual": {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05},
    "top_p": {"temperature": 1.0, "top_p": 0.95},
}
LOLA_OPTIONS = ("window_size", "chunk_size", "sparse_size", "sparse_scope", "policy", "pair_type")


@dataclass(frozen=True)
class Row:
    kind: str
    tokens: int
    depth: int
    sessions: int
    text: str


def parse_row(text: str) -> Row:
    """KIND[:TOKENS][@DEPTH][xSESSIONS]; ValueError where it is something else."""
    match = re.fullmatch(r"([a-z]+)(?::(\d+))?(?:@(\d+))?(?:x(\d+))?", text)
    if not match or match[1] not in KINDS:
        raise ValueError(f"row: found {text!r}, wanted KIND[:TOKENS][@DEPTH][xSESSIONS] with KIND one of {KINDS}")
    return Row(match[1], int(match[2] or 0), int(match[3] or 0), int(match[4] or 1), text)


@dataclass
class Result:
    """One row: what each round measured, tokens per second unless the row says otherwise."""

    row: str
    ours: list[float] = field(default_factory=list)
    peer: list[float] = field(default_factory=list)
    of_limit: tuple[float, float] | None = None  # shares of the machine's limit
    notes: list[str] = field(default_factory=list)
    limits: dict[str, float] = field(default_factory=dict)  # of the machine, a second, medians of the rounds

    def markdown(self) -> str:
        ours = f"{median(self.ours):,.2f}" if self.ours else ""
        peer = f"{median(self.peer):,.2f}" if self.peer else ""
        ratio = f"{median(self.ours) / median(self.peer):.2f}" if self.ours and self.peer else ""
        limit = " / ".join(f"{share:.0%}" for share in self.of_limit or () if share)
        limits = [f"{name.replace('_', ' ')} {rate * 1e-9:,.1f} G/s" for name, rate in self.limits.items()]
        return f"| {self.row} | {ours} | {peer} | {ratio} | {limit} | {'; '.join(self.notes + limits)} |"

    def as_dict(self) -> dict[str, Any]:
        return vars(self)


class Bench:
    def __init__(self, options: argparse.Namespace, ours: Side, peer: Side | None) -> None:
        self._options = options
        self._ours = ours
        self._peer = peer
        self._files = {"model": str(options.model), "threads": options.threads}
        self._our_files = self._files | {"adapter": str(options.adapter) if options.adapter else None}
        given = {name: getattr(options, name) for name in LOLA_OPTIONS}
        self._lola = {name: value for name, value in given.items() if value is not None}
        self._model = ours.ask("load", **self._our_files)
        self._system = peer.ask("load", **self._files)["system"] if peer else "not measured"
        self._seen_limits: list[dict[str, float]] = []
        chunk = self._lola.get("chunk_size", self._lola.get("window_size", self._model["chunk_size"]))
        self._chunk = chunk if options.adapter else 1
        if options.adapter:
            self._lola.setdefault("chunk_size", chunk)

    def heading(self) -> str:
        settings = ", ".join(f"{name} {value}" for name, value in self._lola.items()) or "defaults"
        return (
            f"{self._options.model.name}, {self._model['backend']}; "
            f"{f'LoLA: {settings}' if self._options.adapter else 'softmax attention'}; llama.cpp: {self._system}\n"
            f"competing load: {self._options.busy_core or 'none'}\n\n"
            "| row | ours | llama.cpp | ratio | of limit, ours / llama.cpp | notes |\n|---|---|---|---|---|---|"
        )

    def run(self, row: Row) -> Result:
        result = Result(row.text)
        getattr(self, "_" + row.kind)(row, result)
        return result

    def _rounds(self, count: int) -> Iterator[None]:
        """Rounds of measuring, the machine's limits among them."""
        self._seen_limits = []
        for _ in range(count):
            self._seen_limits.append(self._ours.ask("limits", threads=self._options.threads))
            yield

    def _limit(self, name: str, result: Result) -> float:
        result.limits = {each: median(seen[each] for seen in self._seen_limits) for each in self._seen_limits[0]}
        return result.limits[name]

    def _fill(self, row: Row, tokens: int) -> None:
        lola = self._lola if self._options.adapter else {"context_length": row.depth + tokens}
        folder = str(self._options.states) if self._options.states else None
        self._ours.ask("fill", depth=row.depth, sessions=row.sessions, options=lola, folder=folder)

    def _best_peer(self, row: Row, try_out: Callable[[], float]) -> bool:
        """Leaves llama.cpp filled in the faster of its ways of attention; True for flash attention."""
        assert self._peer is not None
        seconds = {}
        for flash in (False, True):
            self._peer.ask("fill", depth=row.depth, sessions=row.sessions, flash=flash)
            seconds[flash] = try_out()
        if seconds[False] < seconds[True]:
            self._peer.ask("fill", depth=row.depth, sessions=row.sessions, flash=False)
        return seconds[True] <= seconds[False]

    def _decode(self, row: Row, result: Result) -> None:
        tokens = row.tokens or self._options.tokens
        # Whole chunks, or the work of a chunk's boundary would be left out or counted for too few tokens.
        own_tokens = -(-tokens // self._chunk) * self._chunk
        self._fill(row, own_tokens)
        if self._peer:
            flash = self._best_peer(row, lambda: self._peer.ask("decode", tokens=4))
            result.notes.append(f"flash attention {'on' if flash else 'off'}")
        for _ in self._rounds(self._options.rounds):
            result.ours.append(row.sessions * own_tokens / self._ours.ask("decode", tokens=own_tokens))
            if self._peer:
                result.peer.append(row.sessions * tokens / self._peer.ask("decode", tokens=tokens))
        if row.sessions == 1:
            self._set_limit(result, self._model["decode_bytes"] / self._limit("read_bytes", result))

    def _set_limit(self, result: Result, least_seconds: float) -> None:
        """From the seconds that a token takes at the limit."""
        result.of_limit = (
            median(result.ours) * least_seconds,
            median(result.peer) * least_seconds if result.peer else 0.0,
        )

    def _prefill(self, row: Row, result: Result) -> None:
        tokens = row.tokens or CHUNK
        self._fill(row, tokens)
        if self._peer:
            flash = self._best_peer(row, lambda: self._peer.ask("prefill", tokens=min(tokens, CHUNK))["seconds"])
            result.notes.append(f"flash attention {'on' if flash else 'off'}")
        for _ in self._rounds(1 if tokens > LONG_PROMPT else self._options.rounds):
            times = self._ours.ask("prefill", tokens=tokens)
            result.ours.append(tokens / times["seconds"])
            if self._peer:
                peer_times = self._peer_prompt(row, tokens, flash)
                result.peer.append(tokens / peer_times["seconds"])
        if tokens > 1024:
            ends = [("ours", times)] + ([("llama.cpp", peer_times)] if self._peer else [])
            result.notes += [f"{name} first / last 1024: {_ends(each)} tok/s" for name, each in ends]
        kind = "float_operations" if self._model["is_float"] else "int8_operations"
        self._set_limit(result, self._model["prefill_operations"] / self._limit(kind, result))

    def _peer_prompt(self, row: Row, tokens: int, flash: bool) -> dict[str, float]:
        """Seconds of a whole prompt. Its passes take longer evenly with depth, so a few depths tell a long one."""
        assert self._peer is not None
        if tokens <= LONG_PROMPT or self._options.whole_prompts:
            self._peer.ask("fill", depth=row.depth, sessions=1, flash=flash, spare=tokens)
            return self._peer.ask("prefill", tokens=tokens)
        points, seconds = 5, []
        for point in range(points):
            depth = row.depth + (tokens - CHUNK) * point // (points - 1)
            self._peer.ask("fill", depth=depth, sessions=1, flash=flash)
            seconds.append(self._peer.ask("prefill", tokens=CHUNK)["seconds"])
        mean = (sum(seconds) - (seconds[0] + seconds[-1]) / 2) / (points - 1)
        return {"seconds": mean * tokens / CHUNK, "first": 2 * seconds[0], "last": 2 * seconds[-1]}

    def _share(self, row: Row, result: Result) -> None:
        tokens = -(-self._options.tokens // self._chunk) * self._chunk
        self._fill(row, tokens)
        plain = []
        for _ in range(self._options.rounds):
            result.ours.append(tokens / self._ours.ask("decode", tokens=tokens))
            plain.append(tokens / self._ours.ask("decode_plain", tokens=tokens))
        share = 1 - median(result.ours) / median(plain)
        result.notes.append(f"{median(plain):.2f} tok/s without LoLA: its memories take {share:.1%}")

    def _sampling(self, row: Row, result: Result) -> None:
        self._fill(row, 64)
        for _ in range(self._options.rounds):
            result.ours.append(16 / self._ours.ask("decode", tokens=16))
        for name, sampler in SAMPLERS.items():
            times = [self._ours.ask("sampling", sampler=sampler, tokens=50) for _ in range(self._options.rounds)]
            share = median(times) * median(result.ours)
            result.notes.append(f"{name} {median(times) * 1e3:.3f} ms, {share:.1%}")

    def _load(self, row: Row, result: Result) -> None:
        result.row = f"{row.text}, seconds"
        sides = [("ours", self._ours, self._our_files, result.ours)]
        if self._peer:
            sides.append(("llama.cpp", self._peer, self._files, result.peer))
        memory = {}
        for _ in range(self._options.rounds):
            for name, side, files, seconds in sides:
                fresh = side.fresh()
                answer = fresh.ask("first_token", **files)
                fresh.close()
                seconds.append(answer["seconds"])
                memory[name] = answer["resident"] / answer["file"]
        result.notes += [f"{name}: resident {share:.2f} x the files" for name, share in memory.items()]


def _ends(times: dict[str, float]) -> str:
    return f"{1024 / times['first']:,.1f} / {1024 / times['last']:,.1f}"

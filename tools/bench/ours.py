"""Our side of the comparison; answers the requests of rows.py."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from serve import peak_resident_bytes, serve

from lola_cpp import Model, Session
from lola_cpp._core import GgufFile, Sampler, testing
from lola_cpp.passes import advance
from lola_cpp.text_stream import TextStream


def weights_of(file: GgufFile) -> dict[str, Any]:
    """What a decoded token reads, and what a token of a prompt computes in the layers' matrices."""
    matrices = {name: (kind, shape, size) for name, kind, shape, size in file.tensors() if len(shape) > 1}
    if "output.weight" in matrices:
        del matrices["token_embd.weight"]  # a row of it is read
    layers = [(kind, shape[0] * shape[1]) for name, (kind, shape, _) in matrices.items() if name.startswith("blk.")]
    return {
        "decode_bytes": sum(size for _, _, size in matrices.values()),
        "prefill_operations": 2 * sum(elements for _, elements in layers),
        "is_float": layers[0][0] in ("F32", "F16", "BF16"),
    }


class Ours:
    def load(self, model: str, adapter: str | None, threads: int) -> dict[str, Any]:
        """Opens the model; returns what the limits need to know of it."""
        self._threads = threads
        self._model = Model(model, adapter, threads=threads)
        info = self._model.info
        self._random = random.Random(0)
        self._sessions: list[Session] = []
        self._filled: dict[str, Session] = {}
        self._plain: Session | None = None
        chunk = self._model.session_defaults["chunk_size"] if info.has_lola else 1
        return {"backend": info.backend, "chunk_size": chunk} | weights_of(GgufFile(model))

    def limits(self, threads: int) -> dict[str, float]:
        """Bytes read, int8 and float32 operations that the machine does in a second."""
        limits: dict[str, float] = testing.machine_limits(testing.selected_isa(), threads)
        return limits

    def _tokens(self, count: int) -> list[int]:
        return [self._random.randrange(self._model.info.vocabulary) for _ in range(count)]

    def fill(self, depth: int, sessions: int, options: dict[str, Any], folder: str | None) -> None:
        """Sessions with `depth` tokens before what will be measured."""
        filled = self._filled_session(depth, options, folder)
        self._sessions = [filled.fork() for _ in range(sessions)]

    def _filled_session(self, depth: int, options: dict[str, Any], folder: str | None) -> Session:
        """Filled once; a folder keeps it for later runs, named by all that it depends on."""
        chosen = {**self._model.session_defaults, **options}
        name = f"{self._model.info.fingerprint[:16]}-{depth}-" + "-".join(str(value) for value in chosen.values())
        if name not in self._filled:
            self._filled.clear()
            file = Path(folder, name + ".gguf") if folder else None
            if file is not None and file.exists():
                self._filled[name] = self._model.load_session(file)
            else:
                session = self._model.session(**options)
                session.append(self._tokens(depth))
                if file is not None:
                    file.parent.mkdir(parents=True, exist_ok=True)
                    session.save(file)
                self._filled[name] = session
        return self._filled[name]

    @contextmanager
    def _forks(self) -> Iterator[list[Session]]:
        """Copies to measure with; the filled sessions stay as they are."""
        yield [session.fork() for session in self._sessions]

    def decode(self, tokens: int) -> float:
        """Seconds of decoding `tokens` tokens in each session, all sessions in the same passes."""
        ids = self._tokens(tokens)
        with self._forks() as sessions:
            begin = time.perf_counter()
            for token in ids:
                for session in sessions:
                    session.pending.append(token)
                advance(sessions)
            return time.perf_counter() - begin

    def decode_plain(self, tokens: int) -> float:
        """Seconds of decoding `tokens` tokens of the model without its adapter, from an empty context."""
        if self._plain is None:
            self._plain = Model(self._model.path, threads=self._threads).session(context_length=tokens + 1)
            self._plain.append([1])
        session = self._plain.fork()
        begin = time.perf_counter()
        for token in self._tokens(tokens):
            session.append([token])
        return time.perf_counter() - begin

    def prefill(self, tokens: int) -> dict[str, float]:
        """Seconds of one prompt: all of it, its first and its last 1024 tokens."""
        ids = self._tokens(tokens)
        with self._forks() as (session, *_):
            times = {0: time.perf_counter()}
            session.append(ids, progress=lambda done: times.__setitem__(done, time.perf_counter()))
            times[tokens] = time.perf_counter()
        part = min(1024, tokens)
        first = min(done for done in times if done >= part)
        last = max(done for done in times if done <= tokens - part)
        return {
            "seconds": times[tokens] - times[0],
            "first": (times[first] - times[0]) * part / first,
            "last": (times[tokens] - times[last]) * part / (tokens - last),
        }

    def sampling(self, sampler: dict[str, Any], tokens: int) -> float:
        """Seconds of choosing one token from real logits and turning it into text, averaged."""
        with self._forks() as (session, *_):
            session.append(self._tokens(1))
            chooser, text = Sampler(seed=1, **sampler), TextStream(self._model.tokenizer)
            session.sample(chooser)
            begin = time.perf_counter()
            for _ in range(tokens):
                text.push(session.sample(chooser)[0])
            return (time.perf_counter() - begin) / tokens

    def first_token(self, model: str, adapter: str | None, threads: int) -> dict[str, float]:
        """In a fresh process: seconds until the first token's logits are there, tokenizer included; memory then."""
        begin = time.perf_counter()
        loaded = Model(model, adapter, threads=threads)
        session = loaded.session()
        session.append("Hello")
        seconds = time.perf_counter() - begin
        session.append([i % loaded.info.vocabulary for i in range(64)])
        return {
            "seconds": seconds,
            "resident": peak_resident_bytes(),
            "file": sum(os.path.getsize(file) for file in (model, adapter) if file),
        }


if __name__ == "__main__":
    serve(Ours())

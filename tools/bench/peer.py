"""llama.cpp's side of the comparison, through its C interface; answers the requests of rows.py.

Runs in an interpreter that has llama-cpp-python and NumPy, and needs nothing of this project.
"""

from __future__ import annotations

import ctypes
import os
import random
import time
from typing import Any

import llama_cpp as C
import numpy as np
from serve import peak_resident_bytes, serve

BATCH = 512
STATE_MAGIC = 0xAF143CD8
F16 = 1  # ggml's number of the type
SPARE = 1024  # cells beyond the depth, for what is measured


@C.llama_log_callback
def be_silent(level: int, text: bytes, data: Any) -> None:
    """llama.cpp tells a lot."""


class Peer:
    def load(self, model: str, threads: int) -> dict[str, Any]:
        C.llama_log_set(be_silent, ctypes.c_void_p(0))
        C.llama_backend_init()
        self._threads = threads
        self._model = C.llama_model_load_from_file(model.encode(), C.llama_model_default_params())
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {model}")
        self._vocabulary = C.llama_vocab_n_tokens(C.llama_model_get_vocab(self._model))
        self._context = None
        self._batch = C.llama_batch_init(BATCH, 0, 1)
        self._random = random.Random(0)
        return {"system": C.llama_print_system_info().decode()}

    def fill(self, depth: int, sessions: int, flash: bool, spare: int = SPARE) -> None:
        """Sequences with `depth` tokens before what will be measured, their keys and values random numbers."""
        if self._context is not None:
            C.llama_free(self._context)
        parameters = C.llama_context_default_params()
        parameters.n_ctx = sessions * (-(-(depth + spare) // 256) * 256)
        parameters.n_batch = parameters.n_ubatch = BATCH
        parameters.n_seq_max = sessions
        parameters.n_threads = parameters.n_threads_batch = self._threads
        parameters.flash_attn_type = C.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash else C.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._context = C.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise RuntimeError("llama.cpp cannot make a context")
        self._memory = C.llama_get_memory(self._context)
        self._sessions, self._depth = sessions, 0
        self._run(1)  # builds what the first call builds
        self._rewind()
        self._depth = depth
        state = self._state(depth, sessions, flash) if depth else None
        for session in range(sessions if state is not None else 0):
            pointer = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
            taken = C.llama_state_seq_set_data(self._context, pointer, state.nbytes, session)
            if taken != state.nbytes or C.llama_memory_seq_pos_max(self._memory, session) != depth - 1:
                raise RuntimeError("llama.cpp does not take the state; has its format changed?")

    def _state(self, cells: int, streams: int, flash: bool) -> np.ndarray:
        """A sequence's state as llama-kv-cache.cpp reads it: cells, then the keys of each layer, then the values."""
        layers = C.llama_model_n_layer(self._model)
        width = C.llama_model_n_head_kv(self._model) * self._head_dim()
        values = np.random.default_rng(0).standard_normal((cells, width), np.float32).astype(np.float16)
        u32 = np.uint32
        positions = np.stack([np.arange(cells), np.ones(cells), np.zeros(cells)], axis=1).astype(np.int32)
        parts = [u32([STATE_MAGIC, 0, streams, cells]), positions, u32([not flash, layers])]
        for _ in range(layers):
            parts += [u32([F16]), np.uint64([2 * width]), values]
        for _ in range(layers):
            # Without flash attention values are stored transposed.
            parts += [u32([F16]), np.uint64([2 * width])] if flash else [u32([F16, 2, width])]
            parts.append(values)
        parts.append(u32([0] * (streams - 1)))
        return np.concatenate([np.ascontiguousarray(part).reshape(-1).view(np.uint8) for part in parts])

    def _head_dim(self) -> int:
        text = ctypes.create_string_buffer(64)
        C.llama_model_meta_val_str(self._model, b"general.architecture", text, 64)
        if C.llama_model_meta_val_str(self._model, text.value + b".attention.key_length", text, 64) > 0:
            return int(text.value)
        return C.llama_model_n_embd(self._model) // C.llama_model_n_head(self._model)

    def _run(self, count: int, offset: int = 0) -> None:
        """One llama_decode of `count` tokens in each sequence; logits of the last of each."""
        at = 0
        for session in range(self._sessions):
            for i in range(count):
                self._batch.token[at] = self._random.randrange(self._vocabulary)
                self._batch.pos[at] = self._depth + offset + i
                self._batch.n_seq_id[at] = 1
                self._batch.seq_id[at][0] = session
                self._batch.logits[at] = i + 1 == count
                at += 1
        self._batch.n_tokens = at
        if C.llama_decode(self._context, self._batch) != 0:
            raise RuntimeError("llama_decode failed")
        C.llama_synchronize(self._context)

    def _rewind(self) -> None:
        for session in range(self._sessions):
            C.llama_memory_seq_rm(self._memory, session, self._depth, -1)

    def decode(self, tokens: int) -> float:
        """Seconds of decoding `tokens` tokens in each sequence, all sequences in the same calls."""
        begin = time.perf_counter()
        for offset in range(tokens):
            self._run(1, offset)
        seconds = time.perf_counter() - begin
        self._rewind()
        return seconds

    def prefill(self, tokens: int) -> dict[str, float]:
        """Seconds of one prompt: all of it, its first and its last 1024 tokens."""
        times = {0: time.perf_counter()}
        for offset in range(0, tokens, BATCH):
            count = min(BATCH, tokens - offset)
            self._run(count, offset)
            times[offset + count] = time.perf_counter()
        self._rewind()
        part = min(1024, tokens)
        first = min(done for done in times if done >= part)
        last = max(done for done in times if done <= tokens - part)
        return {
            "seconds": times[tokens] - times[0],
            "first": (times[first] - times[0]) * part / first,
            "last": (times[tokens] - times[last]) * part / (tokens - last),
        }

    def first_token(self, model: str, threads: int) -> dict[str, float]:
        """In a fresh process: seconds until the first token's logits are there; memory then."""
        begin = time.perf_counter()
        self.load(model, threads)
        self.fill(0, 1, True)
        seconds = time.perf_counter() - begin
        self._run(64)
        return {"seconds": seconds, "resident": peak_resident_bytes(), "file": os.path.getsize(model)}


if __name__ == "__main__":
    serve(Peer())

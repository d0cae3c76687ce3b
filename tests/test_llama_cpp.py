"""Plain models written here run in llama.cpp with the same greedy tokens. Needs llama-cpp-python, an optional peer."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from lola_cpp import Model
from reference import tiny_gguf

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")


def greedy_of_llama_cpp(path: str, prompt: list[int], count: int) -> list[int]:
    peer = llama_cpp.Llama(path, n_ctx=512, n_threads=1, verbose=False)
    tokens: list[int] = []
    peer.eval(prompt)
    for _ in range(count):
        pointer = llama_cpp.llama_get_logits_ith(peer.ctx, -1)
        logits = np.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float)), (peer.n_vocab(),))
        tokens.append(int(logits.argmax()))
        peer.eval(tokens[-1:])
    peer.close()
    return tokens


@pytest.mark.parametrize("arch", ["llama", "qwen2", "qwen3"])
def test_llama_cpp_chooses_the_same_greedy_tokens(tmp_path, arch):
    config = tiny_gguf.tiny(arch)
    path = tmp_path / "plain.gguf"
    tiny_gguf.write_model(path, config, tiny_gguf.random_weights(config))
    model = Model(path)
    prompt = np.random.default_rng(0).integers(0, model.info.vocabulary, 20).tolist()
    session = model.session(context_length=512)
    ours = [token.id for token in session.generate(prompt, max_tokens=40, stop_at_end=False)]
    assert ours == greedy_of_llama_cpp(str(path), prompt, 40)

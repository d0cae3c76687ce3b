"""Plain models written here run in llama.cpp with the same greedy tokens. Needs llama-cpp-python, an optional peer."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from lola_cpp import Model, _core, quantize
from lola_cpp.convert.mixtures import MIXTURES, planned_formats
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


@pytest.fixture
def quiet_llama_cpp():
    """llama.cpp writes a line for each tensor otherwise."""
    silent = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    yield
    llama_cpp.llama_log_set(ctypes.cast(None, llama_cpp.llama_log_callback), ctypes.c_void_p(0))


@pytest.mark.parametrize("mixture", ["Q4_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K_L", "Q4_K_M", "Q5_K_M", "Q6_K"])
def test_llama_cpp_reads_what_is_quantized_here(tmp_path, mixture):
    config = tiny_gguf.tiny()
    tiny_gguf.write_model(tmp_path / "plain.gguf", config, tiny_gguf.random_weights(config))
    quantize(tmp_path / "plain.gguf", tmp_path / "out.gguf", mixture)
    session = Model(tmp_path / "out.gguf").session(context_length=64)
    session.append([3, 4, 5])
    peer = llama_cpp.Llama(str(tmp_path / "out.gguf"), n_ctx=64, n_threads=1, verbose=False, logits_all=True)
    peer.eval([3, 4, 5])
    logits = np.array(peer.scores[2])
    peer.close()
    # llama.cpp rounds activations to 8 bits, and differently for each format.
    assert np.corrcoef(logits, session.logits)[0, 1] > 0.995


@pytest.mark.usefixtures("quiet_llama_cpp")
@pytest.mark.parametrize(
    "changes", [{"layers": 16, "kv_heads": 1}, {"layers": 17, "tied": True}, {"hidden": 288}], ids=str
)
def test_llama_cpp_chooses_the_same_formats(tmp_path, changes):
    config = tiny_gguf.tiny(**changes)
    tiny_gguf.write_model(tmp_path / "plain.gguf", config, tiny_gguf.random_weights(config))
    file = _core.GgufFile(tmp_path / "plain.gguf")
    for name, mixture in MIXTURES.items():
        if mixture.needs_importance:
            continue
        options = llama_cpp.llama_model_quantize_default_params()
        options.ftype = mixture.file_type
        out = tmp_path / "peer.gguf"
        assert llama_cpp.llama_model_quantize(bytes(tmp_path / "plain.gguf"), bytes(out), options) == 0
        ours = {tensor: kind for tensor, kind, *_ in file.tensors()}
        ours |= planned_formats(file, mixture, {}, has_importance=False)
        assert ours == {tensor: kind for tensor, kind, *_ in _core.GgufFile(out).tensors()}, name

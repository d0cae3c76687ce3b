"""The drop-in Llama: the dictionaries, chunks and calls of llama-cpp-python."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lola_cpp import Model, UnsupportedError, UsageError, _core
from lola_cpp.llama import (
    BaseLlamaCache,
    Llama,
    LlamaDiskCache,
    LlamaGrammar,
    LlamaRAMCache,
    MinTokensLogitsProcessor,
)
from lola_cpp.llama.completion import PartReader, Step
from reference import llama_calls
from reference.default_model import ADAPTER, DEFAULT, with_template
from reference.device import DEVICE

PEER = os.environ.get("LOLA_TEST_PEER_PYTHON") or (sys.executable if importlib.util.find_spec("llama_cpp") else None)
LOGPROB_ERROR = 0.2  # both round activations to int8, in groups of another size
VECTOR_COSINE = 0.99  # of embeddings, for the same reason


@pytest.fixture(scope="module")
def llama() -> Llama:
    return Llama(DEFAULT.path, adapter=ADAPTER, chat_format="chatml", n_threads=1)


# --- Beside llama-cpp-python ---


def comparable(value: Any) -> Any:
    """Without what differs from call to call."""
    if isinstance(value, dict):
        return {k: comparable(v) for k, v in value.items() if k not in ("id", "created")}
    return [comparable(item) for item in value] if isinstance(value, list) else value


def assert_alike(found: Any, wanted: Any, where: str = "") -> None:
    assert type(found) is type(wanted) or {type(found), type(wanted)} <= {int, float}, where
    if isinstance(wanted, dict):
        assert set(found) == set(wanted), where
        for key in wanted:
            assert_alike(found[key], wanted[key], f"{where}.{key}")
    elif isinstance(wanted, list) and len(wanted) > 99 and all(isinstance(x, float) for x in wanted):
        assert np.dot(found, wanted) > VECTOR_COSINE * np.linalg.norm(found) * np.linalg.norm(wanted), where
        assert np.linalg.norm(found) == pytest.approx(np.linalg.norm(wanted), rel=0.02), where
    elif isinstance(wanted, list):
        assert len(found) == len(wanted), where
        for i, (a, b) in enumerate(zip(found, wanted, strict=True)):
            assert_alike(a, b, f"{where}[{i}]")
    elif isinstance(wanted, float):
        assert abs(found - wanted) < LOGPROB_ERROR * max(1, abs(wanted)), where
    else:
        assert found == wanted, where


@pytest.mark.skipif(
    PEER is None, reason="llama-cpp-python is not installed (LOLA_TEST_PEER_PYTHON names a Python with it)"
)
def test_dictionaries_and_chunks_equal_those_of_llama_cpp_python(tmp_path: Path) -> None:
    pytest.importorskip("llguidance")
    path = with_template(tmp_path / "m.gguf")
    results = []
    for python, module in ((sys.executable, "lola_cpp.llama"), (str(PEER), "llama_cpp")):
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" or module != "llama_cpp"}
        run = subprocess.run(
            [python, llama_calls.__file__, module, path], capture_output=True, text=True, env=environment
        )
        assert run.returncode == 0, run.stderr
        results.append(comparable(json.loads(run.stdout.splitlines()[-1])))
    for i, (found, wanted) in enumerate(zip(*results, strict=True)):
        assert_alike(found, wanted, f"call {i}")


def test_every_call_of_the_comparison_runs_by_itself(tmp_path: Path) -> None:
    pytest.importorskip("llguidance")
    import lola_cpp.llama

    results = llama_calls.everything(lola_cpp.llama, with_template(tmp_path / "m.gguf"))
    assert {"refusals": ["ValueError", "TypeError", "TypeError"]} in results
    first, streamed, echoed = (results[i] for i in (0, 1, 5))
    text = "".join(c["choices"][0]["text"] for c in streamed)
    assert text == first["choices"][0]["text"]
    assert text.startswith(echoed["choices"][0]["text"].removeprefix(llama_calls.PROMPT))


# --- By itself ---


def test_a_completion_on_lola_layers_knows_no_context_limit(llama: Llama) -> None:
    completion = llama([5] * 700, max_tokens=3, temperature=0.0)
    assert completion["usage"] == {"prompt_tokens": 700, "completion_tokens": 3, "total_tokens": 703}


def test_a_prompt_that_goes_on_is_not_read_again(llama: Llama) -> None:
    llama.reset()
    tokens = llama.tokenize(b"import os\n" * 60)
    list(zip(llama.generate(tokens, temp=0.0), range(3), strict=False))
    core = llama._session._core
    next(llama.generate([*tokens, 5, 6], temp=0.0))
    assert llama._session._core is not core or llama.n_tokens == len(tokens) + 2
    assert llama.n_tokens == len(tokens) + 2


def test_a_state_is_loaded_any_number_of_times(llama: Llama) -> None:
    llama.reset()
    llama.eval([5, 6, 7])
    state = llama.save_state()
    first = [t for t, _ in zip(llama.generate([], reset=False, temp=0.0), range(4), strict=False)]
    for _ in range(2):
        llama.load_state(state)
        assert llama.input_ids.tolist() == [5, 6, 7]
        again = [t for t, _ in zip(llama.generate([], reset=False, temp=0.0), range(4), strict=False)]
        assert again == first


def test_tokens_that_are_sent_to_the_generator_are_read(llama: Llama) -> None:
    generator = llama.generate([5, 6], temp=0.0)
    first = next(generator)
    generator.send([8, 9])
    assert llama.input_ids.tolist() == [5, 6, first, 8, 9]


def test_grammars_formats_and_calls(llama: Llama) -> None:
    pytest.importorskip("llguidance")
    grammar = LlamaGrammar.from_string('root ::= "yes" | "no"', verbose=False)
    assert llama("x", grammar=grammar, max_tokens=9)["choices"][0]["text"] in ("yes", "no")
    schema = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"], "additionalProperties": False}
    message = llama.create_chat_completion(
        [{"role": "user", "content": "n?"}], response_format={"type": "json_object", "schema": schema}, max_tokens=30
    )["choices"][0]["message"]
    assert json.loads(message["content"])["n"] in (1, 2)
    legacy = llama.create_chat_completion(
        [{"role": "user", "content": "n?"}],
        functions=[{"name": "f", "parameters": schema}],
        function_call={"name": "f"},
        max_tokens=30,
    )["choices"][0]
    assert legacy["finish_reason"] == "tool_calls"
    assert json.loads(legacy["message"]["function_call"]["arguments"])["n"] in (1, 2)
    with pytest.raises(UsageError, match="found 'g', wanted one of the tools: f"):
        llama.create_chat_completion([], functions=[{"name": "f"}], function_call={"name": "g"})


def test_calls_that_the_model_writes_itself_stream_as_calls() -> None:
    from lola_cpp.llama.chat_completion import from_chunks, from_completion

    def chunk(text: str, reason: str | None = None) -> dict[str, Any]:
        choice = {"text": text, "index": 0, "logprobs": None, "finish_reason": reason}
        return {"id": "cmpl-1", "model": "m", "created": 1, "choices": [choice]}

    def chunks() -> Iterator[dict[str, Any]]:
        text = 'Well.<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
        yield from (chunk(text[i : i + 5]) for i in range(0, len(text), 5))
        yield chunk("", "stop")

    found = list(from_chunks(chunks(), has_tools=True))
    deltas = [c["choices"][0]["delta"] for c in found]
    assert deltas[0] == {"role": "assistant"} and deltas[-1] == {}
    assert "".join(d.get("content", "") for d in deltas) == "Well."
    calls = [d["tool_calls"][0] for d in deltas if "tool_calls" in d]
    assert calls[0]["function"]["name"] == "f"
    assert json.loads("".join(c["function"]["arguments"] for c in calls)) == {"a": 1}
    assert found[-1]["choices"][0]["finish_reason"] == "tool_calls"
    whole = {**chunk("".join(c["choices"][0]["text"] for c in chunks()), "stop"), "usage": {}}
    message = from_completion(whole, has_tools=True)["choices"][0]["message"]
    assert message["content"] == "Well." and message["tool_calls"][0]["function"]["arguments"] == '{"a": 1}'


def test_text_comes_in_whole_characters_and_never_reaches_into_a_stop_string() -> None:
    text = "aé€😀b#END tail".encode()
    for cut in (1, 2, 3, 5):
        reader, parts = PartReader(["#END"]), []
        for i in range(0, len(text), cut):
            parts += reader.push(Step(i, text[i : i + cut], 0.0, ()))
            if reader.stopped:
                break
        assert "".join(part.text for part in parts) == "aé€😀b"


def test_min_tokens_forbids_an_early_end() -> None:
    processor = MinTokensLogitsProcessor(2, token_eos=1)
    scores = np.zeros(4, dtype=np.float32)
    assert processor(np.array([5, 6]), scores.copy())[1] == -np.inf
    assert processor(np.array([5, 6, 7, 8]), scores.copy())[1] == 0


@pytest.mark.parametrize(("asked", "taken"), [(-1, None), (99, None), (1, 1)])
def test_gpu_layers_go_to_the_gpu(asked: int, taken: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    from lola_cpp.llama import loading

    calls: list[dict[str, object]] = []

    def on_a_gpu(path: str, adapter: str | None, **options: object) -> Model:
        calls.append(options)
        return Model(path, adapter, threads=1)

    monkeypatch.setattr(loading, "Model", on_a_gpu)
    Llama(DEFAULT.path, n_gpu_layers=asked)
    assert calls == [{"threads": None, "device": "cuda", "gpu_layers": taken}]


def test_gpu_layers_without_the_cuda_part_warn_and_run_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from lola_cpp.llama import loading

    def without_cuda(path: str, adapter: str | None, *, device: str = "cpu", **options: object) -> Model:
        if device == "cuda":
            raise UnsupportedError("device cuda: this build has no CUDA part")
        return Model(path, adapter, threads=1)

    monkeypatch.setattr(loading, "Model", without_cuda)
    with pytest.warns(UserWarning, match=r"n_gpu_layers = -1 has no effect in lola_cpp \(device cuda: this build"):
        Llama(DEFAULT.path, n_gpu_layers=-1)


def test_legacy_arguments_warn_and_unknown_ones_are_type_errors() -> None:
    with pytest.warns(UserWarning, match="main_gpu = 1 has no effect"):
        Llama(DEFAULT.path, main_gpu=1, n_batch=8, use_mmap=False, f16_kv=True)
    with pytest.raises(TypeError, match="unexpected keyword argument 'n_gpu_layer'"):
        Llama(DEFAULT.path, n_gpu_layer=1)
    with pytest.raises(UnsupportedError, match="vocab_only: found True"):
        Llama(DEFAULT.path, vocab_only=True)
    llm = Llama(DEFAULT.path)
    with pytest.warns(UserWarning, match="mirostat_mode = 2 has no effect"):
        llm("a", max_tokens=1, mirostat_mode=2)
    with pytest.warns(UserWarning, match="has no chat template; llama-2 is used"):
        llm.create_chat_completion([{"role": "user", "content": "a"}], max_tokens=1)
    for call in (llm, llm.create_completion):
        with pytest.raises(TypeError, match="unexpected keyword argument 'temprature'"):
            call("a", temprature=1.0)


def test_a_pattern_names_one_file_of_a_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["tiny-q8_0.gguf", "tiny-q4_0.gguf", "README.md"]
    asked: list[tuple[str, str]] = []
    hub = SimpleNamespace(
        HfApi=lambda: SimpleNamespace(list_repo_files=lambda repo: names),
        hf_hub_download=lambda repo, name, **folders: asked.append((repo, name)) or DEFAULT.path,
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    llm = Llama.from_pretrained("someone/tiny", "*q8_0.gguf", n_threads=1)
    assert asked == [("someone/tiny", "tiny-q8_0.gguf")] and llm.model_path == DEFAULT.path
    for pattern, count in (("*.gguf", 2), ("*.bin", 0)):
        with pytest.raises(ValueError, match=f"someone/tiny: found {count} files that match"):
            Llama.from_pretrained("someone/tiny", pattern)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UnsupportedError, match=r"pip install 'lola-cpp\[hub\]'"):
        Llama.from_pretrained("someone/tiny", "*")


# --- Embeddings and caches ---


def test_an_embedding_is_the_models_own() -> None:
    text = "import os"
    for pooling_type, pooling in ((1, "mean"), (3, "last"), (-1, "none")):
        llm = Llama(DEFAULT.path, adapter=ADAPTER, embedding=True, pooling_type=pooling_type, n_threads=1)
        wanted = DEFAULT.embed(llm.tokenize(text.encode()), pooling=pooling)
        np.testing.assert_array_equal(np.array(llm.embed(text), dtype=np.float32), wanted)
    first = Llama(DEFAULT.path, adapter=ADAPTER, embedding=True, pooling_type=2, n_threads=1).embed([text, text])
    assert first[0] == first[1]
    # A GPU takes other kernels for the rows of two texts, which round activations in another way.
    np.testing.assert_allclose(first[0], wanted[0], rtol=0, atol=0 if DEVICE == "cpu" else 0.1)
    unit = np.array(llm.embed(text, normalize=True))
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, rtol=1e-5)


def test_embeddings_are_refused_where_they_were_not_asked_for(llama: Llama) -> None:
    with pytest.raises(RuntimeError, match="must be created with embedding=True"):
        llama.embed("x")
    with pytest.raises(UnsupportedError, match="pooling_type: found 4, wanted one of -1, 0, 1, 2, 3"):
        Llama(DEFAULT.path, embedding=True, pooling_type=4)


def test_a_text_beyond_the_kv_cache_is_cut_or_refused() -> None:
    llm = Llama(DEFAULT.path, n_ctx=16, embedding=True, pooling_type=1)
    text = "import os\n" * 20
    assert llm.embed(text) == llm.embed(llm.detokenize(llm.tokenize(text.encode())[:16]).decode())
    with pytest.raises(ValueError, match="context_length = 16"):
        llm.embed(text, truncate=False)


@pytest.fixture(params=["memory", "disk"])
def cache(request: pytest.FixtureRequest, tmp_path: Path) -> BaseLlamaCache:
    return LlamaRAMCache() if request.param == "memory" else LlamaDiskCache(tmp_path / "cache")


def tokens_read(llm: Llama, monkeypatch: pytest.MonkeyPatch, prompt: list[int]) -> int:
    """Of a prompt, by a completion of one token."""
    count = [0]
    read = Llama.eval
    with monkeypatch.context() as patch:
        patch.setattr(Llama, "eval", lambda llm, tokens: (count.append(len(tokens)), read(llm, tokens))[1])
        llm(prompt, max_tokens=1, temperature=0.0)
    return sum(count)


def test_a_cache_knows_the_prompts_of_other_conversations(
    cache: BaseLlamaCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = Llama(DEFAULT.path, adapter=ADAPTER, n_threads=1)
    llm.set_cache(cache)
    first, second = [5] * 300, [6] * 40
    assert tokens_read(llm, monkeypatch, first) == 300
    assert tokens_read(llm, monkeypatch, second) == 40
    assert tokens_read(llm, monkeypatch, [*first, 7]) == 1
    assert tokens_read(llm, monkeypatch, [*second, 7]) == 1
    assert tokens_read(llm, monkeypatch, [*first[:260], *second]) == 44  # from the mark at 256
    assert llm.input_ids.tolist() == [*first[:260], *second]
    assert 0 < cache.cache_size <= cache.capacity_bytes


@pytest.mark.parametrize("used", [None, "memory", "disk"])
def test_nothing_of_a_known_prompt_is_read_again(
    used: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    advance = _core.advance

    def counting(items: list[tuple[_core.Session, list[int]]], *rest: object) -> None:
        read.extend(len(tokens) for _, tokens in items)
        advance(items, *rest)

    caches = {None: None, "memory": LlamaRAMCache(), "disk": LlamaDiskCache(tmp_path / "cache")}
    llm = Llama(DEFAULT.path, adapter=ADAPTER, n_threads=1)
    llm.set_cache(caches[used])
    prompt = [int(t) for t in np.random.default_rng(0).integers(2, 1000, 600)]
    first = llm(prompt, max_tokens=8, temperature=0.0)["choices"]
    monkeypatch.setattr(_core, "advance", counting)
    assert llm(prompt, max_tokens=8, temperature=0.0)["choices"] == first
    assert read == [1] * 7
    if used is not None:
        llm.reset()
        read.clear()
        assert llm(prompt, max_tokens=8, temperature=0.0)["choices"] == first
        assert read == [1] * 7


def test_a_cached_conversation_goes_on_as_one_that_was_read(cache: BaseLlamaCache) -> None:
    prompt = [int(t) for t in np.random.default_rng(0).integers(2, 1000, 600)]
    results = []
    for used in (None, cache, cache):
        llm = Llama(DEFAULT.path, adapter=ADAPTER, n_threads=1)
        llm.set_cache(used)
        completion = llm(prompt, max_tokens=8, temperature=0.0)["choices"][0]["text"]
        shorter = llm(prompt[:500], max_tokens=8, temperature=0.0)["choices"][0]["text"]  # rewinds
        results.append((completion, shorter))
    assert results[0] == results[1] == results[2]


def test_the_sessions_used_least_lately_leave_a_full_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = Llama(DEFAULT.path, adapter=ADAPTER, n_threads=1)
    cache = LlamaRAMCache(capacity_bytes=2 * DEFAULT.session_bytes())
    llm.set_cache(cache)
    for token in (5, 6, 7):
        tokens_read(llm, monkeypatch, [token] * 20)
    assert cache.cache_size == cache.capacity_bytes
    assert tokens_read(llm, monkeypatch, [6] * 21) == 1
    assert tokens_read(llm, monkeypatch, [5] * 21) == 21


def test_a_closed_llama_says_so() -> None:
    llm = Llama(DEFAULT.path)
    assert llm.metadata["general.architecture"] == "llama"
    llm.close()
    for call in (llm.reset, llm.save_state, llm.n_vocab, lambda: llm("a")):
        with pytest.raises(UsageError, match="it is closed"):
            call()

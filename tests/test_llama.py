"""The drop-in Llama: the dictionaries, chunks and calls of llama-cpp-python."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lola_cpp import Model, UnsupportedError, UsageError
from lola_cpp.llama import Llama, LlamaGrammar, MinTokensLogitsProcessor, install_as_llama_cpp
from lola_cpp.llama.completion import PartReader, Step
from reference import llama_calls

DEFAULT = Model.default(threads=1)
ADAPTER = DEFAULT.path.replace("tiny.gguf", "tiny-lola.gguf")
PEER = os.environ.get("LOLA_TEST_PEER_PYTHON") or (sys.executable if importlib.util.find_spec("llama_cpp") else None)
LOGPROB_ERROR = 0.2  # both round activations to int8, in groups of another size
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)


@pytest.fixture(scope="module")
def llama() -> Llama:
    return Llama(DEFAULT.path, adapter=ADAPTER, chat_format="chatml", n_threads=1)


def with_template(path: Path) -> str:
    """The small model with a chat template in its file."""
    import gguf

    reader = gguf.GGUFReader(DEFAULT.path)
    writer = gguf.GGUFWriter(path, "llama")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        value_type = field.types[0]
        sub_type = field.types[-1] if value_type == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), value_type, sub_type=sub_type)
    writer.add_string("tokenizer.chat_template", TEMPLATE)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


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
    assert results[-1] == ["ValueError", "TypeError", "TypeError"]
    assert "".join(c["choices"][0]["text"] for c in results[1]) == results[0]["choices"][0]["text"]


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
    with pytest.raises(UnsupportedError, match="embedding: found True"):
        Llama(DEFAULT.path, embedding=True)
    llm = Llama(DEFAULT.path)
    with pytest.warns(UserWarning, match="mirostat_mode = 2 has no effect"):
        llm("a", max_tokens=1, mirostat_mode=2)
    with pytest.warns(UserWarning, match="has no chat template; llama-2 is used"):
        llm.create_chat_completion([{"role": "user", "content": "a"}], max_tokens=1)
    for call in (llm, llm.create_completion):
        with pytest.raises(TypeError, match="unexpected keyword argument 'temprature'"):
            call("a", temprature=1.0)


def test_a_closed_llama_says_so() -> None:
    llm = Llama(DEFAULT.path)
    assert llm.metadata["general.architecture"] == "llama"
    llm.close()
    for call in (llm.reset, llm.save_state, llm.n_vocab, lambda: llm("a")):
        with pytest.raises(UsageError, match="it is closed"):
            call()


# --- Wrappers of other projects, unmodified ---


@pytest.fixture
def as_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    install_as_llama_cpp()


@pytest.mark.filterwarnings("ignore")
def test_langchains_wrappers_run_on_it(as_llama_cpp: None, tmp_path: Path) -> None:
    community = pytest.importorskip("langchain_community.llms", reason="langchain-community is not installed")
    from langchain_community.chat_models import ChatLlamaCpp
    from langchain_core.messages import HumanMessage

    path = with_template(tmp_path / "m.gguf")
    wanted = Llama(path, n_ctx=256)("import os\n", max_tokens=10, temperature=0.0)["choices"][0]["text"]
    llm = community.LlamaCpp(model_path=path, n_ctx=256, max_tokens=10, temperature=0.0, repeat_penalty=1.0)
    assert llm.invoke("import os\n") == wanted
    assert "".join(llm.stream("import os\n")) == wanted
    assert llm.get_num_tokens("import os\n") > 2
    chat = ChatLlamaCpp(model_path=path, n_ctx=256, max_tokens=10, temperature=0.0)
    reply = chat.invoke([HumanMessage("import os")])
    assert reply.content
    assert "".join(part.content for part in chat.stream([HumanMessage("import os")])) == reply.content


@pytest.mark.filterwarnings("ignore")
def test_llama_indexs_wrapper_runs_on_it(as_llama_cpp: None) -> None:
    wrapper = pytest.importorskip("llama_index.llms.llama_cpp", reason="llama-index-llms-llama-cpp is not installed")
    wanted = Llama(DEFAULT.path, n_ctx=256)("import os\n", max_tokens=10, temperature=0)["choices"][0]["text"]
    llm = wrapper.LlamaCPP(
        model_path=DEFAULT.path,
        temperature=0.0,
        max_new_tokens=10,
        context_window=256,
        verbose=False,
        messages_to_prompt=lambda messages: "".join(message.content for message in messages),
        completion_to_prompt=lambda text: text,
    )
    assert llm.metadata.context_window == 256
    assert llm.complete("import os\n").text == wanted
    assert "".join(part.delta for part in llm.stream_complete("import os\n")) == wanted

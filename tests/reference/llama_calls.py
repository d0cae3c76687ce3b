"""Calls of llama-cpp-python's interface, for either library: `python llama_calls.py MODULE MODEL` prints a JSON list.

MODULE is llama_cpp or lola_cpp.llama; the module is all that differs.
"""

from __future__ import annotations

import importlib
import json
import sys
from typing import Any

import numpy as np

PROMPT = "import os\n\ndef add(a, b):\n"
MESSAGES = [{"role": "system", "content": "import os\n"}, {"role": "user", "content": "def add(a, b):"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"enum": ["Oslo"]}}, "required": ["city"]},
    },
}
GREEDY = {"temperature": 0.0}


def everything(library: Any, path: str) -> list[Any]:
    llm = library.Llama(path, n_ctx=512, n_threads=1, verbose=False, logits_all=True)

    def processors() -> Any:
        return library.LogitsProcessorList(
            [lambda ids, scores: np.where(np.arange(len(scores)) % 7 == 3, -1e9, scores)]
        )

    forced = {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "weather"}}, "max_tokens": 60}
    chat = {"messages": MESSAGES, "max_tokens": 12, **GREEDY}
    results: list[Any] = [
        llm(PROMPT, max_tokens=12, **GREEDY),
        list(llm(PROMPT, max_tokens=12, stream=True, **GREEDY)),
        llm.create_completion(PROMPT, max_tokens=30, stop=["\n\n", " b and"], logprobs=2, **GREEDY),
        list(llm.create_completion(PROMPT, max_tokens=30, stop=[" and b"], stream=True, **GREEDY)),
        list(llm.create_completion(PROMPT, max_tokens=6, logprobs=1, stream=True, **GREEDY)),
        llm(PROMPT, max_tokens=8, echo=True, **GREEDY),
        llm(PROMPT, max_tokens=8, logits_processor=processors(), **GREEDY),
        llm(PROMPT, max_tokens=8, logit_bias={303: -100.0}, repeat_penalty=1.3, **GREEDY),
        llm(
            PROMPT, max_tokens=20, stopping_criteria=library.StoppingCriteriaList([lambda i, s: len(i) > 20]), **GREEDY
        ),
        llm(llm.tokenize(PROMPT.encode()), max_tokens=4, model="name", **GREEDY),
        llm.create_chat_completion(**chat),
        list(llm.create_chat_completion(stream=True, **chat)),
        llm.create_chat_completion(logprobs=True, top_logprobs=1, **chat),
        llm.tokenize(b"hello <|eos|>"),
        llm.tokenize(b"hello <|eos|>", special=True, add_bos=False),
        llm.detokenize([5, 6, 7, 1, 300]).decode(),
        [llm.n_ctx(), llm.n_vocab(), llm.n_embd(), llm.token_bos(), llm.token_eos(), llm.token_nl()],
    ]
    results.append([token for token, _ in zip(llm.generate([5, 6, 7], temp=0.0), range(8), strict=False)])
    llm.reset()
    llm.eval([5, 6, 7])
    first = llm.sample(temp=0.0)
    state = llm.save_state()
    llm.eval([first, 9])
    results.append([first, llm.n_tokens])
    llm.load_state(state)
    results.append([llm.n_tokens])
    results.append({"shape": shape(llm.create_chat_completion(MESSAGES, **forced))})
    results.append({"shape": [shape(c) for c in list(llm.create_chat_completion(MESSAGES, stream=True, **forced))[:3]]})
    results.append({"refusals": refusals(llm)})
    results += embeddings(library, path)
    llm.set_cache(library.LlamaRAMCache(1 << 28))
    results += [llm(PROMPT, max_tokens=6, **GREEDY) for _ in range(2)]
    llm.close()
    return results


def embeddings(library: Any, path: str) -> list[Any]:
    results: list[Any] = []
    for pooling_type in (-1, 1, 2, 3):
        llm = library.Llama(path, n_ctx=512, n_threads=1, verbose=False, embedding=True, pooling_type=pooling_type)
        # llama-cpp-python mistakes the place of a second text's vectors where nothing is pooled.
        results.append(llm.create_embedding(["import os", "def add(a, b):"][: 1 if pooling_type == -1 else 2]))
        results.append(llm.embed(PROMPT, normalize=True, return_count=True))
        llm.close()
    return results


def refusals(llm: Any) -> list[str]:
    """Names of the errors of wrong calls."""
    names = []
    for call in (lambda: llm([5] * 600), lambda: llm("x", temprature=1), lambda: llm.create_completion()):
        try:
            call()
        except Exception as error:
            names.append(next(t.__name__ for t in type(error).mro() if t.__module__ == "builtins"))
    return names


def shape(value: Any) -> Any:
    """A value with its texts and numbers replaced by their types."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    return [shape(item) for item in value] if isinstance(value, list) else type(value).__name__


if __name__ == "__main__":
    print(json.dumps(everything(importlib.import_module(sys.argv[1]), sys.argv[2]), default=float))

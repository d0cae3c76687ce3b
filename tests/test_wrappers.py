"""Wrappers that other projects wrote for llama-cpp-python, unmodified: they import `llama_cpp` and get this package."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from lola_cpp import Model
from lola_cpp.llama import Llama, install_as_llama_cpp
from reference.default_model import DEFAULT, with_template


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
def test_langchains_embeddings_run_on_it(as_llama_cpp: None) -> None:
    community = pytest.importorskip("langchain_community.embeddings", reason="langchain-community is not installed")
    embeddings = community.LlamaCppEmbeddings(model_path=DEFAULT.path, n_ctx=256)
    texts = ["import os", "def add(a, b):"]
    vectors = embeddings.embed_documents(texts)
    model = Model(DEFAULT.path)  # without the adapter
    rows = [row for text in texts for row in model.embed(text, pooling="none")]  # as with llama-cpp-python
    np.testing.assert_allclose(np.ravel(vectors), np.ravel(rows), atol=1e-5)


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

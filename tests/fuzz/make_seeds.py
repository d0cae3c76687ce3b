"""Writes what the fuzz targets start from: tiny files of every kind, made by tests/reference/tiny_gguf.py.

    PYTHONPATH=python:tests python tests/fuzz/make_seeds.py

tiny_model.gguf and tiny_adapter.gguf are fixed parts of the targets; corpus/<target>/ are first inputs.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest import mock

from lola_cpp import Model, Sampler
from reference import crafted_gguf, tiny_gguf
from reference.tiny_gguf import TinyAdapter, tiny

HERE = Path(__file__).parent
CONFIG = tiny(layers=2, hidden=32, ffn=32, head_dim=32, heads=2, kv_heads=1, tied=True)
ADAPTER = TinyAdapter(feature_dim=2, window_size=2, chunk_size=2, sparse_size=1, lora_rank=1, softmax_layers=(1,))
VOCABULARY = 16  # rows of the embedding: what lies in the file 272 times teaches a fuzzer nothing


def small_vocabulary() -> mock._patch[object]:
    return mock.patch.object(tiny_gguf, "vocabulary", lambda: [f"t{i}" for i in range(VOCABULARY)])


def write_model(path: Path, *, tensor_format: str = "F16", tokens: bool = False, **changes: object) -> None:
    config = replace(CONFIG, **changes)
    write_tokens = (lambda writer: writer.add_token_list(tiny_gguf.vocabulary())) if tokens else lambda _: None
    with mock.patch.object(tiny_gguf, "write_vocabulary", write_tokens):
        tiny_gguf.write_model(path, config, tiny_gguf.random_weights(config), tensor_format=tensor_format)


def write_adapter(path: Path, **changes: object) -> None:
    adapter = replace(ADAPTER, **changes)
    tiny_gguf.write_adapter(path, CONFIG, adapter, tiny_gguf.random_adapter(CONFIG, adapter))


def write_states(folder: Path) -> None:
    model = Model(HERE / "tiny_model.gguf", HERE / "tiny_adapter.gguf", threads=1)
    for pair_type, length in (("f16", 0), ("f16", 7), ("f32", 2), ("q8_0", 3)):
        session = model.session(pair_type=pair_type, context_length=64)
        if length:
            session.append(list(range(5, 5 + length)))
        session.save(folder / f"{pair_type}_{length}.gguf")
    for name, options in {"sampler": {}, "sampler_bias": {"logit_bias": {3: 1.0}, "penalty_window": -1}}.items():
        sampler = Sampler(temperature=0.8, top_k=5, seed=1, repetition_penalty=1.1, **options)
        sampler.accept([1, 2, 3])
        (folder / f"{name}.bin").write_bytes(sampler.save())


def main() -> None:
    gguf_folder, model, adapter, state = (HERE / "corpus" / name for name in ("gguf", "model", "adapter", "state"))
    for folder in (gguf_folder, model, adapter, state):
        folder.mkdir(parents=True, exist_ok=True)
    crafted_gguf.write_package_file(gguf_folder / "every_type.gguf", crafted_gguf.fill_with_every_type)
    with small_vocabulary():
        write_model(HERE / "tiny_model.gguf")
        write_adapter(HERE / "tiny_adapter.gguf")
        write_model(model / "llama.gguf", tokens=True, layers=1)
        write_model(model / "llama_yarn.gguf", rope_scaling="yarn", layers=1, tensor_format="Q8_0")
        write_model(model / "llama3.gguf", rope_scaling="llama3", layers=1, tensor_format="Q4_0")
        write_model(model / "qwen2.gguf", arch="qwen2", layers=1)
        write_model(model / "qwen3.gguf", arch="qwen3", layers=1)
        write_adapter(adapter / "lora.gguf")
        write_adapter(adapter / "plain.gguf", lora_rank=0)
        write_adapter(adapter / "skip.gguf", lora_rank=0, feature_dim=32, skip_connection=True, sparse_scope="group")
        write_adapter(adapter / "exp.gguf", feature_map="exp_dim", mixing="lolcats", policy="random", affine=True)
    write_states(state)


if __name__ == "__main__":
    main()

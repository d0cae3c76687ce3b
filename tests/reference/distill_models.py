"""Tiny models and texts to distil, for tests that have PyTorch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from byte_tokenizer import write_byte_tokenizer
from lola_cpp.convert.adapter import Settings
from lola_cpp.distill.options import Options
from reference import tiny_gguf
from reference.tiny_gguf import tiny

SHAPE = {"hidden": 64, "ffn": 96, "head_dim": 16, "heads": 4, "kv_heads": 2}
SMALL = Settings(window_size=16, chunk_size=16, sparse_size=0)


def write_folder(folder: Path, arch: str = "llama", name: str | None = None, **shape: object) -> Path:
    """A tiny random model with a tokenizer of bytes, as a Hugging Face folder."""
    config = tiny(arch, **SHAPE | shape)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {key: torch.from_numpy(value) for key, value in tiny_gguf.random_weights(config, std=0.12).items()}
    save_file(weights, folder / "model.safetensors")
    values = tiny_gguf.hf_config(config) | ({"architectures": [name], "model_type": "mistral"} if name else {})
    (folder / "config.json").write_text(json.dumps(values))
    write_byte_tokenizer(folder, config.vocab_size)
    return folder


def write_text(path: Path, sentences: int = 400) -> Path:
    rng = np.random.default_rng(3)
    words = ["the", "river", "runs", "under", "a", "stone", "bridge", "and", "falls"]
    path.write_text(" ".join(words[i] for i in rng.integers(0, len(words), 4 * sentences)))
    return path


def small_options(tmp_path: Path) -> Options:
    return Options(
        model=write_folder(tmp_path / "model"),
        data=(write_text(tmp_path / "text.txt"),),
        folder=tmp_path / "work",
        settings=SMALL,
        length=96,
        batch=4,
        micro_batch=2,
        transfer_steps=6,
        lora_steps=4,
        lora_rank=2,
        checkpoint_every=2,
    )

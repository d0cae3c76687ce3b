"""What distillation is given: data become rows of tokens; bad files, options, models and small cards are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import pre_tokenizers

from lola_cpp._core import DeviceError, FormatError, UnsupportedError, UsageError
from lola_cpp.convert.adapter import Settings
from lola_cpp.convert.layout import Heads

torch = pytest.importorskip("torch", reason="distillation needs torch")
pytest.importorskip("transformers", reason="distillation needs transformers")
pytest.importorskip("safetensors", reason="the models of these tests are written with safetensors")

from lola_cpp.distill import capacity  # noqa: E402
from lola_cpp.distill.data import read_sequences  # noqa: E402
from lola_cpp.distill.options import Options  # noqa: E402
from lola_cpp.distill.run import open_teacher  # noqa: E402
from reference.distill_models import SMALL, small_options  # noqa: E402


@pytest.fixture
def options(tmp_path) -> Options:
    return small_options(tmp_path)


def read(options: Options, *paths: Path, length: int = 8):
    return read_sequences(paths, options.model, length=length, vocab_size=272, seed=0)


def test_files_folders_and_json_lines_become_one_row_of_tokens(tmp_path, options):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.txt").write_text("abcd")
    (tmp_path / "d" / "b.bin").write_bytes(b"\xff")
    (tmp_path / "e.jsonl").write_text('{"text": "ab"}\n{"tokens": [7, 8, 9]}\n{"text": "c"}\n')
    found = read(options, tmp_path / "d", tmp_path / "e.jsonl", length=3).tokens
    a = 2 + sorted(pre_tokenizers.ByteLevel.alphabet()).index("a")
    assert found.flatten().tolist() == [a, a + 1, a + 2, a + 3, 1, a, a + 1, 1, 7, 8, 9, a + 2]


def test_every_sequence_is_seen_once_in_an_epoch_and_held_out_ones_never(options):
    data = read(options, options.data[0])
    training = len(data.tokens) - len(data.held_out)
    rows = torch.cat([data.batch(step, 1) for step in range(training)]).tolist()
    wanted = np.delete(data.tokens, np.s_[::50], 0).tolist()
    assert sorted(rows) == sorted(wanted)
    assert rows != wanted


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not valid JSON"),
        ('{"words": "x"}', 'line 2: wanted an object with a string "text" or numbers "tokens"'),
        ('{"tokens": [1.5]}', "line 2: wanted an object"),
        ('{"tokens": [272]}', "found token 272, wanted 0 to 271"),
        ('{"tokens": [-1]}', "found token -1, wanted 0 to 271"),
    ],
)
def test_bad_lines_are_named(tmp_path, options, line, message):
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n' + line)
    with pytest.raises(FormatError, match=message):
        read(options, tmp_path / "x.jsonl")


def test_bad_files_are_named(tmp_path, options):
    (tmp_path / "x.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(FormatError, match=r"x\.txt' is not UTF-8"):
        read(options, tmp_path / "x.txt")
    (tmp_path / "x.txt").write_text("short")
    with pytest.raises(UsageError, match="found 6 tokens, wanted at least two sequences of 8"):
        read(options, tmp_path / "x.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="has no files ending in"):
        read(options, tmp_path / "empty")
    with pytest.raises(UsageError, match="does not exist"):
        read(options, tmp_path / "nowhere")


# Options, models and cards that do not fit


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch": 0}, "batch: found 0"),
        ({"micro_batch": 3}, "micro_batch: found 3, wanted a divisor of the batch, 4"),
        ({"transfer_steps": -1}, "transfer_steps: found -1"),
        ({"lora_window": (16, 24)}, "lora_window: found 24, wanted a multiple of the chunk_size, 16"),
        ({"replay": True}, "replay: found device cpu and weights device, wanted cuda and device"),
        ({"lora_target": "next"}, "lora_target: found 'next', wanted one of text, teacher"),
        ({"lora_cache": (8,), "settings": replace(SMALL, policy="first")}, "lora_cache: found policy first"),
    ],
)
def test_options_out_of_range_are_refused(options, changes, message):
    with pytest.raises(UsageError, match=message):
        replace(options, **changes)


def edit_config(options: Options, **changes: object) -> None:
    path = options.model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_models_that_cannot_be_distilled_are_refused_at_once(options):
    edit_config(options, architectures=["GPT2LMHeadModel"])
    with pytest.raises(UnsupportedError, match="found 'GPT2LMHeadModel', wanted one of LlamaForCausalLM"):
        open_teacher(options)
    edit_config(options, architectures=["MistralForCausalLM"], model_type="mistral", sliding_window=64)
    with pytest.raises(UsageError, match="length: found 96, wanted at most 64, the teacher's own sliding window"):
        open_teacher(options)
    with pytest.raises(UsageError, match=r"has no config\.json"):
        open_teacher(replace(options, model=options.folder))


def test_weights_that_do_not_fit_the_config_are_named(options):
    edit_config(options, intermediate_size=80)
    with pytest.raises(FormatError, match=r"mlp.gate_proj.weight': found shape \[96, 64\], wanted shape \[80, 64\]"):
        open_teacher(options).layer(0)


def test_a_card_that_is_too_small_is_said_before_anything_is_read(options, monkeypatch):
    base = open_teacher(options).base
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1 << 20, 1 << 30))
    with pytest.raises(DeviceError, match=r"found 0\.0 GiB free, wanted about .*: try weights host"):
        capacity.check_capacity(replace(options, device="cuda"), base, 1 << 30, 1 << 30)


def test_an_8b_model_fits_a_card_of_24_gib_in_bfloat16(options):
    base = replace(
        open_teacher(options).base, block_count=32, embedding_length=4096, heads=Heads(32, 8, 128), vocab_size=128256
    )
    large = replace(options, dtype="bfloat16", length=1024, batch=8, micro_batch=1, settings=Settings(feature_dim=64))
    parts = capacity.needed_bytes(large, base, 436_000_000, 2_101_346_304)
    assert sum(parts.values()) < 22 << 30


def test_without_a_gpu_the_device_cuda_is_refused(options):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(DeviceError, match="sees no GPU"):
        open_teacher(replace(options, device="cuda"))

"""Distillation: the student computes what the engine does, a killed run goes on exactly, bad input is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import pre_tokenizers

from byte_tokenizer import write_byte_tokenizer
from lola_cpp import Model
from lola_cpp._core import DeviceError, FormatError, GgufFile, UnsupportedError, UsageError
from lola_cpp.convert.adapter import Settings
from lola_cpp.convert.hf import convert_folder
from lola_cpp.convert.layout import Heads
from reference import tiny_gguf
from reference.tiny_gguf import tiny

torch = pytest.importorskip("torch", reason="distillation needs torch")
pytest.importorskip("transformers", reason="distillation needs transformers")
pytest.importorskip("safetensors", reason="the models of these tests are written with safetensors")

from safetensors.torch import save_file  # noqa: E402

from lola_cpp.distill import capacity, cli, linear_attention  # noqa: E402
from lola_cpp.distill.checkpoint import load_state  # noqa: E402
from lola_cpp.distill.data import read_sequences  # noqa: E402
from lola_cpp.distill.export import export_adapter  # noqa: E402
from lola_cpp.distill.feature_map import initial_maps  # noqa: E402
from lola_cpp.distill.lora import Student  # noqa: E402
from lola_cpp.distill.options import Options  # noqa: E402
from lola_cpp.distill.run import distill, open_teacher, train  # noqa: E402
from lola_cpp.distill.transfer import Transfer  # noqa: E402

ROOT = Path(__file__).parent.parent
# Two layers of float32 sums in two orders; 1e-6 is usual.
FLOAT32_TOLERANCE = 1e-3
SHAPE = {"hidden": 64, "ffn": 96, "head_dim": 16, "heads": 4, "kv_heads": 2}
TOKENS = [int(x) for x in np.random.default_rng(5).integers(2, 272, 150)]
SMALL = Settings(window_size=16, chunk_size=16, sparse_size=0)
CASES = {
    "terraced": SMALL,
    "several chunks in the window": replace(SMALL, window_size=48),
    "chunks longer than a block": replace(SMALL, window_size=96, chunk_size=96),
    "strict": replace(SMALL, window_size=15, chunk_size=1),
    "strict and longer than a block": replace(SMALL, window_size=70, chunk_size=1),
    "lolcats": replace(SMALL, mixing="lolcats"),
    "lolcats affine": replace(SMALL, mixing="lolcats", affine=True),
    "natural": replace(SMALL, mixing="natural"),
    "half": replace(SMALL, feature_map="softmax_dim_half", feature_dim=8),
    "exp": replace(SMALL, feature_map="exp_dim", feature_dim=8),
    "exp half": replace(SMALL, feature_map="exp_dim_half"),
    "relu": replace(SMALL, feature_map="relu", skip_connection=True),
    "elu": replace(SMALL, feature_map="pos_elu", skip_connection=True),
    "a softmax layer": replace(SMALL, softmax_layers=(1,)),
}


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


@pytest.fixture
def options(tmp_path) -> Options:
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


def random_student(options: Options) -> Student:
    """With maps, window factors and updates far from where training begins."""
    teacher = open_teacher(options)
    transfer = Transfer.start(options, teacher)
    student = Student.start(options, teacher, transfer.maps)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for tensors, scale in ((transfer.tensors(), 0.4), (student.tensors(), 0.1)):
            for value in tensors.values():
                value.copy_(scale * torch.randn(value.shape, generator=generator))
    return student


def assert_the_engine_agrees(student: Student, options: Options, tmp_path: Path, *, sparse_size: int = 0) -> None:
    convert_folder(options.model, tmp_path / "base.gguf", kind="f32")
    export_adapter(student, tmp_path / "adapter.gguf")
    model = Model(tmp_path / "base.gguf", tmp_path / "adapter.gguf", threads=1)
    session = model.session(pair_type="f32", sparse_size=sparse_size)
    found = []
    for token in TOKENS:
        session.append([token])
        found.append(session.logits)
    with torch.no_grad():
        wanted = student.logits(torch.tensor([TOKENS]), sparse_size=sparse_size)[0].numpy()
    assert np.abs(np.array(found) - wanted).max() < FLOAT32_TOLERANCE * np.abs(wanted).max()


@pytest.mark.parametrize("name", CASES)
def test_the_exported_adapter_gives_the_engine_the_logits_of_the_student(tmp_path, options, name):
    options = replace(options, settings=CASES[name])
    assert_the_engine_agrees(random_student(options), options, tmp_path)


@pytest.mark.parametrize(
    ("arch", "name", "shape"),
    [
        ("qwen2", None, {}),
        ("qwen3", None, {"tied": True}),
        ("llama", "MistralForCausalLM", {}),
        ("llama", None, {"rope_scaling": "llama3", "rope_original_context": 32}),
        ("qwen2", None, {"rope_scaling": "yarn", "rope_original_context": 32}),
    ],
)
def test_every_architecture_gives_the_engine_the_logits_of_the_student(tmp_path, options, arch, name, shape):
    options = replace(options, model=write_folder(tmp_path / "other", arch, name, **shape))
    assert_the_engine_agrees(random_student(options), options, tmp_path)


@pytest.mark.parametrize("policy", ["self_recall", "weighted_recall"])
@pytest.mark.parametrize("window", [16, 32])
def test_attention_with_a_sparse_cache_is_the_engines(tmp_path, options, policy, window):
    settings = replace(SMALL, window_size=window, policy=policy, kappa=0.7)
    options = replace(options, settings=settings)
    assert_the_engine_agrees(random_student(options), options, tmp_path, sparse_size=24)


@pytest.mark.parametrize("name", ["terraced", "several chunks in the window", "lolcats affine", "exp"])
def test_the_walk_over_boundaries_gives_the_outputs_and_gradients_of_the_blocks(name):
    settings, generator = CASES[name], torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, heads, 100, 16, generator=generator) for heads in (4, 2, 2))
    gradients = []
    for attend, extra in ((linear_attention.attend, ()), (linear_attention.attend_with_cache, (0,))):
        maps = initial_maps(Heads(4, 2, 16), settings, 0, seed=2, device="cpu")
        y = attend(q, k, v, maps, settings, *extra)
        y.square().sum().backward()
        gradients.append((y.detach(), maps.query_map.grad, maps.key_map.grad, maps.window_logits.grad))
    for found, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


def test_the_memory_of_the_attention_grows_with_the_tokens_not_their_square():
    settings = replace(SMALL, window_size=64, chunk_size=64)
    sizes = {}
    for tokens in (1024, 4096):
        maps = initial_maps(Heads(1, 1, 16), settings, 0, seed=0, device="cpu")
        saved = 0

        def count(tensor):
            nonlocal saved
            saved += tensor.numel()
            return tensor

        q = torch.zeros(1, 1, tokens, 16)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            linear_attention.attend(q, q, q, maps, settings)
        sizes[tokens] = saved
    assert 3.5 < sizes[4096] / sizes[1024] < 4.5


# Training


def test_attention_transfer_lowers_the_error_of_every_layer_and_lora_the_loss(options):
    options = replace(options, transfer_steps=60, lora_steps=30, lora_rate=1e-2, checkpoint_every=1000)
    teacher = open_teacher(options)
    data = read_sequences(options.data, options.model, length=96, vocab_size=teacher.base.vocab_size, seed=0)
    before = Transfer.start(options, teacher).report(data)
    train(options, teacher, data)
    report = json.loads((options.folder / "report.json").read_text())
    assert all(report["attention_error"][str(layer)] < 0.9 * error for layer, error in before.items())
    assert report["loss"]["student"] < report["loss_before_lora"]["student"]
    assert report["loss"]["teacher"] == report["loss_before_lora"]["teacher"]


def test_lora_trains_with_a_window_of_its_own_and_the_adapter_keeps_that_of_the_settings(tmp_path, options):
    teacher = open_teacher(options)
    data = read_sequences(options.data, options.model, length=96, vocab_size=teacher.base.vocab_size, seed=0)
    found = {}
    for window in ((), (96,)):  # nothing ever leaves a window as long as the sequences: the maps do not matter
        for seed in (0, 1):
            run = replace(options, lora_window=window, seed=seed, folder=tmp_path / f"{len(window)} {seed}")
            student = Student.start(replace(run, seed=0), teacher, Transfer.start(run, teacher).maps)
            student.train(data)
            found[window, seed] = torch.cat([value.detach().flatten() for value in student.tensors().values()])
    assert torch.allclose(found[(96,), 0], found[(96,), 1], atol=1e-6)
    assert not torch.allclose(found[(), 0], found[(), 1], atol=1e-6)
    export_adapter(student, tmp_path / "adapter.gguf")
    assert GgufFile(tmp_path / "adapter.gguf").find_int("adapter.lola.window_size", 0, 1 << 20) == 16


def test_lora_learns_the_teachers_logits_where_they_are_its_target(options):
    options = replace(options, transfer_steps=0, lora_steps=30, lora_rate=1e-2, lora_target="teacher")
    teacher = open_teacher(options)
    data = read_sequences(options.data, options.model, length=96, vocab_size=teacher.base.vocab_size, seed=0)
    held_out = torch.from_numpy(data.held_out.astype("int64"))
    student = Student.start(options, teacher, Transfer.start(options, teacher).maps)
    before = student.divergence(held_out)
    everything = student.with_settings(window_size=96)  # softmax attention, and no updates yet
    assert everything.divergence(held_out).item() == pytest.approx(0, abs=1e-5)
    student.train(data)
    assert student.divergence(held_out) < 0.9 * before


@pytest.mark.parametrize("weights", ["host", "disk"])
def test_weights_that_wait_elsewhere_train_the_same_maps(tmp_path, options, weights):
    distill(options, tmp_path / "device.gguf")
    distill(replace(options, weights=weights, folder=tmp_path / "other"), tmp_path / "other.gguf")
    assert (tmp_path / "device.gguf").read_bytes() == (tmp_path / "other.gguf").read_bytes()


def test_micro_batches_add_up_to_the_batch(tmp_path, options):
    teacher, tokens = open_teacher(options), torch.tensor([TOKENS[:96], TOKENS[50:146]])
    gradients = []
    for size in (1, 2):
        transfer = Transfer.start(replace(options, batch=2, micro_batch=size), teacher)
        # The variance is that of the micro-batch: equal sequences have the same.
        transfer.step(tokens[:1].repeat(2, 1))
        gradients.append([value.grad for value in transfer.tensors().values()])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6)


def command(options: Options, output: Path) -> list[str]:
    arguments = ["--length", "96", "--batch", "4", "--transfer-steps", "6", "--lora-steps", "4", "--lora-rank", "2"]
    arguments += ["--checkpoint-every", "1", "--window", "16", "--chunk", "16", "--sparse", "0", "--device", "cpu"]
    return [str(options.model), "--data", *map(str, options.data), "-o", str(output), *arguments]


@pytest.mark.parametrize("stage", ["transfer.pt", "lora.pt"])
def test_a_run_killed_in_the_middle_goes_on_to_the_same_weights(tmp_path, options, stage):
    assert cli.main(command(options, tmp_path / "whole.gguf")) == 0
    program = f"""
import os, signal
from lola_cpp.distill import checkpoint, cli, stage
save = checkpoint.save_state
def save_and_die(path, step, *rest):
    save(path, step, *rest)
    if path.name == {stage!r} and step == 2:
        os.kill(os.getpid(), signal.SIGKILL)
stage.save_state = save_and_die
cli.main({command(options, tmp_path / "killed.gguf")!r})
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    killed = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert not (tmp_path / "killed.gguf").exists()
    assert cli.main(command(options, tmp_path / "killed.gguf")) == 0
    assert (tmp_path / "killed.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_a_finished_run_is_not_trained_again(tmp_path, options):
    distill(options, tmp_path / "first.gguf")
    times = {path: path.stat().st_mtime_ns for path in options.folder.glob("*.pt")}
    time.sleep(0.01)
    distill(options, tmp_path / "second.gguf")
    assert {path: path.stat().st_mtime_ns for path in options.folder.glob("*.pt")} == times
    assert (tmp_path / "first.gguf").read_bytes() == (tmp_path / "second.gguf").read_bytes()


def test_a_checkpoint_of_other_options_is_refused_by_name(tmp_path, options):
    distill(options, tmp_path / "a.gguf")
    with pytest.raises(UsageError, match=r"transfer\.pt.* transfer_rate 0\.01, wanted 0\.02"):
        distill(replace(options, transfer_rate=0.02), tmp_path / "a.gguf")
    (options.folder / "transfer.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(FormatError, match="is not a checkpoint of this stage"):
        distill(options, tmp_path / "a.gguf")


def test_maps_of_another_run_take_the_place_of_a_transfer(tmp_path, options):
    distill(options, tmp_path / "first.gguf")
    maps = options.folder / "transfer.pt"
    again = replace(options, maps=maps, transfer_rate=0.5, folder=tmp_path / "again")
    distill(again, tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "first.gguf").read_bytes()
    assert not (again.folder / "transfer.pt").exists()
    with pytest.raises(FormatError, match=r"lora\.pt' is not a checkpoint of this stage"):
        distill(replace(again, maps=options.folder / "lora.pt", folder=tmp_path / "wrong"), tmp_path / "wrong.gguf")


def test_a_checkpoint_that_is_not_there_is_no_steps(tmp_path):
    assert load_state(tmp_path / "none.pt", {}, {}) == 0


# Data


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


def test_the_command_line_reports_the_error_by_layer(tmp_path, options, capsys):
    assert cli.main(command(options, tmp_path / "out.gguf")) == 0
    printed = capsys.readouterr().out
    assert "relative error of the attention on held-out text, by layer\n    0  0." in printed
    assert "held-out loss after LoRA: teacher " in printed
    arguments = command(options, tmp_path / "out.gguf")
    arguments[2] = str(tmp_path / "nowhere")
    assert cli.main(arguments) == 1
    assert "error: data: " in capsys.readouterr().err

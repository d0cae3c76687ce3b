"""Distillation: the student computes what the engine does, training lowers its error, a killed run goes on exactly."""

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

from lola_cpp import Model
from lola_cpp._core import FormatError, GgufFile, UsageError
from lola_cpp.convert.hf import convert_folder
from lola_cpp.convert.layout import Heads

torch = pytest.importorskip("torch", reason="distillation needs torch")
pytest.importorskip("transformers", reason="distillation needs transformers")
pytest.importorskip("safetensors", reason="the models of these tests are written with safetensors")


from lola_cpp.distill import cli, linear_attention  # noqa: E402
from lola_cpp.distill.checkpoint import load_state  # noqa: E402
from lola_cpp.distill.data import read_sequences  # noqa: E402
from lola_cpp.distill.export import export_adapter  # noqa: E402
from lola_cpp.distill.feature_map import initial_maps  # noqa: E402
from lola_cpp.distill.lora import Student  # noqa: E402
from lola_cpp.distill.options import Options  # noqa: E402
from lola_cpp.distill.run import distill, open_teacher, train  # noqa: E402
from lola_cpp.distill.transfer import Transfer  # noqa: E402
from reference.distill_models import SMALL, small_options, write_folder  # noqa: E402

ROOT = Path(__file__).parent.parent
# Two layers of float32 sums in two orders; 1e-6 is usual.
FLOAT32_TOLERANCE = 1e-3
TOKENS = [int(x) for x in np.random.default_rng(5).integers(2, 272, 150)]
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


@pytest.fixture
def options(tmp_path) -> Options:
    return small_options(tmp_path)


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


def test_the_maps_go_on_learning_with_lora_where_they_shall(options):
    teacher = open_teacher(options)
    data = read_sequences(options.data, options.model, length=96, vocab_size=teacher.base.vocab_size, seed=0)
    for lora_maps in (False, True):
        run = replace(options, lora_maps=lora_maps, lora_cache=(0, 24), lora_window=(16, 32))
        student = Student.start(run, teacher, Transfer.start(run, teacher).maps)
        before = [value.detach().clone() for maps in student.maps.values() for value in maps.tensors().values()]
        student.train(data)
        (options.folder / "lora.pt").unlink()
        after = [value for maps in student.maps.values() for value in maps.tensors().values()]
        assert all(torch.equal(old, new) != lora_maps for old, new in zip(before, after, strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="graphs are CUDA's")
def test_replayed_steps_train_what_steps_do(tmp_path, options):
    trained = []
    for replay in (False, True):
        run = replace(options, device="cuda", replay=replay, lora_maps=True, folder=tmp_path / str(replay))
        distill(replace(run, lora_cache=(8, 24), lora_window=(16, 32)), tmp_path / "a.gguf")
        trained.append(torch.load(run.folder / "lora.pt")["tensors"])
    for name, value in trained[0].items():
        torch.testing.assert_close(trained[1][name], value, rtol=1e-2, atol=1e-3)


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


def test_the_command_line_reports_the_error_by_layer(tmp_path, options, capsys):
    assert cli.main(command(options, tmp_path / "out.gguf")) == 0
    printed = capsys.readouterr().out
    assert "relative error of the attention on held-out text, by layer\n    0  0." in printed
    assert "held-out loss after LoRA: teacher " in printed
    arguments = command(options, tmp_path / "out.gguf")
    arguments[2] = str(tmp_path / "nowhere")
    assert cli.main(arguments) == 1
    assert "error: data: " in capsys.readouterr().err

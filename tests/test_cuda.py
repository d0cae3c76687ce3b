"""The GPU against the CPU: the same models, sessions and files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lola_cpp
from lola_cpp import Batch, DeviceError, Model, Sampler, UnsupportedError, _core
from lola_cpp._core import GgufFile
from lola_cpp.convert.copying import copy_keys
from lola_cpp.convert.output import OutputTensor, write_gguf
from lola_cpp.eval.tasks import make_prompt
from lola_cpp.passes import advance
from reference import tiny_gguf
from reference.device import why_missing
from reference.tiny_gguf import TinyAdapter, TinyConfig, tiny

MISSING = why_missing("cuda")
needs_gpu = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))

# float32 sums in another order, through two layers.
ROUNDING = 2e-4
# The CPU rounds activations to 8 bits (1/254 of a block's largest), the GPU to 11; both are within this of the truth.
INT8_NOISE = 0.03
CONFIG = tiny(heads=8, kv_heads=2, head_dim=64, hidden=256, ffn=512)
LONG = 700


def tokens(count: int, seed: int = 0) -> list[int]:
    return [int(x) for x in np.random.default_rng(seed).integers(2, CONFIG.vocab_size, count)]


def models(folder: Path, adapter: TinyAdapter, tensor_format: str = "F32", config: TinyConfig = CONFIG) -> list[Model]:
    """The same model on the CPU and on the GPU."""
    weights = tiny_gguf.random_weights(config, std=0.06)
    tiny_gguf.write_model(folder / "m.gguf", config, weights, tensor_format=tensor_format)
    tiny_gguf.write_adapter(folder / "a.gguf", config, adapter, tiny_gguf.random_adapter(config, adapter))
    return [Model(folder / "m.gguf", folder / "a.gguf", device=device) for device in ("cpu", "cuda")]


def error(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(np.float64(found) - wanted).max() / np.abs(wanted).max())


def noise(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.sqrt(np.mean((np.float64(found) - wanted) ** 2) / np.mean(np.float64(wanted) ** 2)))


def test_a_missing_gpu_or_library_is_a_clear_error() -> None:
    if MISSING is None:
        pytest.skip("there is a GPU")
    with pytest.raises((DeviceError, UnsupportedError), match="device cuda: "):
        Model.default(device="cuda")


@needs_gpu
@pytest.mark.parametrize("pair_type", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_long_texts_give_what_the_cpu_gives(tmp_path: Path, pair_type: str, head_dim: int) -> None:
    # `first` keeps fixed pairs: a near tie of recall errors cannot part the two.
    adapter = TinyAdapter(feature_dim=head_dim, window_size=64, chunk_size=64, sparse_size=96, policy="first")
    config = tiny(heads=8, kv_heads=2, head_dim=head_dim, hidden=256, ffn=512)
    cpu, gpu = (model.session(pair_type=pair_type) for model in models(tmp_path, adapter, config=config))
    for session in (cpu, gpu):
        session.append(tokens(LONG))
    assert error(gpu.logits, cpu.logits) < (5e-3 if pair_type == "q8_0" else ROUNDING)
    for token in tokens(70, seed=1):
        cpu.append([token])
        gpu.append([token])
    assert error(gpu.logits, cpu.logits) < (5e-3 if pair_type == "q8_0" else ROUNDING)


# Heads, kv heads, and what else decides how a single query is cut among blocks.
SINGLE: list[tuple[int, int, dict[str, Any]]] = [
    (4, 4, {"feature_map": "softmax_dim_half"}),
    (8, 4, {"mixing": "natural", "feature_map": "relu"}),
    (8, 2, {"chunk_size": 16, "window_size": 48, "feature_map": "exp_dim"}),
    (12, 2, {"skip_connection": True, "feature_map": "pos_elu"}),
    (14, 2, {"feature_dim": 20, "sparse_size": 0, "mixing": "lolcats"}),
    (4, 2, {"sparse_scope": "head", "affine": True, "mixing": "lolcats"}),
]


@needs_gpu
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize(("heads", "kv_heads", "options"), SINGLE, ids=str)
def test_single_tokens_of_all_kinds_of_groups_give_what_the_cpu_gives(
    tmp_path: Path, head_dim: int, heads: int, kv_heads: int, options: dict[str, Any]
) -> None:
    sizes = {"window_size": 32, "chunk_size": 64, "sparse_size": 50, "feature_dim": head_dim, **options}
    sizes["window_size"] = max(sizes["window_size"], sizes["chunk_size"])
    adapter = TinyAdapter(**{"sparse_scope": "group", "policy": "first", **sizes})
    config = tiny(heads=heads, kv_heads=kv_heads, head_dim=head_dim, hidden=256, ffn=512)
    cpu, gpu = (model.session() for model in models(tmp_path, adapter, config=config))
    for prompt in (1, 200):
        for session in (cpu, gpu):
            session.append(tokens(prompt))
        for token in tokens(40, seed=1):
            cpu.append([token])
            gpu.append([token])
        assert error(gpu.logits, cpu.logits) < ROUNDING


@needs_gpu
@pytest.mark.parametrize("name", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "MXFP4", "IQ2_XS"])
@pytest.mark.parametrize("count", [1, 3, 8, 9, 40, 100, 300])
def test_products_of_every_size_agree_with_the_cpu(tmp_path: Path, name: str, count: int) -> None:
    adapter = TinyAdapter(window_size=512, chunk_size=512)  # so that nothing is chosen
    cpu, gpu = (model.session() for model in models(tmp_path, adapter, tensor_format=name))
    for session in (cpu, gpu):
        session.append(tokens(count))
    assert noise(gpu.logits, cpu.logits) < INT8_NOISE


@needs_gpu
def test_a_state_continues_on_the_other_device(tmp_path: Path) -> None:
    adapter = TinyAdapter(policy="first", softmax_layers=(1,))
    cpu, gpu = models(tmp_path, adapter)
    for here, there in ((cpu, gpu), (gpu, cpu)):
        session = here.session()
        session.append(tokens(200))
        session.save(tmp_path / "state.gguf")
        moved = there.load_session(tmp_path / "state.gguf")
        np.testing.assert_array_equal(moved.logits, session.logits)
        for step in (moved, session):
            step.append(tokens(60, seed=2))
        assert error(moved.logits, session.logits) < ROUNDING


@needs_gpu
def test_a_batch_gives_every_session_what_it_gets_alone(tmp_path: Path) -> None:
    gpu = models(tmp_path, TinyAdapter(policy="first"))[1]
    prompts = [tokens(20 + 7 * i, seed=i) for i in range(12)]
    alone = [[t.id for t in gpu.session().generate(p, max_tokens=40, stop_at_end=False)] for p in prompts]
    batch = Batch()
    sessions = [gpu.session() for _ in prompts]
    for session, prompt in zip(sessions, prompts, strict=True):
        batch.add(session, prompt, max_tokens=40, stop_at_end=False)
    together: dict[int, list[int]] = {id(session): [] for session in sessions}
    for session, token in batch:
        together[id(session)].append(token.id)
    assert [together[id(session)] for session in sessions] == alone


@needs_gpu
@pytest.mark.parametrize("name", ["F32", "Q4_K", "F16"])
@pytest.mark.parametrize("count", [5, 20, 40, 70, 150])
def test_single_tokens_of_many_sessions_give_what_the_cpu_gives(tmp_path: Path, name: str, count: int) -> None:
    adapter = TinyAdapter(policy="first", window_size=32, chunk_size=32, sparse_size=48)
    together = []
    for model in models(tmp_path, adapter, tensor_format=name):
        sessions = [model.session(pair_type="f32") for _ in range(count)]
        for i, session in enumerate(sessions):
            session.pending.extend(tokens(1 + 10 * i % 203, seed=i))
        advance(sessions)
        for step in range(3):  # the second time it is recorded, the third time played
            for i, session in enumerate(sessions):
                session.pending.extend(tokens(1, seed=1000 * step + i))
            advance(sessions)
        together.append(np.array([session.logits for session in sessions]))
    cpu, gpu = together
    if name == "F32":
        assert error(gpu, cpu) < ROUNDING
    assert max(noise(*pair) for pair in zip(gpu, cpu, strict=True)) < INT8_NOISE


@needs_gpu
def test_greedy_choices_come_with_the_probabilities_of_the_logits(tmp_path: Path) -> None:
    session = models(tmp_path, TinyAdapter())[1].session()
    list(session.generate(tokens(30), max_tokens=5, stop_at_end=False))
    before = session.logits
    chosen = next(iter(session.generate(max_tokens=1, stop_at_end=False)))
    shifted = np.float64(before) - before.max()
    assert chosen.id == int(before.argmax())
    assert chosen.logprob == pytest.approx(-np.log(np.exp(shifted).sum()), rel=1e-4)


@needs_gpu
def test_the_default_model_writes_the_same_text_and_finds_the_pass_key(tmp_path: Path) -> None:
    import random

    texts, found = [], []
    for device in ("cpu", "cuda"):
        model = Model.default(device=device)
        prompt = make_prompt("passkey", model.tokenizer.encode, 4000, rng=random.Random(1))
        session = model.session()
        text = "".join(t.text for t in session.generate(prompt.tokens, max_tokens=8, stop="."))
        texts.append(text)
        found.append(prompt.found_in(text))
    assert found == [True, True]
    assert texts[0] == texts[1]


def float_model(path: Path) -> Path:
    """The embedded model with the weights that its blocks stand for as float32."""
    gguf = pytest.importorskip("gguf")
    source = Path(lola_cpp.__file__).parent / "models" / "tiny.gguf"
    writer, tensors = gguf.GGUFWriter(None, "llama"), []
    copy_keys(GgufFile(str(source)), writer, lambda key: None if key.startswith("GGUF.") else key)
    for tensor in gguf.GGUFReader(source).tensors:
        shape = tuple(int(size) for size in reversed(tensor.shape))
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(shape)
        tensors.append(OutputTensor(tensor.name, shape, "F32", lambda values=values: values))
    write_gguf(writer, path, tensors)
    return path


LONG_PROMPTS = """
import json, sys
import numpy as np
from lola_cpp import Model
model, rng = Model(*sys.argv[1:3], device=sys.argv[3]), np.random.default_rng(0)
prompts = [[int(x) for x in rng.integers(2, model.info.vocabulary, 4000)] for _ in range(10)]
answers = [model.session().generate(p, max_tokens=16, top_logprobs=2) for p in prompts]
print(json.dumps([[token.top_logprobs for token in answer] for answer in answers]))
"""


def after_long_prompts(path: Path, device: str) -> list[list[list[tuple[int, float]]]]:
    """Of each answer's tokens the two likeliest and their log-probabilities."""
    adapter = Path(lola_cpp.__file__).parent / "models" / "tiny-lola.gguf"
    command = [sys.executable, "-c", LONG_PROMPTS, str(path), str(adapter), device]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return list(json.loads(run.stdout))


@needs_gpu
@pytest.mark.slow
def test_float_weights_give_the_tokens_of_the_cpu_after_long_prompts(tmp_path: Path) -> None:
    # Neither side rounds activations here; with quantized weights the CPU rounds them to 8 bits in another way.
    path = float_model(tmp_path / "float.gguf")
    cpu, gpu = (after_long_prompts(path, device) for device in ("cpu", "cuda"))
    same = 0
    for ours, theirs in zip(gpu, cpu, strict=True):
        parted = next((pair for pair in zip(ours, theirs, strict=False) if pair[0][0][0] != pair[1][0][0]), None)
        same += parted is None
        if parted is None:
            continue
        # Only where the order of a sum decides: both have the same two tokens first, as likely as each other.
        for (first, more), (second, less) in parted:
            assert {first, second} == {parted[0][0][0], parted[1][0][0]}
            assert more - less < 0.01
    assert same >= 8


@needs_gpu
def test_a_session_that_does_not_fit_names_the_bytes(tmp_path: Path) -> None:
    gpu = models(tmp_path, TinyAdapter())[1]
    taken = []
    with pytest.raises(DeviceError, match=r"session: needs \d+ bytes on the GPU, .* free"):
        for _ in range(9):
            taken.append(gpu.session(sparse_size=2**23, sparse_scope="head", pair_type="f32"))


@needs_gpu
@pytest.mark.parametrize("pair_type", ["f32", "f16", "q8_0"])
def test_kv_caches_of_several_pages_give_what_the_cpu_gives(tmp_path: Path, pair_type: str) -> None:
    cpu, gpu = models(tmp_path, TinyAdapter(policy="first", softmax_layers=(0, 1)))
    sessions = [model.session(pair_type=pair_type) for model in (cpu, gpu)]
    sizes = []
    for part in ([*tokens(250)], *([t] for t in tokens(12, seed=1)), tokens(1500, seed=2), [5]):
        for session in sessions:
            session.append(part)
        sizes.append(sessions[1].memory_bytes)
        assert error(sessions[1].logits, sessions[0].logits) < (5e-3 if pair_type == "q8_0" else ROUNDING)
    assert sizes == sorted(sizes) and len(set(sizes)) == 3
    branches = [session.fork() for session in sessions]
    for session in sessions:
        session.append(tokens(40, seed=3))
    for session in branches:
        session.append(tokens(200, seed=4))
    for pair in (sessions, branches):
        assert error(pair[1].logits, pair[0].logits) < (5e-3 if pair_type == "q8_0" else ROUNDING)


@needs_gpu
@pytest.mark.parametrize("layers", [0, 1, 2])
def test_a_model_split_between_cpu_and_gpu_gives_what_the_cpu_gives(tmp_path: Path, layers: int) -> None:
    cpu, _ = models(tmp_path, TinyAdapter(policy="first", softmax_layers=(1,)))
    split = Model(tmp_path / "m.gguf", tmp_path / "a.gguf", device="cuda", gpu_layers=layers)
    assert ("cuda" in split.info.backend) == (layers > 0)
    sessions = [model.session() for model in (cpu, split)]
    for session in sessions:
        session.append(tokens(LONG))
        for token in tokens(20, seed=1):
            session.append([token])
    assert error(sessions[1].logits, sessions[0].logits) < ROUNDING
    sessions[1].save(tmp_path / "state.gguf")
    for model in models(tmp_path, TinyAdapter(policy="first", softmax_layers=(1,))):
        moved, reference = model.load_session(tmp_path / "state.gguf"), sessions[1].fork()
        for session in (moved, reference):
            session.append(tokens(30, seed=5))
        assert error(moved.logits, reference.logits) < ROUNDING


@needs_gpu
def test_auto_puts_all_layers_of_a_small_model_on_the_gpu(tmp_path: Path) -> None:
    models(tmp_path, TinyAdapter())
    auto = Model(tmp_path / "m.gguf", tmp_path / "a.gguf", device="cuda", gpu_layers="auto")
    assert auto.info.backend.startswith("cuda, ")


SAMPLING: list[dict[str, Any]] = [
    {"repetition_penalty": 1.3, "frequency_penalty": 0.2},
    {"temperature": 1.0, "top_k": 40},
    {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "repetition_penalty": 1.1},
    {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 1.5, "min_p": 0.1, "presence_penalty": 0.3},
    {"temperature": 1.0},
    {"temperature": 1.0, "top_k": 900},
]


@needs_gpu
@pytest.mark.parametrize("options", SAMPLING, ids=str)
def test_tokens_sampled_from_the_best_logits_are_those_sampled_from_all(options: dict[str, Any]) -> None:
    model = Model.default(device="cuda")
    session = model.session()
    session.append("def add(first, second):\n")
    mine, full = (Sampler(seed=5, **options) for _ in range(2))
    for step in range(60):
        logits = session.logits
        wanted = full.sample(logits, step % 3)
        found = session.sample(mine, top_logprobs=step % 3)
        assert found[0] == wanted[0]
        assert found[1] == pytest.approx(wanted[1], abs=1e-5)
        assert [token for token, _ in found[2]] == [token for token, _ in wanted[2]]
        assert mine.save() == full.save()
        session.append([found[0]])


@needs_gpu
def test_spilled_sessions_leave_their_memory_to_others(tmp_path: Path) -> None:
    gpu = models(tmp_path, TinyAdapter(policy="first", softmax_layers=(1,)))[1]
    sessions = [gpu.session(sparse_size=4096) for _ in range(20)]
    for i, session in enumerate(sessions):
        session.append(tokens(300, seed=i))
    wanted = [session.logits for session in sessions]
    freed = 0
    for _ in range(5):  # other processes take memory of the GPU too
        before = gpu._core.free_bytes[0]
        for session in sessions:
            session.spill()
        freed = max(freed, gpu._core.free_bytes[0] - before)
        branches = [session.fork() for session in sessions]
        sessions, spilled = branches, sessions
    sessions = spilled
    assert freed >= 0.9 * sum(session.memory_bytes for session in sessions)
    for session, logits in zip(sessions, wanted, strict=True):
        np.testing.assert_array_equal(session.logits, logits)
        other = session.fork()
        for each in (session, other):
            each.append(tokens(20, seed=9))
        np.testing.assert_array_equal(session.logits, other.logits)


@needs_gpu
def test_closed_sessions_give_their_memory_back(tmp_path: Path) -> None:
    gpu = models(tmp_path, TinyAdapter(policy="first", softmax_layers=(1,)))[1]
    lost = []
    for _ in range(5):  # other processes take memory of the GPU too
        before = gpu._core.free_bytes[0]
        for _ in range(100):
            session = gpu.session()
            session.append(tokens(10))
        del session
        lost.append(before - gpu._core.free_bytes[0])
    assert min(lost) < 1 << 20


@needs_gpu
def test_the_gpu_is_listed() -> None:
    name, capability, free, total = _core.testing.gpus()[0]
    assert name and capability >= (8, 0) and 0 < free <= total

"""Prompts on the GPU: passes are cut into runs of chunks, and leave the memories and answers that the CPU has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lola_cpp import Model, Session
from lola_cpp._core import GgufFile
from lola_cpp.passes import advance
from reference import tiny_gguf
from reference.device import why_missing
from reference.tiny_gguf import TinyAdapter, tiny

pytestmark = pytest.mark.skipif(why_missing("cuda") is not None, reason=str(why_missing("cuda")))

ROUNDING = 2e-4  # float32 sums in another order, through two layers
Q8_STEP = 5e-3  # a value that rounds to another of 256 levels
PARTS = (5, 59, 1, 63, 129, 400, 64, 1, 1, 70, 2)  # tokens appended at a time
BASE: dict[str, Any] = {
    "window_size": 64,
    "chunk_size": 64,
    "sparse_size": 96,
    "sparse_scope": "group",
    "policy": "first",  # keeps fixed pairs: a near tie of recall errors cannot part the two
}
SESSIONS: list[dict[str, Any]] = [
    {},
    {"sparse_scope": "head"},
    {"pair_type": "f32"},
    {"pair_type": "q8_0"},
    {"window_size": 48, "chunk_size": 16, "sparse_size": 40},
    {"window_size": 7, "chunk_size": 1, "sparse_size": 20},
    {"window_size": 256, "chunk_size": 128, "sparse_size": 0},
    {"window_size": 192, "sparse_size": 2000},
    {"mixing": "lolcats"},
    {"mixing": "natural", "sparse_scope": "head", "pair_type": "f32"},
    {"policy": "recent"},
    {"policy": "random"},
    {"policy": "self_recall", "pair_type": "f32"},
    {"policy": "self_recall", "sparse_size": 192, "pair_type": "q8_0"},
    {"policy": "self_recall", "sparse_size": 1000, "pair_type": "f32"},  # too much for one kernel
    {"policy": "self_recall", "window_size": 32, "chunk_size": 32, "sparse_size": 10, "pair_type": "f32"},
    {"policy": "weighted_recall", "sparse_scope": "head", "pair_type": "f32"},
    {"policy": "self_recall_after", "pair_type": "f32"},
    {"policy": "self_recall_after", "window_size": 16, "chunk_size": 8, "pair_type": "f32"},
]
LAYERS: list[dict[str, Any]] = [
    {"head_dim": 128},
    {"head_dim": 256, "pair_type": "f32"},
    {"head_dim": 128, "pair_type": "f32", "policy": "weighted_recall", "feature_dim": 32},
    {"head_dim": 96, "pair_type": "q8_0"},
    {"head_dim": 80},
    {"head_dim": 72},
    {"head_dim": 16, "feature_dim": 8, "pair_type": "f32", "policy": "self_recall"},
    {"head_dim": 40, "feature_dim": 20, "pair_type": "f32", "policy": "self_recall_after"},
    {"feature_map": "relu", "feature_dim": 13},
    {"feature_map": "pos_elu", "feature_dim": 200, "head_dim": 128},
    {"feature_map": "exp_dim", "feature_dim": 256, "head_dim": 128},
    {"feature_map": "softmax_dim_half", "feature_dim": 64, "skip_connection": True},
    {"softmax_layers": (0,), "head_dim": 128},
]


def models(folder: Path, **options: Any) -> list[Model]:
    """The same model on the CPU and on the GPU."""
    shape = {"heads": 8, "kv_heads": 2, "head_dim": 64, "hidden": 256, "ffn": 256}
    config = tiny(**{name: options.pop(name, size) for name, size in shape.items()})
    adapter = TinyAdapter(**options)
    tiny_gguf.write_model(folder / "m.gguf", config, tiny_gguf.random_weights(config, std=0.06), tensor_format="F32")
    tiny_gguf.write_adapter(folder / "a.gguf", config, adapter, tiny_gguf.random_adapter(config, adapter))
    return [Model(folder / "m.gguf", folder / "a.gguf", device=device) for device in ("cpu", "cuda")]


def tokens(count: int, seed: int) -> list[int]:
    return [int(x) for x in np.random.default_rng(seed).integers(2, tiny().vocab_size, count)]


def differences(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    return float(np.abs(np.float64(found) - wanted).max() / max(1e-30, np.abs(np.float64(wanted)).max()))


def memories(session: Session, path: Path) -> dict[str, NDArray[Any]]:
    """What a state file has of the memories, but for pairs in blocks of 8 bits."""
    session.save(path)
    file, types = GgufFile(str(path)), {"F32": np.float32, "F16": np.float16, "I64": np.int64}
    return {name: file.tensor_data(name).view(types[kind]) for name, kind, *_ in file.tensors() if kind in types}


def assert_same_memories(found: Session, wanted: Session, folder: Path, tolerance: float) -> None:
    ours, theirs = memories(found, folder / "found.gguf"), memories(wanted, folder / "wanted.gguf")
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        assert np.isfinite(values).all() or values.dtype == np.int64, name
        assert differences(values, theirs[name]) <= (0 if values.dtype == np.int64 else tolerance), name


def assert_prompts_agree(folder: Path, of: list[Model], options: dict[str, Any], parts: tuple[int, ...]) -> None:
    """Part by part on the CPU and the GPU, and whole on the GPU."""
    tolerance = Q8_STEP if options.get("pair_type") == "q8_0" else ROUNDING
    stored = {"q8_0": 0.02, "f32": ROUNDING}.get(options.get("pair_type", "f16"), 1e-3)  # of what is stored
    cpu, gpu = (model.session(**options) for model in of)
    for i, count in enumerate(parts):
        for session in (cpu, gpu):
            session.append(tokens(count, i))
        assert differences(gpu.logits, cpu.logits) < tolerance, f"after {gpu.position} tokens, {count} in one part"
        assert_same_memories(gpu, cpu, folder, stored)
    whole = of[1].session(**options)
    whole.append([token for i, count in enumerate(parts) for token in tokens(count, i)])
    assert differences(whole.logits, gpu.logits) < tolerance
    assert_same_memories(whole, gpu, folder, stored)


@pytest.mark.parametrize("options", SESSIONS, ids=str)
def test_sessions_of_every_kind_agree_with_the_cpu_at_every_length(tmp_path: Path, options: dict[str, Any]) -> None:
    assert_prompts_agree(tmp_path, models(tmp_path, kappa=0.5), {**BASE, **options}, PARTS)


@pytest.mark.parametrize("options", LAYERS, ids=str)
def test_layers_of_every_kind_agree_with_the_cpu(tmp_path: Path, options: dict[str, Any]) -> None:
    session = {name: options[name] for name in ("pair_type", "policy") if name in options}
    layers = {name: value for name, value in options.items() if name not in session}
    assert_prompts_agree(tmp_path, models(tmp_path, **layers), {**BASE, **session}, PARTS)


def test_more_eligible_pairs_than_a_block_has_room_for(tmp_path: Path) -> None:
    options = {**BASE, "policy": "recent", "sparse_size": 1100}
    assert_prompts_agree(tmp_path, models(tmp_path), options, (1300, 500))


def test_passes_with_more_boundaries_than_scratch_memory_holds_are_cut(tmp_path: Path) -> None:
    # A version of the hidden states is 8.4 MB: some thirty fit the 256 MB of a run.
    options = {**BASE, "window_size": 4, "chunk_size": 1, "sparse_size": 8}
    large = models(tmp_path, heads=16, head_dim=128, feature_dim=256)
    assert_prompts_agree(tmp_path, large, options, (3, 120, 1, 80))


@pytest.mark.parametrize("options", [BASE, {**BASE, "policy": "self_recall", "pair_type": "f32"}], ids=str)
@pytest.mark.parametrize("lengths", [(700, 300), (1, 500, 64), (30, 35, 1, 1, 100), (2500, 10)], ids=str)
def test_sessions_in_one_pass_get_what_they_get_alone(
    tmp_path: Path, lengths: tuple[int, ...], options: dict[str, Any]
) -> None:
    gpu = models(tmp_path)[1]
    together, alone = ([gpu.session(**options) for _ in lengths] for _ in range(2))
    for i, session in enumerate((*together, *alone)):
        session.append(tokens(40 + 30 * (i % len(lengths)), i % len(lengths)))
    for i, count in enumerate(lengths):
        together[i].pending.extend(tokens(count, 100 + i))
        alone[i].append(tokens(count, 100 + i))
    advance(together)
    for ours, theirs in zip(together, alone, strict=True):
        assert differences(ours.logits, theirs.logits) < ROUNDING
        assert_same_memories(ours, theirs, tmp_path, 1e-3)


RECALLED: list[dict[str, Any]] = [
    {},
    {"head_dim": 128},
    {"head_dim": 128, "feature_map": "relu", "policy": "weighted_recall"},
    {"head_dim": 128, "feature_map": "softmax_dim_half", "feature_dim": 128, "skip_connection": True},
    {"head_dim": 80, "feature_dim": 33, "sparse_scope": "head"},
    {"feature_map": "pos_elu", "feature_dim": 100, "sparse_size": 11},
    {"head_dim": 40, "feature_dim": 20, "window_size": 48, "chunk_size": 16, "sparse_size": 70},
    {"sparse_size": 1000},
    {"feature_dim": 130},  # more features than are mapped and scored at once
]


@pytest.mark.parametrize("options", RECALLED, ids=str)
def test_the_boundary_of_a_step_keeps_what_the_cpu_keeps(tmp_path: Path, options: dict[str, Any]) -> None:
    """From the same memories, so that no pair that competes is rounded another way."""
    names = ("policy", "sparse_scope", "window_size", "chunk_size", "sparse_size")
    session = {**BASE, "policy": "self_recall", **{name: options[name] for name in names if name in options}}
    cpu, gpu = models(tmp_path, kappa=0.5, **{name: options[name] for name in options if name not in names})
    chunk = session["chunk_size"]
    for boundaries in (1, 2, 3, 5, 9, 19):
        before = gpu.session(**session)
        before.append(tokens(boundaries * chunk - 1, boundaries))
        before.save(tmp_path / "before.gguf")
        wanted, found = (model.load_session(tmp_path / "before.gguf") for model in (cpu, gpu))
        others = [found.fork() for _ in range(2)]
        for one in (wanted, found, *others):
            one.pending.extend(tokens(1, 1))
        advance([wanted])
        advance([found])
        advance(others)
        for one in (found, *others):
            assert_same_memories(one, wanted, tmp_path, 1e-3)

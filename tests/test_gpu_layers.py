"""Models in two stages: the first layers on one backend, the others on another. The two are both the CPU here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lola_cpp import Batch, DeviceError, Model, UsageError, _core
from lola_cpp.inspection import inspect
from reference import tiny_gguf
from reference.tiny_gguf import TinyAdapter, tiny

CONFIG = tiny(layers=3, hidden=64, ffn=96, head_dim=32, heads=4, kv_heads=2, context_length=2048)
HYBRID = TinyAdapter(feature_dim=8, window_size=16, chunk_size=16, sparse_size=8, softmax_layers=(1,))
ROOM = 1 << 40


def tokens(count: int, seed: int = 0) -> list[int]:
    return [int(x) for x in np.random.default_rng(seed).integers(2, CONFIG.vocab_size, count)]


@pytest.fixture(scope="module", params=["tied", "untied"])
def paths(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    config = tiny(**{**vars(CONFIG), "tied": request.param == "tied"})
    weights = tiny_gguf.random_weights(config, std=0.12)
    tiny_gguf.write_model(folder / "m.gguf", config, weights)
    adapter = tiny_gguf.random_adapter(config, HYBRID)
    tiny_gguf.write_adapter(folder / "a.gguf", config, HYBRID, adapter)
    return folder / "m.gguf", folder / "a.gguf"


def whole(paths: tuple[Path, Path]) -> Model:
    return Model(*paths, threads=1, device="cpu")


def split(paths: tuple[Path, Path], layers: int) -> Model:
    """The last layers on a CPU backend of their own: what Model refuses, and the core does not."""
    model = whole(paths)
    model._core = _core.Model(str(paths[0]), str(paths[1]), "cpu", 1, layers)
    return model


@pytest.mark.parametrize("layers", [0, 1, 2, 3])
def test_every_split_computes_the_same_bits(paths: tuple[Path, Path], layers: int) -> None:
    one, two = whole(paths).session(), split(paths, layers).session()
    for session in (one, two):
        session.append(tokens(700))
    np.testing.assert_array_equal(two.logits, one.logits)
    np.testing.assert_array_equal(two.score(tokens(40, 1)), one.score(tokens(40, 1)))
    options = {"max_tokens": 40, "temperature": 1.5, "seed": 3, "stop_at_end": False}
    assert [t.id for t in two.generate(**options)] == [t.id for t in one.generate(**options)]
    assert two.memory_bytes == one.memory_bytes


@pytest.mark.parametrize("layers", [1, 2])
def test_a_state_saved_under_one_split_continues_under_another(
    paths: tuple[Path, Path], layers: int, tmp_path: Path
) -> None:
    session = split(paths, layers).session()
    session.append(tokens(300))
    session.save(tmp_path / "s.state")
    for other in (whole(paths), split(paths, 3 - layers)):
        moved = other.load_session(tmp_path / "s.state")
        moved.save(tmp_path / "again.state")
        assert (tmp_path / "again.state").read_bytes() == (tmp_path / "s.state").read_bytes()
        moved.append(tokens(50, 1))
        reference = session.fork()
        reference.append(tokens(50, 1))
        np.testing.assert_array_equal(moved.logits, reference.logits)


def test_forks_batches_and_inspection_work_across_stages(paths: tuple[Path, Path]) -> None:
    one, two = whole(paths), split(paths, 2)
    prompts = [tokens(30 + 5 * i, seed=i) for i in range(4)]
    written: list[list[list[int]]] = []
    for model in (one, two):
        batch, texts = Batch(), {}
        for prompt in prompts:
            session = model.session()
            session.append(prompt)
            batch.add(session.fork(), max_tokens=20, stop_at_end=False)
        for session, token in batch:
            texts.setdefault(id(session), []).append(token.id)
        written.append(list(texts.values()))
    assert written[0] == written[1]
    np.testing.assert_array_equal(inspect(two, tokens(90)).error, inspect(one, tokens(90)).error)


def test_the_layers_of_each_backend_are_named(paths: tuple[Path, Path]) -> None:
    assert split(paths, 1)._core.info["backend"].startswith("layers 0 to 1: cpu, ")
    assert "; layers 2 to 2: cpu, " in split(paths, 1)._core.info["backend"]


@pytest.mark.parametrize(
    ("layers", "problem"),
    [(4, "gpu_layers: found 4, wanted 0 to 3"), (-1, "gpu_layers: found -1, wanted"), ("most", "found 'most', wanted")],
)
def test_a_number_of_layers_that_cannot_be_is_refused(paths: tuple[Path, Path], layers: object, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        _core.Model(str(paths[0]), "", "cpu", 1, layers)


def test_gpu_layers_without_a_gpu_are_refused(paths: tuple[Path, Path]) -> None:
    with pytest.raises(UsageError, match="gpu_layers: found 1 with device 'cpu', wanted a GPU"):
        Model(paths[0], device="cpu", gpu_layers=1)


def placed(paths: tuple[Path, Path], layers: int, device: int = ROOM, host: int = ROOM) -> list[tuple[str, int, int]]:
    return _core.testing.placed_layers(
        path=str(paths[0]), adapter=str(paths[1]), device_layers=layers, device_bytes=device, host_bytes=host
    )


def bytes_needed(paths: tuple[Path, Path], layers: int) -> int:
    with pytest.raises(DeviceError) as error:
        placed(paths, layers, device=0)
    return int(str(error.value).split(" need ")[1].split(" ")[0])


def test_a_device_that_is_too_small_names_the_bytes_and_what_would_fit(paths: tuple[Path, Path]) -> None:
    two, three = bytes_needed(paths, 2), bytes_needed(paths, 3)
    assert 0 < two < three
    assert placed(paths, 3, device=three) == [("device", 0, 3)]
    problem = rf"layers 0 to 2 need {three} bytes on device, which has {three - 1} free; gpu_layers=2 would fit"
    with pytest.raises(DeviceError, match=problem):
        placed(paths, 3, device=three - 1)
    with pytest.raises(DeviceError, match=r"layers 0 to 1 need \d+ bytes on host, which has 5 free"):
        placed(paths, 1, host=5)


def test_auto_takes_the_layers_that_leave_a_tenth_of_the_memory(paths: tuple[Path, Path]) -> None:
    auto = _core.testing.layers_that_fit
    one, two = bytes_needed(paths, 1), bytes_needed(paths, 2)
    assert placed(paths, auto) == [("device", 0, 3)]
    assert placed(paths, auto, device=two * 10 // 9 + 10) == [("host", 0, 1), ("device", 1, 3)]
    assert placed(paths, auto, device=two) == [("host", 0, 2), ("device", 2, 3)]
    assert placed(paths, auto, device=one) == [("host", 0, 3)]


def test_loading_tells_how_far_it_is_and_can_be_stopped(paths: tuple[Path, Path]) -> None:
    done: list[int] = []
    model = Model(*paths, threads=1, device="cpu", progress=done.append)
    assert done == sorted(done) and 0.5 * model.info.weight_bytes < done[-1] <= model.info.weight_bytes
    assert model.load_seconds > 0

    def stop(_done: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        Model(*paths, threads=1, device="cpu", progress=stop)

"""Threads that share a model, whose matrix products have threads of their own. CI runs this under ThreadSanitizer."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from lola_cpp import Batch, Model, _core, quantize
from reference import tiny_gguf
from reference.tiny_gguf import TinyAdapter, tiny

CONFIG = tiny(hidden=64, ffn=96, head_dim=32, heads=4, kv_heads=2)
ADAPTER = TinyAdapter(feature_dim=8, window_size=8, chunk_size=4, sparse_size=4, softmax_layers=(1,))
USERS = 4


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("threads")
    tiny_gguf.write_model(folder / "m.gguf", CONFIG, tiny_gguf.random_weights(CONFIG, std=0.12))
    tiny_gguf.write_adapter(folder / "a.gguf", CONFIG, ADAPTER, tiny_gguf.random_adapter(CONFIG, ADAPTER))
    return Model(folder / "m.gguf", folder / "a.gguf", threads=3)


def prompt(user: int) -> list[int]:
    return np.random.default_rng(user).integers(2, CONFIG.vocab_size, 50).tolist()


def generate(model: Model, folder: Path, user: int) -> list[int]:
    """A conversation with everything a user does: a prompt, a fork, a save and a load, generation."""
    session = model.session()
    session.append(prompt(user))
    session.fork().append([5, 6])
    session.save(folder / f"{user}.gguf")
    resumed = model.load_session(folder / f"{user}.gguf")
    return [token.id for token in resumed.generate([7], max_tokens=8, stop_at_end=False, temperature=1.0, seed=user)]


def batch(model: Model, folder: Path, user: int) -> list[int]:
    shared = Batch()
    sessions = [model.session() for _ in range(3)]
    for index, session in enumerate(sessions):
        shared.add(session, prompt(user + index), max_tokens=4, stop_at_end=False)
    return [token.id for _, token in shared]


@pytest.mark.parametrize("work", [generate, batch])
def test_users_of_one_model_get_what_they_get_alone(
    work: Callable[[Model, Path, int], list[int]], model: Model, tmp_path: Path
) -> None:
    alone = [work(model, tmp_path, user) for user in range(USERS)]
    with ThreadPoolExecutor(USERS) as pool:
        together = list(pool.map(lambda user: work(model, tmp_path, user), range(USERS)))
    assert together == alone


def test_models_are_loaded_and_quantized_side_by_side(model: Model, tmp_path: Path) -> None:
    def convert(user: int) -> bytes:
        quantize(model.path, tmp_path / f"{user}.gguf", "Q8_0", threads=3)
        Model(tmp_path / f"{user}.gguf", threads=2).session().append([1, 2, 3])
        return (tmp_path / f"{user}.gguf").read_bytes()

    with ThreadPoolExecutor(USERS) as pool:
        assert len(set(pool.map(convert, range(USERS)))) == 1


def test_an_error_in_one_of_the_threads_reaches_the_caller() -> None:
    weights = np.ones((64, 256), np.float32)
    weights[40, 3] = np.nan
    for _ in range(20):
        with pytest.raises(_core.FormatError, match="in column 3"):
            _core.encode(weights, "Q4_K", "w", threads=4)

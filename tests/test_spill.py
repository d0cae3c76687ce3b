"""Sessions in host memory: their device memory is free, and they continue as if nothing had been."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lola_cpp import Batch, Model, SessionPool, UsageError
from reference import tiny_gguf
from reference.tiny_gguf import TinyAdapter, tiny

CONFIG = tiny(hidden=64, ffn=96, head_dim=32, heads=4, kv_heads=2, context_length=4096)
ADAPTERS = {"lola": TinyAdapter(feature_dim=8), "hybrid": TinyAdapter(feature_dim=8, softmax_layers=(0,))}
GREEDY = {"max_tokens": 30, "stop_at_end": False}


def tokens(count: int, seed: int = 0) -> list[int]:
    return [int(x) for x in np.random.default_rng(seed).integers(2, CONFIG.vocab_size, count)]


@pytest.fixture(scope="module", params=ADAPTERS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder, adapter = tmp_path_factory.mktemp("models"), ADAPTERS[request.param]
    tiny_gguf.write_model(folder / "m.gguf", CONFIG, tiny_gguf.random_weights(CONFIG, std=0.12))
    tiny_gguf.write_adapter(folder / "a.gguf", CONFIG, adapter, tiny_gguf.random_adapter(CONFIG, adapter))
    return Model(folder / "m.gguf", folder / "a.gguf", threads=1)


def test_a_spilled_session_continues_bit_for_bit(model: Model, tmp_path: Path) -> None:
    stayed = model.session()
    stayed.append(tokens(200))
    spilled = stayed.fork()
    spilled.spill()
    spilled.spill()
    assert spilled.spilled and not stayed.spilled
    np.testing.assert_array_equal(spilled.logits, stayed.logits)
    for session in (stayed, spilled):
        session.save(tmp_path / f"{session.spilled}.state")
    assert (tmp_path / "True.state").read_bytes() == (tmp_path / "False.state").read_bytes()
    branch = spilled.fork()
    assert spilled.spilled and not branch.spilled
    sampling = {"temperature": 1.5, "top_k": 20, "seed": 5, **GREEDY}
    wanted = [t.id for t in stayed.generate(**sampling)]
    for session in (spilled, branch):
        assert [t.id for t in session.generate(**sampling)] == wanted
        assert not session.spilled
        np.testing.assert_array_equal(session.logits, stayed.logits)


def test_a_session_spilled_before_its_first_token_works(model: Model) -> None:
    session, other = model.session(), model.session()
    session.spill()
    assert session.logits.size == 0
    for each in (session, other):
        each.append(tokens(20))
    np.testing.assert_array_equal(session.logits, other.logits)


def test_a_spilled_session_joins_a_batch(model: Model) -> None:
    alone = [[t.id for t in model.session().generate(tokens(40, i), **GREEDY)] for i in range(3)]
    batch = Batch()
    for i in range(3):
        session = model.session()
        session.append(tokens(40, i)[:20])
        session.spill()
        batch.add(session, tokens(40, i)[20:], **GREEDY)
    together: dict[int, list[int]] = {}
    for session, token in batch:
        together.setdefault(id(session), []).append(token.id)
    assert list(together.values()) == alone


def test_copies_for_rewinding_are_spilled_with_their_session(model: Model) -> None:
    session = model.session(rewind_budget=8 * model.session_bytes())
    session.append(tokens(600))
    wanted = [t.id for t in session.fork().generate(**GREEDY)]
    session.spill()
    session.append(tokens(80, 1))
    session.rewind(600)
    assert [t.id for t in session.generate(**GREEDY)] == wanted


def test_a_pool_keeps_no_more_than_its_share_on_the_device(model: Model, tmp_path: Path) -> None:
    size = model.session_bytes(context_length=256)  # of the sessions, which see fewer tokens: one page
    alone = {name: model.session() for name in "abcde"}
    pool = SessionPool(model, tmp_path, memory_bytes=4 * size, device_bytes=2 * size)
    for turn in range(3):
        for i, (name, session) in enumerate(alone.items()):
            wanted = [t.id for t in session.generate(tokens(20, 10 * turn + i), **GREEDY)]
            with pool.use(name) as used:
                assert [t.id for t in used.generate(tokens(20, 10 * turn + i), **GREEDY)] == wanted
            assert pool.idle_device_bytes <= 2 * size and pool.idle_bytes <= 4 * size
    assert pool.idle_bytes == 4 * size and pool.idle_device_bytes == 2 * size
    pool.close()


def test_a_share_below_zero_is_refused(model: Model, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="device_bytes: found -1, wanted 0 or more"):
        SessionPool(model, tmp_path, memory_bytes=0, device_bytes=-1)

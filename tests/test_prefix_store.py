"""The prefix store: a prompt starts from the longest prefix that any process has read before."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lola_cpp import Model, PrefixStore, UsageError


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.default(threads=1)


@pytest.fixture
def store(tmp_path: Path) -> PrefixStore:
    return PrefixStore(tmp_path, max_bytes=1 << 30)


def random_tokens(model: Model, count: int, seed: int = 0) -> list[int]:
    return [int(x) for x in np.random.default_rng(seed).integers(2, model.info.vocabulary, count)]


def read_anew(store: PrefixStore, model: Model, tokens: list[int], **options: object) -> int:
    done = [0]
    session = store.session(model, tokens, progress=done.append, **options)
    assert session.position == len(tokens)
    return done[-1]


def test_a_known_prompt_is_not_read_again_and_continues_bit_for_bit(store: PrefixStore, model: Model) -> None:
    tokens = random_tokens(model, 300)
    first = store.session(model, tokens)
    again = store.session(model, tokens)
    assert read_anew(store, model, tokens) == 0
    assert (first.logits == again.logits).all()
    assert list(again.generate(max_tokens=5)) == list(first.generate(max_tokens=5))


def test_a_prompt_starts_from_the_longest_known_prefix(store: PrefixStore, model: Model) -> None:
    tokens = random_tokens(model, 700)
    assert read_anew(store, model, tokens[:300]) == 300
    assert read_anew(store, model, tokens[:650]) == 350
    assert read_anew(store, model, tokens) == 50
    assert read_anew(store, model, tokens[:299]) == 43  # the mark 256
    assert read_anew(store, model, tokens[:520] + [9] * 100) == 108  # the mark 512
    assert read_anew(store, model, [9] * 20) == 20


def test_a_known_prompt_can_be_rewound_to_anywhere(store: PrefixStore, model: Model) -> None:
    tokens = random_tokens(model, 300)
    store.session(model, tokens)
    for budget in (0, 1 << 26):
        session = store.session(model, tokens, rewind_budget=budget)
        assert session.tokens == tokens
        session.append([7, 8])
        session.rewind(100)
        alone = model.session()
        alone.append(tokens[:100])
        np.testing.assert_allclose(session.logits, alone.logits, atol=1e-3)


def test_a_mark_is_where_another_prompt_may_start(store: PrefixStore, model: Model) -> None:
    system = random_tokens(model, 100)
    assert read_anew(store, model, system + [7] * 30, marks=[100]) == 130
    assert read_anew(store, model, system + [8] * 20) == 20


def test_sessions_configured_otherwise_and_other_models_do_not_share(
    store: PrefixStore, model: Model, tmp_path: Path
) -> None:
    tokens = random_tokens(model, 50)
    read_anew(store, model, tokens)
    assert read_anew(store, model, tokens, sparse_size=3) == 50
    assert read_anew(store, model, tokens, sparse_size=3) == 0
    assert read_anew(store, model, tokens, policy="none") == 50
    assert read_anew(store, model, tokens, policy="none") == 0
    plain = Model(model.path, threads=1)
    assert read_anew(store, plain, tokens) == 50


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "foreign"])
def test_a_damaged_entry_is_removed_and_counts_as_unknown(store: PrefixStore, model: Model, damage: str) -> None:
    tokens = random_tokens(model, 40)
    wanted = store.session(model, tokens).logits
    [path] = store.folder.glob("*.state")
    data = bytearray(path.read_bytes())
    data[-2000] ^= 1
    path.write_bytes({"flipped": data, "cut": data[: len(data) // 2], "empty": b"", "foreign": b"GGUF" * 99}[damage])
    assert store.longest(model, tokens) is None
    assert not path.exists()
    assert (store.session(model, tokens).logits == wanted).all()


def test_an_entry_under_the_name_of_another_is_not_taken_for_it(store: PrefixStore, model: Model) -> None:
    store.session(model, [5, 6])
    [path] = store.folder.glob("*.state")
    store.session(model, [5, 6, 7])
    [longer] = [p for p in store.folder.glob("*.state") if p != path]
    longer.write_bytes(path.read_bytes())
    found = store.longest(model, [5, 6, 7])
    assert found is not None and found.position == 2


def test_strange_files_in_the_folder_are_left_alone(store: PrefixStore, model: Model) -> None:
    store.session(model, [5, 6])
    [path] = store.folder.glob("*.state")
    family = path.name.split("-")[0]
    for name in (f"{family}-x-y.state", f"{family}-9.state", "notes.txt", f"{family}-{10**20}-{'a' * 40}.state"):
        (store.folder / name).write_text("x")
    assert read_anew(store, model, [5, 6, 7]) == 1


def test_the_least_recently_used_go_first_and_the_bound_holds(model: Model, tmp_path: Path) -> None:
    one = PrefixStore(tmp_path / "size", max_bytes=1 << 30)
    one.session(model, [5])
    store = PrefixStore(tmp_path / "store", max_bytes=3 * one.total_bytes + 5000)
    prompts = [[token, 9] for token in (5, 6, 7)]
    for i, prompt in enumerate(prompts):
        store.session(model, prompt)
        for path in store.folder.glob("*.state"):
            if path.stat().st_mtime > 1e9:
                os.utime(path, (1e8 + i, 1e8 + i))
    assert read_anew(store, model, prompts[0]) == 0  # used again, so the second is the oldest
    store.session(model, [8, 9])
    assert store.total_bytes <= store.max_bytes
    assert [store.longest(model, prompt) is not None for prompt in prompts] == [True, False, True]


def test_an_entry_larger_than_the_bound_is_not_written(model: Model, tmp_path: Path) -> None:
    store = PrefixStore(tmp_path, max_bytes=1000)
    assert read_anew(store, model, [5, 6]) == 2
    assert store.total_bytes == 0


def test_an_entry_costs_the_same_for_any_length(store: PrefixStore, model: Model) -> None:
    store.session(model, random_tokens(model, 1500))
    sizes = {path.stat().st_size for path in store.folder.glob("*.state")}
    assert max(sizes) - min(sizes) <= 0.01 * model.session_bytes()
    assert max(sizes) <= 1.01 * model.session_bytes()


def test_a_session_is_stored_under_the_tokens_it_has_read_only(store: PrefixStore, model: Model) -> None:
    session = model.session()
    session.append([5, 6, 7])
    with pytest.raises(UsageError, match="found 2, wanted the 3"):
        store.put(session, [5, 6])


def test_processes_share_a_store_that_evicts_all_the_time(model: Model, tmp_path: Path) -> None:
    code = f"""
import lola_cpp, random, sys
model = lola_cpp.Model.default(threads=1)
store = lola_cpp.PrefixStore({str(tmp_path)!r}, max_bytes=5 * model.session_bytes())
rng = random.Random(int(sys.argv[1]))
for _ in range(60):
    prompt = [5 + rng.randrange(3), 6, 7 + rng.randrange(3)][: rng.randrange(1, 4)]
    session = store.session(model, prompt)
    alone = model.session()
    alone.append(prompt)
    assert abs(session.logits - alone.logits).max() < 1e-3
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(i)], stderr=subprocess.PIPE, text=True) for i in range(3)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=100)
        assert process.returncode == 0, errors
    assert PrefixStore(tmp_path, max_bytes=5 * model.session_bytes()).total_bytes <= 5 * model.session_bytes()

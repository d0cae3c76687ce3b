"""Sessions: the same answer however a text is cut, forked, saved or batched."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lola_cpp import Batch, Model, Sampler, Session, UsageError
from lola_cpp._core import GgufFile
from reference.device import PASS_TOKENS
from reference.session_models import CONFIG, SAMPLING, assert_same_logits, make_model, random_tokens, read

KV_PAGE = 256  # tokens


def cached_positions(session: Session, path: Path) -> list[list[int]]:
    session.save(path)
    file = GgufFile(str(path))
    return [list(file.get(key)) for key in file.keys() if key.endswith("cache_position")]  # noqa: SIM118


# --- However it is cut ---


@pytest.mark.parametrize("cuts", [[1] * 150, [7, 100, 43], [16] * 9 + [6], [149, 1]])
def test_any_split_of_a_prompt_gives_the_same_memories_and_logits(
    model: Model, cuts: list[int], tmp_path: Path
) -> None:
    tokens = random_tokens(150)
    whole, split = read(model, tokens), model.session()
    begin = 0
    for size in cuts:
        split.append(tokens[begin : begin + size])
        begin += size
    assert split.position == whole.position == 150
    assert_same_logits(split.logits, whole.logits)
    positions = cached_positions(whole, tmp_path / "whole.gguf")
    assert cached_positions(split, tmp_path / "split.gguf") == positions
    assert len(positions) == model.info.layers - model.info.softmax_layers


def test_a_prompt_of_several_passes_gives_what_single_tokens_give(model: Model) -> None:
    tokens = random_tokens(PASS_TOKENS + 40)
    whole, single = read(model, tokens), model.session()
    for token in tokens:
        single.append([token])
    assert_same_logits(single.logits, whole.logits)


def test_progress_counts_the_tokens_of_each_pass(lola: Model) -> None:
    seen: list[tuple[int, int]] = []
    session = lola.session()
    whole = 2 * PASS_TOKENS + 76
    session.append(random_tokens(whole), progress=lambda done: seen.append((done, len(session.pending))))
    assert seen == [(PASS_TOKENS, PASS_TOKENS + 76), (2 * PASS_TOKENS, 76), (whole, 0)]


def test_a_text_begins_with_the_begin_of_text_token_only_at_position_0(lola: Model) -> None:
    session = lola.session()
    session.append("ab")
    assert session.position == 3
    session.append("ab")
    assert session.position == 5
    session.append([])
    assert session.position == 5


# --- Memory ---


def test_the_bytes_of_a_session_are_known_before_and_only_kv_caches_grow_a_page_at_a_time(model: Model) -> None:
    options = {"window_size": 32, "chunk_size": 8, "sparse_size": 5, "pair_type": "q8_0"}
    wanted = [model.session_bytes(context_length=size, **options) for size in (1, KV_PAGE, KV_PAGE + 1, 3 * KV_PAGE)]
    session = model.session(context_length=3 * KV_PAGE, **options)
    empty, found = session.memory_bytes, []
    for size in (1, KV_PAGE - 1, 1, 2 * KV_PAGE - 1):
        session.append(random_tokens(size))
        found.append(session.memory_bytes)
    assert found == wanted
    assert (empty == wanted[0] == wanted[-1]) == (model.info.softmax_layers == 0)


def test_only_softmax_layers_take_more_bytes_for_a_longer_context(models: dict[str, Model]) -> None:
    bytes_of = {kind: [m.session_bytes(context_length=n * KV_PAGE) for n in (1, 3)] for kind, m in models.items()}
    pair_bytes = 2 * CONFIG.kv_heads * CONFIG.head_dim * 2  # key and value in f16
    assert {kind: b - a for kind, (a, b) in bytes_of.items()} == {
        "lola": 0,
        "softmax": 2 * 2 * KV_PAGE * pair_bytes,
        "hybrid": 2 * KV_PAGE * pair_bytes,
    }


def test_the_config_of_a_session_is_what_was_asked_for_or_the_adapters(lola: Model) -> None:
    assert lola.session().config == lola.session_defaults
    config = lola.session(sparse_size=3, policy="recent").config
    assert config == {**lola.session_defaults, "sparse_size": 3, "policy": "recent"}


# --- Wrong use ---


@pytest.mark.parametrize(
    ("options", "error", "problem"),
    [
        ({"windw_size": 3}, TypeError, "unexpected keyword argument 'windw_size'"),
        ({"window_size": "64"}, TypeError, "window_size: found '64', wanted a 64-bit integer"),
        ({"window_size": 64.5}, TypeError, r"window_size: found 64\.5, wanted a 64-bit integer"),
        ({"sparse_size": 1 << 70}, UsageError, "sparse_size: found 1180591620717411303424, wanted a 64-bit integer"),
        ({"policy_seed": -1}, UsageError, "policy_seed: found -1, wanted an integer from 0"),
        ({"policy": 3}, TypeError, "policy: found 3, wanted a string"),
        ({"window_size": 0}, UsageError, "window_size: found 0, wanted 1 to"),
        ({"chunk_size": -4}, UsageError, "chunk_size: found -4, wanted 1 to"),
        ({"window_size": 20, "chunk_size": 8}, UsageError, "window_size: found 20, wanted a multiple of chunk_size, 8"),
        ({"sparse_size": -1}, UsageError, "sparse_size: found -1, wanted 0 to"),
        ({"policy": "best"}, UsageError, "policy: found 'best', wanted one of none"),
        ({"mixing": "x"}, UsageError, "mixing: found 'x'"),
        ({"sparse_scope": "x"}, UsageError, "scope: found 'x'"),
        ({"pair_type": "q4_0"}, UsageError, "pair_type: found 'q4_0'"),
        ({"context_length": 0}, UsageError, "context_length: found 0, wanted 1 to 4294967296"),
    ],
)
def test_an_impossible_configuration_is_refused(lola: Model, options: dict, error: type, problem: str) -> None:
    for call in (lola.session, lola.session_bytes):
        with pytest.raises(error, match=problem):
            call(**options)


@pytest.mark.parametrize("token", [-1, CONFIG.vocab_size, 2**31, 2**40, -(2**40)])
def test_a_token_out_of_range_is_refused_and_nothing_is_read(lola: Model, token: int) -> None:
    session = read(lola, [5])
    for call in (session.append, session.score, session.generate):
        with pytest.raises(UsageError, match=f"found id {token}, wanted"):
            call([7, token])
    assert (session.position, session.pending) == (1, [])
    session.append([7])
    np.testing.assert_array_equal(session.logits, read_split(lola, [5], [7]).logits)


def read_split(model: Model, *parts: list[int]) -> Session:
    session = model.session()
    for part in parts:
        session.append(part)
    return session


@pytest.mark.parametrize("kind", ["softmax", "hybrid"])
def test_a_full_kv_cache_refuses_more_and_nothing_is_read(models: dict[str, Model], kind: str) -> None:
    session = read(models[kind], random_tokens(15), context_length=20)
    for call in (session.append, session.score, session.generate):
        with pytest.raises(UsageError, match=r"session is full: 15 tokens seen and 6 more, .* context_length = 20"):
            call(random_tokens(6))
    assert (session.position, session.pending) == (15, [])
    session.append(random_tokens(5))
    assert session.position == 20


def test_lola_layers_know_no_full_session(lola: Model) -> None:
    assert read(lola, random_tokens(100), context_length=20).position == 100


def test_there_is_nothing_to_sample_from_before_the_first_token(lola: Model) -> None:
    session = lola.session()
    assert session.logits.size == 0
    with pytest.raises(UsageError, match="nothing to sample from before its first token"):
        next(session.generate())


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"max_tokens": -1}, "max_tokens: found -1"),
        ({"top_logprobs": -1}, "top_logprobs: found -1"),
        ({"stop": ""}, "stop: found"),
        ({"sampler": Sampler(), "seed": 3}, "sampler: found together with seed"),
    ],
)
def test_an_impossible_generation_is_refused_before_it_starts(lola: Model, options: dict, problem: str) -> None:
    session = lola.session()
    with pytest.raises(UsageError, match=problem):
        session.generate([5], **options)
    assert session.position == 0


# --- Copies ---


def continued(session: Session, count: int = 20) -> list[tuple[int, float]]:
    return [
        (token.id, token.logprob)
        for token in session.generate(max_tokens=count, sampler=session.sampler, stop_at_end=False)
    ]


@pytest.mark.parametrize("sampling", [{}, SAMPLING], ids=["greedy", "sampled"])
def test_a_fork_in_the_middle_of_a_stream_continues_bit_for_bit(model: Model, sampling: dict) -> None:
    session = model.session()
    stream = session.generate(random_tokens(40), max_tokens=30, stop_at_end=False, **sampling)
    for _ in range(10):
        next(stream)
    assert len(session.pending) == (0 if model.runs_behind else 1)
    copy = session.fork()
    assert (copy.position, copy.pending, copy.config) == (session.position, session.pending, session.config)
    wanted = [(token.id, token.logprob) for token in stream]
    assert continued(copy) == wanted
    assert len(wanted) == 20
    np.testing.assert_array_equal(copy.logits, session.logits)


def test_a_fork_and_its_origin_do_not_disturb_each_other(model: Model) -> None:
    session = read(model, random_tokens(40))
    copy, logits = session.fork(), session.logits
    copy.append(random_tokens(40, seed=1))
    np.testing.assert_array_equal(session.logits, logits)
    session.append([9])
    np.testing.assert_array_equal(session.logits, read_split(model, random_tokens(40), [9]).logits)


@pytest.mark.parametrize("sampling", [{}, SAMPLING], ids=["greedy", "sampled"])
@pytest.mark.parametrize("pair_type", ["f32", "f16", "q8_0"])
def test_a_saved_session_continues_bit_for_bit(model: Model, sampling: dict, pair_type: str, tmp_path: Path) -> None:
    session = model.session(pair_type=pair_type, policy="random", policy_seed=2**64 - 1)
    stream = session.generate(random_tokens(40), max_tokens=30, stop_at_end=False, **sampling)
    for _ in range(10):
        next(stream)
    session.save(tmp_path / "state.gguf")
    loaded = model.load_session(tmp_path / "state.gguf")
    assert (loaded.position, loaded.pending, loaded.config) == (session.position, session.pending, session.config)
    wanted = [(token.id, token.logprob) for token in stream]
    found = continued(loaded)
    if model.runs_behind:
        # The first from all logits: what a GPU had found in them before they were saved is a sum in another order.
        (first, logprob), *rest = found
        assert [(first, pytest.approx(logprob, abs=1e-5)), *rest] == wanted
    else:
        assert found == wanted
    np.testing.assert_array_equal(loaded.logits, session.logits)


def test_a_session_saved_before_its_first_token_can_be_loaded(model: Model, tmp_path: Path) -> None:
    model.session().save(tmp_path / "state.gguf")
    loaded = model.load_session(tmp_path / "state.gguf")
    assert (loaded.position, loaded.logits.size) == (0, 0)
    loaded.append([5])
    np.testing.assert_array_equal(loaded.logits, read(model, [5]).logits)


def test_a_full_session_with_a_pending_token_can_be_loaded(models: dict[str, Model], tmp_path: Path) -> None:
    session = models["softmax"].session(context_length=8)
    list(session.generate(random_tokens(8), max_tokens=1))
    session.save(tmp_path / "state.gguf")
    loaded = models["softmax"].load_session(tmp_path / "state.gguf")
    assert (loaded.position, loaded.pending) == (9, session.pending)


def test_a_missing_state_file_is_a_file_not_found(lola: Model, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.gguf"):
        lola.load_session(tmp_path / "nowhere.gguf")


# --- Batches ---


def single(model: Model, prompt: list[int], count: int) -> list[int]:
    return [token.id for token in model.session().generate(prompt, max_tokens=count, stop_at_end=False)]


def test_a_batch_generates_what_single_sessions_do(model: Model) -> None:
    prompts = [random_tokens(size, seed=size) for size in (3, 70, 1, 600)]
    sessions, found = [model.session() for _ in prompts], {}
    batch = Batch()
    for session, prompt in zip(sessions, prompts, strict=True):
        batch.add(session, prompt, max_tokens=12, stop_at_end=False)
    for session, token in batch:
        found.setdefault(id(session), []).append(token.id)
    assert len(batch) == 0
    assert [found[id(session)] for session in sessions] == [single(model, prompt, 12) for prompt in prompts]


def test_sessions_join_and_leave_a_batch_between_steps(lola: Model) -> None:
    first, second, third = lola.session(), lola.session(), lola.session()
    batch = Batch()
    found: dict[int, list[int]] = {id(s): [] for s in (first, second, third)}

    def step(count: int) -> None:
        for _ in range(count):
            for session, token in batch.step():
                found[id(session)].append(token.id)

    batch.add(first, random_tokens(20, seed=1), max_tokens=8, stop_at_end=False)
    step(3)
    batch.add(second, random_tokens(30, seed=2), max_tokens=20, stop_at_end=False)
    step(3)
    batch.remove(second)
    batch.add(third, random_tokens(5, seed=3), max_tokens=1, stop_at_end=False)
    step(4)
    assert len(batch) == 0
    assert found == {
        id(first): single(lola, random_tokens(20, seed=1), 8),
        id(second): single(lola, random_tokens(30, seed=2), 3),
        id(third): single(lola, random_tokens(5, seed=3), 1),
    }
    assert second.position == 33
    assert continued(second, 4)[0][0] == single(lola, random_tokens(30, seed=2), 4)[3]


def test_a_batch_refuses_a_session_twice_and_sessions_of_two_models(lola: Model, tmp_path: Path) -> None:
    session, stranger = lola.session(), make_model(tmp_path, "lola", seed=1).session()
    for pair, problem in (((session, session), "stands in it twice"), ((session, stranger), "of the same model")):
        batch = Batch()
        for member in pair:
            batch.add(member, [5], max_tokens=1)
        with pytest.raises(UsageError, match=problem):
            batch.step()

"""Snapshots and rewinding: back to an earlier position, and on from there as if nothing had come after it."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from lola_cpp import Grammar, Model, Session, UsageError
from lola_cpp._core import FormatError
from lola_cpp.history import History
from lola_cpp.passes import advance
from reference import tiny_gguf
from reference.tiny_gguf import TinyAdapter, tiny

SAMPLING = {"temperature": 1.5, "top_p": 0.95, "repetition_penalty": 1.2, "seed": 11}


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.default(threads=1)


def text_tokens(model: Model, count: int) -> list[int]:
    text = "import os\n\n\ndef add(first, second):\n    return first + second\n\n\n" * count
    return model.tokenize(text)[:count]


def ids(session: Session, count: int = 12, **options: object) -> list[int]:
    return [token.id for token in session.generate(max_tokens=count, stop_at_end=False, **options)]


def replayed(model: Model, tokens: list[int]) -> np.ndarray:
    session = model.session()
    session.append(tokens)
    return session.logits


def test_a_snapshot_is_restored_any_number_of_times_bit_for_bit(model: Model) -> None:
    session = model.session()
    session.append(text_tokens(model, 300))
    ids(session, 3, **SAMPLING)  # its sampler and the last token, still pending, belong to it
    snapshot = session.snapshot()
    assert snapshot.position == 303
    assert snapshot.memory_bytes == session.memory_bytes
    wanted = ids(session, sampler=session.sampler)
    for _ in range(2):
        session.restore(snapshot)
        assert session.position == 303
        assert ids(session, sampler=session.sampler) == wanted
    fresh = snapshot.session()
    assert ids(fresh, sampler=fresh.sampler) == wanted


def test_a_snapshot_of_another_model_is_refused(model: Model) -> None:
    other = Model.default(threads=1)
    with pytest.raises(UsageError, match="of another model"):
        model.session().restore(other.session().snapshot())


@pytest.fixture(scope="module", params=[(), (0,), (0, 1)], ids=["lola", "hybrid", "softmax"])
def random_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    config, adapter = tiny(hidden=64, ffn=96), TinyAdapter(feature_dim=8, softmax_layers=request.param)
    folder = tmp_path_factory.mktemp("model")
    tiny_gguf.write_model(folder / "m.gguf", config, tiny_gguf.random_weights(config, seed=0, std=0.12))
    tiny_gguf.write_adapter(folder / "a.gguf", config, adapter, tiny_gguf.random_adapter(config, adapter))
    return Model(folder / "m.gguf", folder / "a.gguf", threads=1)


@pytest.mark.parametrize("copies", [0, 1, 3, 20])
def test_rewinding_gives_the_logits_of_a_session_that_never_went_further(random_model: Model, copies: int) -> None:
    model = random_model
    tokens = [int(x) for x in np.random.default_rng(1).integers(2, model.info.vocabulary, 1500)]
    session = model.session(rewind_budget=copies * model.session_bytes())
    session.append(tokens[:1100])
    for token in tokens[1100:1300]:
        session.append([token])
    session.append(tokens[1300:])
    for position in (1499, 1234, 1100, 700, 512, 64, 1):
        session.rewind(position)
        assert session.position == position
        assert session.tokens == tokens[:position]
        wanted = replayed(model, tokens[:position])
        # One-token passes and long ones sum float32 in another order.
        assert np.abs(session.logits - wanted).max() < 1e-4 * np.abs(wanted).max()
    session.rewind(0)
    assert session.position == 0
    assert session.logits.size == 0
    session.append(tokens[:10])
    assert (session.logits == replayed(model, tokens[:10])).all()


def test_copies_are_log_spaced_and_stay_within_their_budget(model: Model) -> None:
    core = model.session()._core
    history = History(core, 10 * core.memory_bytes)
    rng = random.Random(0)
    for _ in range(300):
        count = rng.choice([1, 64, 200])
        history.tokens_read([5] * count)
        history.keep_copy(core, prompt=count > 1)
        assert len(history._copies) <= 10
    # The copies here carry the core's position; where they stand is told by how far apart they were taken.
    assert len(history._copies) == 10


def test_the_replay_is_about_as_long_as_the_way_back(model: Model) -> None:
    session = model.session(rewind_budget=12 * model.session_bytes())
    for begin in range(0, 6400, 64):
        session.append(text_tokens(model, 64))
        assert session.position == begin + 64
    positions = [copy.position for copy in session._history._copies]
    assert len(positions) == 12
    for back in (64, 200, 800, 3000):
        target = 6400 - back
        nearest = max((p for p in positions if p <= target), default=0)
        assert target - nearest <= 2 * back


def test_a_reading_that_was_interrupted_is_rewound_to_its_end_with_logits(model: Model) -> None:
    def interrupt(done: int) -> None:
        raise KeyboardInterrupt

    tokens, sessions = text_tokens(model, 1000), []
    for _ in range(2):
        sessions.append(model.session(rewind_budget=8 * model.session_bytes()))
        sessions[-1].pending.extend(tokens)
    with pytest.raises(KeyboardInterrupt):
        advance(sessions, interrupt)
    for session in sessions:
        read = session._core.position
        assert 0 < read < 1000
        session.rewind(read)
        assert (session.position, session.pending) == (read, [])
        assert session.logits.argmax() == replayed(model, tokens[:read]).argmax()


def test_a_position_outside_of_the_history_is_refused(model: Model, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="make it with rewind_budget"):
        model.session().rewind(0)
    with pytest.raises(UsageError, match="rewind_budget: found -1"):
        model.session(rewind_budget=-1)
    session = model.session(rewind_budget=0)
    session.append([5, 6, 7])
    for position in (-1, 4):
        with pytest.raises(UsageError, match=f"rewind: found {position}, wanted 0 to 3"):
            session.rewind(position)
    session.save(tmp_path / "s.state")
    loaded = model.load_session(tmp_path / "s.state", rewind_budget=0)
    wanted = loaded.logits
    loaded.append([8, 9])
    with pytest.raises(UsageError, match="rewind: found 2, wanted 3 to 5"):
        loaded.rewind(2)
    loaded.rewind(3)
    assert (loaded.logits == wanted).all()


def test_a_fork_is_rewound_without_disturbing_its_origin(model: Model) -> None:
    session = model.session(rewind_budget=4 * model.session_bytes())
    tokens = text_tokens(model, 600)
    session.append(tokens)
    before = session.logits
    branch = session.fork()
    branch.rewind(100)
    branch.append(tokens[100:120])
    assert session.tokens == tokens
    assert (session.logits == before).all()
    assert branch.tokens == tokens[:120]


def test_a_pending_token_can_be_taken_back(model: Model) -> None:
    session = model.session(rewind_budget=0)
    session.append(text_tokens(model, 50))
    before = session.logits
    ids(session, 1)
    assert session.position == 51
    session.rewind(50)
    assert (session.logits == before).all()


def test_scored_tokens_are_part_of_the_history(model: Model) -> None:
    session = model.session(rewind_budget=0)
    tokens = text_tokens(model, 40)
    session.score(tokens)
    assert session.tokens == tokens


# --- With a grammar ---


def test_a_grammar_survives_fork_rewind_and_save(model: Model, tmp_path: Path) -> None:
    pytest.importorskip("llguidance")
    grammar = Grammar("gbnf", 'root ::= "<" [a-z]{3} ":" [0-9]{4} ">"')
    session = model.session(rewind_budget=0)
    session.append("value = ")
    start = session.position
    written = "".join(t.text for t in session.generate(max_tokens=3, grammar=grammar, temperature=2.0, seed=3))
    branch = session.fork()
    session.save(tmp_path / "s.state")
    loaded = model.load_session(tmp_path / "s.state")
    rests = []
    for other in (session, branch, loaded):
        stream = other.generate(max_tokens=40, grammar=other.constraint, sampler=other.sampler)
        rests.append("".join(token.text for token in stream))
    assert len(set(rests)) == 1
    whole = written + rests[0]
    assert whole[0] == "<" and whole[4] == ":" and whole[-1] == ">" and len(whole) == 10

    session.rewind(start + 1)
    assert session.constraint is not None
    rest = "".join(t.text for t in session.generate(max_tokens=40, grammar=session.constraint, temperature=2.0, seed=9))
    first = model.tokenizer.decode([session.tokens[start]])
    assert len(first + rest) == 10 and (first + rest)[4] == ":"
    session.rewind(start - 1)
    assert session.constraint is None


def test_a_state_file_with_a_false_constraint_is_refused(model: Model, tmp_path: Path) -> None:
    pytest.importorskip("llguidance")
    for constraint in ({"kind": "gbnf", "source": 3, "start": 0, "tokens": []}, {"kind": "x"}, [], "x"):
        session = model.session()
        session.append([5])
        session._core.save(
            str(tmp_path / "s.state"),
            b'{"pending": [], "sampler": null, "constraint": %s}' % str(constraint).replace("'", '"').encode(),
        )
        with pytest.raises(FormatError, match=r"state\.extra"):
            model.load_session(tmp_path / "s.state")

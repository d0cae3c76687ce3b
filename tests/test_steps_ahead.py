"""Passes that a device may still be at when their submission returns, and generations that submit the next step before
they tell of a token: nobody sees a difference.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lola_cpp import Batch, Model, Scheduler, Session, UsageError
from lola_cpp.passes import submit
from reference.device import DEVICE
from reference.session_models import SAMPLING, random_tokens, read
from test_session_streams import letters, only_tokens

GREEDY = {"max_tokens": 30, "stop_at_end": False}
OPTIONS = {**GREEDY, **SAMPLING}


def submitted(model: Model, seed: int = 0, **options: object) -> Session:
    """A session that a device may still be at the last token of."""
    session = read(model, random_tokens(40, seed), **options)
    session.pending.append(5)
    submit([session])
    assert (session.pending, session.position) == ([], 41)
    return session


def told(stream: Iterator) -> list[tuple]:
    return [(token.id, token.text, token.logprob, token.finish_reason) for token in stream]


@pytest.fixture
def wanted(model: Model) -> Session:
    session = read(model, random_tokens(40))
    session.append([5])
    return session


# --- Submitted passes ---


def test_a_submitted_pass_gives_what_one_that_was_waited_for_gives(model: Model, wanted: Session) -> None:
    np.testing.assert_array_equal(submitted(model).logits, wanted.logits)
    assert told(submitted(model).generate(**OPTIONS)) == told(wanted.generate(**OPTIONS))


def test_copies_of_a_submitted_session_continue_bit_for_bit(model: Model, wanted: Session, tmp_path: Path) -> None:
    session = submitted(model)
    fork = session.fork()
    session.save(tmp_path / "s.state")
    loaded = model.load_session(tmp_path / "s.state")
    spilled = submitted(model)
    spilled.spill()
    expected = told(wanted.generate(**OPTIONS))
    for each in (fork, session, loaded, spilled):
        assert told(each.generate(**OPTIONS)) == expected
    np.testing.assert_array_equal(fork.logits, wanted.logits)


def test_sessions_submitted_one_after_the_other_are_read_in_any_order(model: Model) -> None:
    alone = [told(submitted(model, seed).generate(**GREEDY)) for seed in range(4)]
    sessions = [submitted(model, seed) for seed in range(4)]
    sessions[1] = model.session()  # nobody asks what its pass found
    for seed in (3, 0, 2):
        assert told(sessions[seed].generate(**GREEDY)) == alone[seed]


def test_sessions_of_one_submitted_pass_are_read_by_many_threads(model: Model) -> None:
    sessions = [read(model, random_tokens(40, seed)) for seed in range(6)]
    copies = [session.fork() for session in sessions]
    for each in (*sessions, *copies):
        each.pending.append(5)
    submit(sessions)
    submit(copies)
    found: dict[int, list] = {}

    def user(i: int) -> None:
        found[i] = told(sessions[i].generate(**GREEDY))

    threads = [threading.Thread(target=user, args=(i,)) for i in range(len(sessions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {i: told(copy.generate(**GREEDY)) for i, copy in enumerate(copies)}


def test_what_cannot_be_submitted_stays_pending(models: dict[str, Model]) -> None:
    session = read(models["softmax"], random_tokens(8), context_length=8)
    other = read(models["softmax"], random_tokens(4), context_length=8)
    for each in (session, other):
        each.pending.append(5)
    submit([session, other])
    assert (session.pending, other.pending) == ([5], [5])
    with pytest.raises(UsageError, match="session is full"):
        session.read_pending()
    other.read_pending()
    assert (other.pending, other.position) == ([], 5)


# --- Generations that run ahead ---


@pytest.fixture
def ahead(model: Model, monkeypatch: pytest.MonkeyPatch) -> Model:
    """A model whose device counts as one that runs behind the host."""
    monkeypatch.setattr(model, "runs_behind", True)
    return model


def waiting(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "runs_behind", False)


def test_a_stream_tells_the_same_and_leaves_the_session_at_the_same_place(
    ahead: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> list:
        session = ahead.session(rewind_budget=0)
        stream, seen = session.generate(random_tokens(40), **OPTIONS), []
        for token in stream:
            seen.append((token, session.position, session.tokens))
        return [seen, session.position, session.pending]

    found = run()
    waiting(ahead, monkeypatch)
    assert found == run()


def test_the_middle_of_a_stream_can_be_forked_saved_and_left(
    ahead: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    session = ahead.session()
    stream = session.generate(random_tokens(40), **OPTIONS)
    for _ in range(10):
        next(stream)
    assert (session.pending, session.position) == ([], 50)
    fork = session.fork()
    session.save(tmp_path / "s.state")
    loaded = ahead.load_session(tmp_path / "s.state")
    rest = told(stream)
    for each in (fork, loaded):
        assert told(each.generate(max_tokens=20, stop_at_end=False, sampler=each.sampler)) == rest
    left = ahead.session()
    stream = left.generate(random_tokens(40), **OPTIONS)
    first = [next(stream).id for _ in range(10)]
    waiting(ahead, monkeypatch)
    again = ahead.session()
    assert [next(s).id for s in [again.generate(random_tokens(40), **OPTIONS)] for _ in range(10)] == first
    np.testing.assert_array_equal(left.logits, again.logits)


def test_a_stream_can_be_rewound_in_its_middle(ahead: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    session = ahead.session(rewind_budget=8 * ahead.session_bytes())
    stream = session.generate(random_tokens(40), **{**OPTIONS, "max_tokens": 100})
    for _ in range(80):
        next(stream)
    tokens = session.tokens
    session.rewind(119)
    assert (session.tokens, session.position, session.pending) == (tokens[:-1], 119, [])
    waiting(ahead, monkeypatch)
    plain = ahead.session(rewind_budget=8 * ahead.session_bytes())
    stream = plain.generate(random_tokens(40), **{**OPTIONS, "max_tokens": 100})
    for _ in range(80):
        next(stream)
    assert plain.tokens == tokens
    plain.rewind(119)
    assert np.corrcoef(session.logits, plain.logits)[0, 1] > 0.99  # one was read again, the other never left


def test_the_last_token_waits_unless_a_stop_string_ended_the_text(ahead: Model) -> None:
    a, b = letters()[:2]
    session = ahead.session()
    assert len(list(session.generate([5], max_tokens=3, logit_bias=only_tokens(a)))) == 3
    assert (len(session.pending), session.position) == (1, 4)
    session = ahead.session()
    list(session.generate([5], logit_bias=only_tokens(1)))
    assert (session.pending, session.position) == ([1], 2)
    session = ahead.session()
    tokens = list(session.generate([5], logit_bias=only_tokens(b), stop="bbb"))
    assert [token.finish_reason for token in tokens] == [None, None, "stop"]
    assert (session.pending, session.position) == ([], 4)


def test_an_exception_between_a_choice_and_its_token_loses_nothing(
    ahead: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = told(ahead.session().generate(random_tokens(40), **OPTIONS))
    stream = ahead.session().generate(random_tokens(40), **OPTIONS)
    found = told(next(stream) for _ in range(5))

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lola_cpp.generation.submit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            next(stream)
    assert found + told(stream) == expected


def test_a_full_session_yields_its_last_token_before_it_says_so(models: dict[str, Model]) -> None:
    def run(runs_behind: bool) -> int:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(models["softmax"], "runs_behind", runs_behind)
            stream = models["softmax"].session(context_length=12).generate(random_tokens(8), **OPTIONS)
            count = 0
            with pytest.raises(UsageError, match="session is full"):
                for _ in stream:
                    count += 1
        return count

    assert run(True) == run(False) == 5


def test_cancelling_ends_a_stream_that_runs_ahead(ahead: Model) -> None:
    session = ahead.session()
    stream = session.generate(random_tokens(40), **OPTIONS)
    assert len([stream.cancel() if i == 9 else token for i, token in enumerate(stream)]) == 10
    assert (stream.finish_reason, session.position) == ("cancelled", 50)
    assert session.logits.size > 0


def test_a_batch_tells_the_same(ahead: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> list:
        batch = Batch()
        for seed in range(6):
            batch.add(ahead.session(), random_tokens(9, seed), **{**OPTIONS, "seed": seed})
        return [(token, session.position) for session, token in batch]

    found = run()
    assert len(found) == 180
    waiting(ahead, monkeypatch)
    assert found == run()


@pytest.mark.skipif(DEVICE != "cpu", reason="rounding there depends on who shares a pass")
def test_sessions_that_join_a_batch_or_a_scheduler_are_told_the_same(
    ahead: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    def batched() -> dict[int, list]:
        batch, names, found = Batch(chunk_tokens=16), {}, {}
        for step in range(60):
            if step % 5 == 0 and step < 40:
                session = ahead.session()
                options = {**OPTIONS, "seed": step, "stop": "e", "max_tokens": 20}
                batch.add(session, random_tokens(1 + step, step), **options)
                names[id(session)] = session, step
            for session, token in batch.step():
                found.setdefault(names[id(session)][1], []).append((token, session.position))
        assert len(batch) == 0
        return found

    def scheduled() -> list:
        with Scheduler(ahead, buffer_tokens=4) as scheduler:
            requests = [scheduler.submit(random_tokens(9, n), **{**OPTIONS, "seed": n}) for n in range(5)]
            requests[2].cancel()
            return [told(request) for n, request in enumerate(requests) if n != 2]

    found = batched(), scheduled()
    waiting(ahead, monkeypatch)
    assert found == (batched(), scheduled())

"""Sessions that are interrupted, and those that several threads want."""

from __future__ import annotations

import _thread
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lola_cpp import Model, UsageError
from reference.device import PASS_TOKENS
from reference.session_models import SAMPLING, assert_same_logits, random_tokens, read


def test_an_exception_between_passes_leaves_the_rest_pending(model: Model, tmp_path: Path) -> None:
    count = 2 * PASS_TOKENS + 276
    tokens = random_tokens(count)
    session = model.session(context_length=count)

    def stop(done: int) -> None:
        raise InterruptedError(done)

    with pytest.raises(InterruptedError, match=str(PASS_TOKENS)):
        session.append(tokens, progress=stop)
    assert (session.position, session.pending) == (count, tokens[PASS_TOKENS:])
    session.save(tmp_path / "state.gguf")
    loaded = model.load_session(tmp_path / "state.gguf")
    wanted = read(model, tokens, context_length=count).logits
    for interrupted in (session.fork(), loaded, session):
        assert_same_logits(interrupted.logits, wanted)
        assert interrupted.pending == []


def test_logits_of_an_interrupted_prompt_are_not_those_from_before(lola: Model) -> None:
    session = read(lola, [5])

    def stop(_done: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        session.append(random_tokens(PASS_TOKENS + 88), progress=stop)
    session.pending.clear()
    assert session.logits.size == 0


def test_ctrl_c_stops_a_prompt_after_the_running_pass(lola: Model) -> None:
    tokens, passes = random_tokens(PASS_TOKENS) * 400, []
    session, started = lola.session(), threading.Event()
    interrupted_after: list[int] = []

    def interrupt() -> None:
        started.wait()
        interrupted_after.append(len(passes))
        _thread.interrupt_main()

    thread = threading.Thread(target=interrupt)
    thread.start()

    def progress(done: int) -> None:
        passes.append(done)
        started.set()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start background work with it ignored
    try:
        with pytest.raises(KeyboardInterrupt):
            session.append(tokens, progress=progress)
    finally:
        signal.signal(signal.SIGINT, before)
    thread.join()
    read_tokens = len(tokens) - len(session.pending)
    # The pass that runs when the signal comes, and one that the signal may find just begun.
    assert read_tokens <= (interrupted_after[0] + 2) * PASS_TOKENS
    assert session.pending == tokens[read_tokens:]
    assert session.position == len(tokens)


@pytest.fixture
def long_switch_interval() -> Iterator[None]:
    """Python changes threads only where the lock is released."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1000.0)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("long_switch_interval")
def test_other_python_threads_run_during_a_pass(lola: Model) -> None:
    session, tokens, finished = lola.session(), random_tokens(PASS_TOKENS) * 4, threading.Event()
    count = [0]

    def tick() -> None:
        while not finished.is_set():
            count[0] += 1
            time.sleep(0.0002)

    thread = threading.Thread(target=tick)
    thread.start()
    ticks: list[int] = []
    session.append(tokens, progress=lambda _done: ticks.append(count[0]))
    finished.set()
    thread.join()
    assert ticks[-1] > ticks[0]


def test_a_second_thread_is_refused_and_disturbs_nothing(lola: Model, tmp_path: Path) -> None:
    tokens, session = random_tokens(2 * PASS_TOKENS + 76), lola.session()
    in_pass, checked = threading.Event(), threading.Event()

    def wait(_done: int) -> None:
        in_pass.set()
        checked.wait(60)

    thread = threading.Thread(target=lambda: session.append(tokens, progress=wait))
    thread.start()
    in_pass.wait(60)
    calls = [
        lambda: session.append([5]),
        lambda: session.score([5]),
        lambda: session.generate([5]),
        lambda: session.logits,
        lambda: session.fork(),
        lambda: session.save(tmp_path / "state.gguf"),
    ]
    for call in calls:
        with pytest.raises(UsageError, match="another thread is using it"):
            call()
    checked.set()
    thread.join()
    assert (session.position, session.pending) == (len(tokens), [])
    np.testing.assert_array_equal(session.logits, read(lola, tokens).logits)


def test_threads_with_sessions_of_one_model_get_what_they_get_alone(model: Model) -> None:
    def run(seed: int) -> tuple[list[int], np.ndarray]:
        session = model.session()
        ids = [t.id for t in session.generate(random_tokens(60, seed), max_tokens=15, stop_at_end=False, **SAMPLING)]
        return ids, session.logits

    found: dict[int, tuple[list[int], np.ndarray]] = {}
    threads = [threading.Thread(target=lambda seed=seed: found.update({seed: run(seed)})) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed in range(4):
        ids, logits = run(seed)
        assert found[seed][0] == ids
        np.testing.assert_array_equal(found[seed][1], logits)

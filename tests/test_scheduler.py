"""The scheduler: many users share passes over the weights, and each gets what it would get alone."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from lola_cpp import BusyError, Model, Scheduler, UsageError, _core

SAMPLING = {"temperature": 1.2, "top_p": 0.95, "repetition_penalty": 1.1, "stop_at_end": False}


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.default(threads=1)


def prompt_of(model: Model, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(2, model.info.vocabulary) for _ in range(rng.choice([1, 3, 40, 300]))]


BIT_EQUAL = """
import sys, threading
sys.path.insert(0, sys.argv[1])
from lola_cpp import Batch
from test_scheduler import *
model = Model.default(threads=1)
found = {}
with Scheduler(model, max_active=12) as scheduler:
    def user(seed):
        time.sleep(seed % 5 * 0.05)
        request = scheduler.submit(prompt_of(model, seed), max_tokens=12, seed=seed, **SAMPLING)
        ids = [token.id for token in request]
        found[seed] = (ids, request.session.logits)
    threads = [threading.Thread(target=user, args=(seed,)) for seed in range(20)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
for seed, (ids, logits) in found.items():
    session = model.session()
    batch, wanted = Batch(), []  # alone, cut at the same positions
    batch.add(session, prompt_of(model, seed), max_tokens=12, seed=seed, **SAMPLING)
    wanted = [token.id for _, token in batch]
    assert ids == wanted and (logits == session.logits).all(), seed
"""


@pytest.mark.parametrize("isa", _core.testing.available_isas())
def test_no_bit_depends_on_who_shares_the_batch(isa: str) -> None:
    code = subprocess.run(
        [sys.executable, "-c", BIT_EQUAL, os.path.dirname(__file__)],
        env={**os.environ, "LOLA_FORCE_ISA": isa},
        capture_output=True,
        text=True,
    )
    assert code.returncode == 0, code.stderr


def test_threads_and_coroutines_share_a_scheduler(model: Model) -> None:
    found: dict[int, list[int]] = {}
    with Scheduler(model, max_active=4) as scheduler:

        def thread_user(seed: int) -> None:
            request = scheduler.submit(prompt_of(model, seed), max_tokens=10, seed=seed, **SAMPLING)
            found[seed] = [token.id for token in request]

        async def coroutine_user(seed: int) -> None:
            request = scheduler.submit(prompt_of(model, seed), max_tokens=10, seed=seed, **SAMPLING)
            found[seed] = [token.id async for token in request]

        async def coroutines() -> None:
            await asyncio.gather(*(coroutine_user(seed) for seed in range(6)))

        threads = [threading.Thread(target=thread_user, args=(seed,)) for seed in range(6, 12)]
        for thread in threads:
            thread.start()
        asyncio.run(coroutines())
        for thread in threads:
            thread.join()
    assert {seed: len(ids) for seed, ids in found.items()} == dict.fromkeys(range(12), 10)


def test_a_long_prompt_delays_nobody_by_more_than_a_part_of_it(model: Model) -> None:
    with Scheduler(model, chunk_tokens=32, prefill_tokens=32) as scheduler:
        talking = scheduler.submit([5, 6], max_tokens=100, stop_at_end=False)
        next(talking)
        reading = scheduler.submit([7] * 2000, max_tokens=1, stop_at_end=False)
        assert sum(1 for _ in talking) == 99
        assert reading.finish_reason is None or reading.session.position >= 2000
        assert reading.result() is not None


def test_requests_are_served_in_the_order_of_their_arrival(model: Model) -> None:
    order: list[int] = []  # as the scheduler's thread chooses tokens; a thread that waits may wake late

    def note(request: int) -> Callable[..., np.ndarray]:
        return lambda ids, logits: order.append(request) or logits

    with Scheduler(model, max_active=1) as scheduler:
        options = {"max_tokens": 2, "stop_at_end": False}
        requests = [scheduler.submit([5 + i], logits_processors=[note(i)], **options) for i in range(4)]
        for request in requests:
            request.result()
    assert order == [0, 0, 1, 1, 2, 2, 3, 3]


def test_one_request_too_many_is_refused(model: Model) -> None:
    with Scheduler(model, max_active=1, max_waiting=2) as scheduler:
        running = scheduler.submit([5], stop_at_end=False)
        next(running)
        waiting = [scheduler.submit([5], max_tokens=1, stop_at_end=False) for _ in range(2)]
        with pytest.raises(BusyError, match="2 requests wait already"):
            scheduler.submit([5])
        running.cancel()
        assert all(request.result() is not None for request in waiting)
        assert running.finish_reason in (None, "cancelled")


def test_a_cancelled_request_ends_and_its_session_stays_usable(model: Model) -> None:
    with Scheduler(model) as scheduler:
        request = scheduler.submit([5, 6, 7], stop_at_end=False)
        for _ in range(3):
            next(request)
        request.cancel()
        list(request)
        assert request.finish_reason == "cancelled"
        again = scheduler.submit([8], session=request.session, max_tokens=3, stop_at_end=False)
        assert len(list(again)) == 3


def test_a_prompt_is_cancelled_within_one_part(model: Model) -> None:
    with Scheduler(model, chunk_tokens=32, prefill_tokens=32) as scheduler:
        request = scheduler.submit([5] * 20_000, max_tokens=1)
        while request.session.pending and len(request.session.pending) == 20_000:
            time.sleep(0.001)
        request.cancel()
        assert list(request) == []
        assert 0 < len(request.session.pending) < 20_000


def test_a_slow_reader_pauses_its_request_and_nobody_elses(model: Model) -> None:
    with Scheduler(model, buffer_tokens=4) as scheduler:
        slow = scheduler.submit([5], max_tokens=40, stop_at_end=False)
        quick = scheduler.submit([6], max_tokens=40, stop_at_end=False)
        assert len(list(quick)) == 40
        assert slow.unread <= 5
        assert len(list(slow)) == 40


def test_an_error_of_one_request_is_its_own(model: Model) -> None:
    def broken(ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
        raise ValueError("my processor")

    with Scheduler(model) as scheduler:
        good = scheduler.submit([5], max_tokens=20, stop_at_end=False)
        bad = scheduler.submit([6], logits_processors=[broken])
        with pytest.raises(ValueError, match="my processor"):
            list(bad)
        assert len(list(good)) == 20
        busy = model.session()
        with busy.used_by_this_thread():
            request = scheduler.submit([7], session=busy, max_tokens=2)
            good = scheduler.submit([5], max_tokens=20, stop_at_end=False)
            with pytest.raises(UsageError, match="another thread is using it"):
                list(request)
        assert len(list(good)) == 20


def test_wrong_use_is_refused_where_it_happens(model: Model) -> None:
    scheduler = Scheduler(model)
    with pytest.raises(TypeError):
        scheduler.submit([5], temprature=1.0)
    with pytest.raises(UsageError, match="found id 99999999"):
        scheduler.submit([99999999])
    with pytest.raises(UsageError, match="of another model"):
        scheduler.submit([5], session=Model.default(threads=1).session())
    request = scheduler.submit([5], stop_at_end=False)
    with pytest.raises(UsageError, match="has a request that has not ended"):
        scheduler.submit([5], session=request.session)
    assert scheduler.submit([5], max_tokens=0).finish_reason == "length"
    scheduler.close()
    list(request)
    assert request.finish_reason == "cancelled"
    with pytest.raises(UsageError, match="closed"):
        scheduler.submit([5])
    with pytest.raises(UsageError, match="max_active: found 0"):
        Scheduler(model, max_active=0)

"""Generations: Python processors and criteria, grammars and cancelling, together with every other option."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable

import numpy as np
import pytest

from lola_cpp import Batch, Constraint, Grammar, Model, Session, UsageError


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.default(threads=1)


def forbid(*tokens: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    def processor(ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
        logits[list(tokens)] = -np.inf
        return logits

    return processor


def text(session: Session, prompt: str = "", **options: object) -> str:
    return "".join(token.text for token in session.generate(prompt, **options))


# --- Processors and criteria ---


def test_a_processor_changes_the_choice_and_not_the_log_probabilities(model: Model) -> None:
    plain = next(model.session().generate("import os\n", top_logprobs=2))
    changed = next(model.session().generate("import os\n", top_logprobs=2, logits_processors=[forbid(plain.id)]))
    assert changed.id == plain.top_logprobs[1][0]
    assert changed.logprob == plain.top_logprobs[1][1]
    assert changed.top_logprobs == plain.top_logprobs


@pytest.mark.parametrize("rewind_budget", [None, 0])
def test_processors_and_criteria_see_the_tokens_and_the_logits_behind_each_choice(
    model: Model, rewind_budget: int | None
) -> None:
    seen: list[list[int]] = []
    criteria: list[list[int]] = []

    def processor(ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
        assert logits.shape == (model.info.vocabulary,) and ids.dtype == np.int64
        seen.append(ids.tolist())
        return logits

    def criterion(ids: np.ndarray, logits: np.ndarray) -> bool:
        criteria.append(ids.tolist())
        assert int(logits.argmax()) == ids[-1]
        return len(criteria) == 4

    session = model.session(rewind_budget=rewind_budget)
    session.append([5, 6])
    stream = session.generate(
        [7, 8], max_tokens=9, stop_at_end=False, logits_processors=[processor], stopping_criteria=[criterion]
    )
    tokens = list(stream)
    before = [5, 6] if rewind_budget is not None else []
    ids = [token.id for token in tokens]
    assert seen == [[*before, 7, 8, *ids[:n]] for n in range(4)]
    assert criteria == [[*before, 7, 8, *ids[: n + 1]] for n in range(4)]
    assert [token.finish_reason for token in tokens] == [None, None, None, "stop"]
    assert stream.finish_reason == "stop"


def test_every_option_acts_at_once(model: Model) -> None:
    pytest.importorskip("llguidance")
    digits = Grammar("regex", "[0-9]{12}")
    vocabulary = [model.tokenizer.token_to_id(digit) for digit in "0123456789"]
    stops: list[int] = []
    written = text(
        model.session(),
        "x = ",
        grammar=digits,
        logits_processors=[forbid(*vocabulary[:5])],
        stopping_criteria=[lambda ids, logits: stops.append(1) or False],
        logit_bias={vocabulary[5]: -np.inf},
        temperature=2.0,
        top_k=3000,
        top_p=0.999,
        frequency_penalty=0.1,
        stop="9",
        seed=4,
        max_tokens=40,
    )
    assert stops
    assert "9" not in written
    assert not written or set(written[0]) <= set("678") or len(written) > 1


def test_a_batch_takes_the_same_options(model: Model) -> None:
    pytest.importorskip("llguidance")
    batch = Batch()
    sessions = [model.session() for _ in range(3)]
    for session in sessions:
        batch.add(session, "x = ", grammar=Grammar("regex", "[0-9]{5}"), temperature=1.0, seed=2, max_tokens=30)
    texts = dict.fromkeys(sessions, "")
    for session, token in batch:
        texts[session] += token.text
    assert all(len(written) == 5 and written.isdigit() for written in texts.values())


# --- Grammars ---


@pytest.mark.parametrize(
    ("grammar", "accepts"),
    [
        (Grammar("gbnf", 'root ::= "yes" | "no"'), lambda t: t in ("yes", "no")),
        (
            Grammar("gbnf", 'root ::= item ("," item){1,2}\nitem ::= [a-c]+ # one\n'),
            lambda t: set(t) <= set("abc,") and 1 <= t.count(",") <= 2,
        ),
        (Grammar("lark", 'start: "a" /[0-9]{2}/'), lambda t: len(t) == 3 and t[0] == "a"),
        (
            Grammar.json_schema(
                {
                    "type": "object",
                    "properties": {"n": {"type": "integer"}},
                    "required": ["n"],
                    "additionalProperties": False,
                }
            ),
            lambda t: set(json.loads(t)) == {"n"},
        ),
    ],
)
def test_a_text_follows_its_grammar(model: Model, grammar: Grammar, accepts: Callable[[str], bool]) -> None:
    pytest.importorskip("llguidance")
    for seed in range(5):
        stream = model.session().generate("x", grammar=grammar, temperature=1.0, seed=seed, max_tokens=300)
        written = "".join(token.text for token in stream)
        assert stream.finish_reason == "length" or accepts(written), written


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("gbnf", "root ::= missing"),
        ("gbnf", "root ::= (" + "(" * 5000),
        ("gbnf", "\x00"),
        ("lark", "start: ["),
        ("regex", "(" * 5000),
        ("json_schema", "{"),
        ("json_schema", '{"type": "nothing"}'),
        ("json_schema", '{"$ref": "https://example.org/x"}'),
        ("bnf", "x"),
    ],
)
def test_a_wrong_grammar_is_refused_before_anything_is_read(model: Model, kind: str, source: str) -> None:
    pytest.importorskip("llguidance")
    session = model.session()
    with pytest.raises(UsageError, match="grammar"):
        session.generate("abc", grammar=Grammar(kind, source))
    assert session.position == 0


# What would take all memory or time if it were spelled out; llguidance knows its limits.
EXPLODING = {
    "a rule that is itself": ("gbnf", "root ::= root"),
    "rules in a circle": ("gbnf", "root ::= a\na ::= b\nb ::= a"),
    "left recursion": ("gbnf", 'root ::= root "a" | "b"'),
    "nothing for ever": ("gbnf", 'root ::= ("" | "a"*)*'),
    "a billion letters": ("gbnf", 'root ::= "a"{1000000000}'),
    "two to the 40 states": ("regex", "(a|b)*a(a|b){40}"),
    "ambiguity": ("regex", "(a|aa)*(b|a*)*c" * 50),
    "a schema that is itself": ("json_schema", '{"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}'),
    "a schema in itself": (
        "json_schema",
        '{"$ref": "#/$defs/a", "$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}}}}',
    ),
    "a schema 10000 deep": ("json_schema", '{"items": ' * 10_000 + "{}" + "}" * 10_000),
    "a string of a billion letters": ("json_schema", '{"type": "string", "minLength": 1000000000}'),
    "a hundred million items": ("json_schema", '{"type": "array", "minItems": 100000000}'),
}


@pytest.mark.parametrize("name", EXPLODING)
def test_a_grammar_that_explodes_is_obeyed_or_refused(model: Model, name: str) -> None:
    pytest.importorskip("llguidance")
    session, begin = model.session(), time.monotonic()
    try:
        tokens = list(session.generate("x", grammar=Grammar(*EXPLODING[name]), max_tokens=10))
    except UsageError as error:
        assert str(error).startswith("grammar: ") and "\n" not in str(error)
    else:
        assert 1 <= len(tokens) <= 10
    assert time.monotonic() - begin < 20  # less than one, as a rule


def test_a_constraint_is_copied_and_taken_back(model: Model) -> None:
    pytest.importorskip("llguidance")
    constraint = Constraint(Grammar("regex", "[ab][cd][ef][gh]"), model, start=10)
    letters = [model.tokenizer.token_to_id(letter) for letter in "aceg"]
    for letter in letters[:3]:
        constraint.accept(letter)
    copy = constraint.copy()
    constraint.rewind(11)
    logits = np.zeros(model.info.vocabulary, dtype=np.float32)
    constraint.apply(logits)
    assert logits[letters[1]] == 0 and logits[letters[3]] == -np.inf
    logits[:] = 0
    copy.apply(logits)
    assert logits[letters[3]] == 0 and logits[letters[1]] == -np.inf
    with pytest.raises(UsageError, match="grammar"):
        copy.accept(letters[0])


# --- Streams ---


def test_a_stream_is_an_async_iterator_that_leaves_the_loop_free(model: Model) -> None:
    async def run() -> tuple[list[int], int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0)
                ticks += 1

        ticking = asyncio.create_task(tick())
        stream = model.session().generate("import os\n", max_tokens=20, stop_at_end=False)
        ids = [token.id async for token in stream]
        ticking.cancel()
        return ids, ticks

    ids, ticks = asyncio.run(run())
    assert ids == [t.id for t in model.session().generate("import os\n", max_tokens=20, stop_at_end=False)]
    assert ticks > 20


def test_another_thread_cancels_a_prompt_within_one_pass(model: Model) -> None:
    session = model.session()
    first_pass = threading.Event()
    stream = session.generate([5] * 30_000, max_tokens=5, progress=lambda done: first_pass.set())
    canceller = threading.Thread(target=lambda: (first_pass.wait(), stream.cancel()))
    canceller.start()
    assert list(stream) == []
    canceller.join()
    assert stream.finish_reason == "cancelled"
    assert 0 < session._core.position < 30_000
    assert session.position == 30_000


def test_a_cancelled_task_leaves_its_session_usable(model: Model) -> None:
    session = model.session()

    async def run() -> None:
        stream = session.generate([5] * 30_000, max_tokens=5)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(stream.__anext__(), 0.05)
        assert stream.finish_reason == "cancelled"
        session.pending.clear()
        assert len(list(session.generate([6], max_tokens=3, stop_at_end=False))) == 3

    asyncio.run(run())

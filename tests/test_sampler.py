"""The sampler against a plain NumPy reference, and its promises: reproducible, resumable, strict about its options."""

from __future__ import annotations

import itertools
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lola_cpp._core import FormatError, Sampler, UsageError

INF = float("inf")
Floats = NDArray[np.float32]


def logits_of(seed: int, count: int = 50, scale: float = 2.0) -> Floats:
    return (np.random.default_rng(seed).standard_normal(count) * scale).astype(np.float32)


def softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    weights = np.exp(logits.astype(np.float64) - np.max(logits))
    return weights / weights.sum()


def expected(logits: Floats, history: tuple[int, ...] = (), **options: Any) -> NDArray[np.float64]:
    """Probability of each token: bias, penalties, top-k, top-p, min-p, temperature, in this order, by full sorting."""
    changed = logits.astype(np.float64)
    for token, bias in options.get("logit_bias", {}).items():
        changed[token] += bias
    window = options.get("penalty_window", 64)
    recent = history if window == -1 else history[len(history) - min(window, len(history)) :]
    for token in set(recent):
        penalty = options.get("repetition_penalty", 1.0)
        changed[token] = changed[token] / penalty if changed[token] > 0 else changed[token] * penalty
        changed[token] -= recent.count(token) * options.get("frequency_penalty", 0.0)
        changed[token] -= options.get("presence_penalty", 0.0)
    order = np.lexsort((np.arange(changed.size), -changed))
    order = order[: options.get("top_k", 0) or None]
    cumulative = np.cumsum(softmax(changed[order]))
    order = order[: 1 + int(np.sum(cumulative[:-1] < options.get("top_p", 1.0)))]
    relative = np.exp(changed[order] - changed[order[0]])
    order = order[relative >= options.get("min_p", 0.0)]
    probabilities = np.zeros(changed.size)
    temperature = options.get("temperature", 0.0)
    if temperature == 0.0:
        probabilities[order[0]] = 1.0
    else:
        probabilities[order] = softmax(changed[order] / temperature)
    return probabilities


def assert_drawn_from(probabilities: NDArray[np.float64], tokens: list[int]) -> None:
    """Chi-square: the draws are from the distribution, and nothing outside its support was drawn."""
    counts = np.bincount(tokens, minlength=probabilities.size)
    assert counts[probabilities == 0.0].sum() == 0
    support = np.flatnonzero(probabilities)
    wanted = probabilities[support] * len(tokens)
    frequent = wanted >= 5  # the usual condition of the test; the others count as one
    observed = np.append(counts[support][frequent], counts[support][~frequent].sum())
    wanted = np.append(wanted[frequent], wanted[~frequent].sum())
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    statistic = float(np.sum((observed - wanted) ** 2 / wanted))
    freedom = max(len(wanted) - 1, 1)
    # Mean and deviation of chi-square; 5 deviations never happen by chance with a handful of fixed seeds.
    assert statistic < freedom + 5 * np.sqrt(2 * freedom) + 5


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"temperature": 2.0},
        {"top_k": 5},
        {"top_p": 0.7},
        {"min_p": 0.1},
        {"top_k": 20, "top_p": 0.8},
        {"top_k": 20, "min_p": 0.05},
        {"top_p": 0.9, "min_p": 0.05},
        {"top_k": 30, "top_p": 0.95, "min_p": 0.02, "temperature": 0.8},
        {"logit_bias": {3: 4.0, 7: -INF}},
        {"repetition_penalty": 1.5},
        {"frequency_penalty": 0.7, "presence_penalty": 0.5},
        {"repetition_penalty": 1.3, "frequency_penalty": 0.2, "penalty_window": 3, "top_k": 10},
        {"presence_penalty": 1.0, "penalty_window": -1},
        {"presence_penalty": 9.0, "penalty_window": 0},
    ],
    ids=str,
)
def test_tokens_are_drawn_from_the_reference_distribution(options: dict[str, Any]) -> None:
    options = {"temperature": 1.0} | options
    logits = logits_of(1)
    history = (3, 3, 8, 11, 8, 3)
    sampler = Sampler(**options, seed=5)
    sampler.accept(history)
    tokens = []
    for seed in range(4000):
        if "penalty" in str(options):  # each draw must see the same history
            sampler = Sampler(**options, seed=seed)
            sampler.accept(history)
        tokens.append(sampler.sample(logits)[0])
    assert_drawn_from(expected(logits, history, **options), tokens)


@given(
    st.lists(st.integers(-4, 4), min_size=1, max_size=12),
    st.integers(0, 14),
    st.sampled_from([0.0, 0.3, 0.75, 0.999, 1.0]),
    st.sampled_from([0.0, 0.01, 0.3, 1.0]),
    st.sampled_from([1e-3, 0.7, 50.0]),
)
@settings(deadline=None)
def test_nothing_outside_the_filters_is_ever_chosen(
    values: list[int], top_k: int, top_p: float, min_p: float, temperature: float
) -> None:
    # Whole numbers make many ties, and steps too large for rounding to move a border.
    logits = np.array(values, np.float32)
    options = {"top_k": top_k, "top_p": top_p, "min_p": min_p, "temperature": temperature}
    allowed = expected(logits, **options)
    sampler = Sampler(**options, seed=1)
    assert all(allowed[sampler.sample(logits)[0]] > 0 for _ in range(30))


@pytest.mark.parametrize(
    "options", [{"top_k": 17}, {"top_p": 0.6}, {"min_p": 0.2}, {"top_k": 300, "top_p": 0.5}], ids=str
)
def test_all_that_the_filters_keep_can_be_chosen(options: dict[str, Any]) -> None:
    logits = logits_of(4, count=1000, scale=1.0)
    allowed = set(np.flatnonzero(expected(logits, temperature=1.0, **options)))
    sampler = Sampler(temperature=1e3, seed=3, **options)  # so hot that what is kept is about equally likely
    # 12 draws for each: a token is missed with a chance of exp(-12).
    assert {sampler.sample(logits)[0] for _ in range(12 * len(allowed) + 100)} == allowed


def test_greedy_takes_the_best_and_of_equals_the_lowest_id() -> None:
    sampler = Sampler()
    assert sampler.sample(np.array([1, 3, 2, 3], np.float32))[0] == 1
    for count in (1, 15, 16, 17, 1000):
        logits = logits_of(count, count)
        assert sampler.sample(logits)[0] == int(np.argmax(logits))


def test_top_k_of_equals_keeps_the_lowest_ids() -> None:
    sampler = Sampler(temperature=1.0, top_k=3, seed=0)
    logits = np.zeros(5000, np.float32)
    assert {sampler.sample(logits)[0] for _ in range(200)} == {0, 1, 2}


def test_log_probabilities_are_those_of_the_model() -> None:
    logits = logits_of(2, count=5000)
    reference = np.log(softmax(logits))
    sampler = Sampler(temperature=0.7, top_k=8, repetition_penalty=1.4, logit_bias={5: 3.0}, seed=4)
    # A float32 exponential is exact to 2e-7, and so is the float32 result near -10 to 1e-6.
    tolerance = 4e-6
    for _ in range(20):
        token, logprob, top = sampler.sample(logits, top_logprobs=6)
        assert logprob == pytest.approx(reference[token], abs=tolerance)
        assert [pair[0] for pair in top] == np.argsort(-reference, kind="stable")[:6].tolist()
        assert [pair[1] for pair in top] == pytest.approx(np.sort(reference)[::-1][:6].tolist(), abs=tolerance)
    assert sampler.sample(logits)[2] == []
    assert len(Sampler().sample(logits[:6], top_logprobs=100)[2]) == 6


def test_penalties_see_what_was_sampled_and_forget_what_left_the_window() -> None:
    logits = np.array([3.0, 2.0, 1.0], np.float32)
    sampler = Sampler(presence_penalty=10.0, penalty_window=2)
    assert [sampler.sample(logits)[0] for _ in range(6)] == [0, 1, 2, 0, 1, 2]
    everything = Sampler(frequency_penalty=1.5, penalty_window=-1)
    everything.accept([0, 0, 0])
    assert [everything.sample(logits)[0] for _ in range(3)] == [1, 2, 1]


def test_a_forbidden_token_is_never_chosen() -> None:
    sampler = Sampler(logit_bias={0: -INF}, repetition_penalty=1.2, frequency_penalty=-5.0)
    sampler.accept([0])
    assert sampler.sample(np.array([9.0, 1.0], np.float32))[0] == 1


def test_the_same_seed_gives_the_same_tokens_and_another_gives_others() -> None:
    logits = logits_of(3)

    def tokens(seed: int) -> list[int]:
        sampler = Sampler(temperature=1.0, seed=seed)
        return [sampler.sample(logits)[0] for _ in range(50)]

    assert tokens(1) == tokens(1)
    assert len({tuple(tokens(seed)) for seed in (0, 1, 2, 2**64 - 1)}) == 4


def test_tokens_of_a_seed_never_change() -> None:
    # Saved sessions and published runs rely on it: the generator and the exponential are defined bit for bit.
    sampler = Sampler(temperature=1.0, seed=42)
    uniform = [sampler.sample(np.zeros(1000, np.float32))[0] for _ in range(8)]
    assert uniform == [343, 955, 486, 67, 676, 67, 195, 734]


def test_no_seed_draws_a_fresh_one_that_can_be_read_and_used_again() -> None:
    first, second = Sampler(temperature=1.0), Sampler(temperature=1.0)
    assert first.seed != second.seed
    again = Sampler(temperature=1.0, seed=first.seed)
    logits = logits_of(6)
    assert [first.sample(logits)[0] for _ in range(20)] == [again.sample(logits)[0] for _ in range(20)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.9, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "seed": 2**63 + 1},
        {"temperature": 1.0, "repetition_penalty": 1.3, "penalty_window": 5, "seed": 7},
        {
            "temperature": 1.0,
            "frequency_penalty": 0.4,
            "penalty_window": -1,
            "logit_bias": {4: 1.5, 9: -INF},
            "seed": 8,
        },
    ],
    ids=str,
)
def test_a_saved_sampler_goes_on_exactly(options: dict[str, Any]) -> None:
    original = Sampler(**options)
    original.accept([1, 2, 2])
    for seed in range(10):
        original.sample(logits_of(seed))
    copy = Sampler.load(original.save())
    assert copy.save() == original.save()
    assert copy.seed == original.seed
    for seed in range(40):
        assert copy.sample(logits_of(seed), top_logprobs=2) == original.sample(logits_of(seed), top_logprobs=2)


def saved() -> bytes:
    sampler = Sampler(temperature=1.0, presence_penalty=0.5, penalty_window=4, logit_bias={1: 2.0}, seed=3)
    sampler.accept([5, 6, 5])
    return bytes(sampler.save())


def with_word(data: bytes, index: int, word: bytes) -> bytes:
    return data[: 8 * index] + word + data[8 * index + 8 :]


# Words of saved(): 0 magic, 1 temperature, 3 top_p, 8 penalty_window, 10 biases, 11 and 12 the bias, 13 draws,
# 14 recent tokens, 15 to 17 they themselves, 18 counts.
@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "early end"),
        (b"not a sampler at all", "other bytes"),
        (saved()[:-1], "early end"),
        (saved()[:-8], "early end"),
        (saved() + b"\0", "1 bytes after its end"),
        (with_word(saved(), 1, struct.pack("<d", -1.0)), "temperature: found -1"),
        (with_word(saved(), 3, struct.pack("<d", float("nan"))), "top_p: found nan"),
        (with_word(saved(), 8, struct.pack("<q", 1)), "3 recent tokens"),
        (with_word(saved(), 8, struct.pack("<q", -2)), "penalty_window: found -2"),
        (with_word(saved(), 10, struct.pack("<Q", 2**64 - 1)), "18446744073709551615 entries"),
        (with_word(saved(), 11, struct.pack("<q", -5)), "wanted a 31-bit id"),
        (with_word(saved(), 14, struct.pack("<Q", 2**60)), "entries"),
        (with_word(saved(), 15, struct.pack("<Q", 2**31)), "wanted a 31-bit id"),
        (with_word(saved(), 18, struct.pack("<Q", 1)) + struct.pack("<QQ", 1, 1), "counts of all tokens"),
    ],
)
def test_bytes_that_no_sampler_saved_are_format_errors(data: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        Sampler.load(data)


def test_damaged_counts_of_an_unbounded_window_are_format_errors() -> None:
    sampler = Sampler(presence_penalty=0.5, penalty_window=-1, seed=3)
    sampler.accept([5, 6])
    data = bytes(sampler.save())  # ends in: count of pairs, 5, 1, 6, 1
    for word, value in ((-1, 0), (-1, -3), (-2, 5), (-2, 4)):
        index = len(data) // 8 + word
        with pytest.raises(FormatError, match="ascending tokens"):
            Sampler.load(with_word(data, index, struct.pack("<q", value)))


@given(st.data())
@settings(deadline=None, max_examples=200)
def test_flipped_bytes_give_a_sampler_or_a_format_error(data: st.DataObject) -> None:
    raw = bytearray(saved())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        sampler = Sampler.load(bytes(raw))
        sampler.sample(logits_of(0))
    except (FormatError, UsageError):  # UsageError: a token that this vocabulary lacks
        return


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature: found -0.1, wanted 0"),
        ({"temperature": float("nan")}, "temperature: found nan"),
        ({"temperature": INF}, "temperature: found inf"),
        ({"top_k": -1}, "top_k: found -1, wanted 0"),
        ({"top_p": 1.1}, "top_p: found 1.1, wanted 0 to 1"),
        ({"min_p": -0.5}, "min_p: found -0.5, wanted 0 to 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty: found 0, wanted more than 0"),
        ({"frequency_penalty": INF}, "frequency_penalty: found inf"),
        ({"presence_penalty": float("nan")}, "presence_penalty: found nan"),
        ({"penalty_window": -2}, "penalty_window: found -2, wanted -1"),
        ({"logit_bias": {-1: 1.0}}, "logit_bias: found -1"),
        ({"logit_bias": {2**31: 1.0}}, "logit_bias: found 2147483648"),
        ({"logit_bias": {1: INF}}, "logit_bias: found inf"),
        ({"logit_bias": {1: float("nan")}}, "logit_bias: found nan"),
        ({"seed": -1}, "seed: found -1, wanted None or 0"),
        ({"seed": 2**64}, "seed: found 18446744073709551616"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Sampler(**options)


def test_unknown_and_positional_options_are_type_errors() -> None:
    with pytest.raises(TypeError):
        Sampler(temprature=1.0)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Sampler(1.0)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("options", "count"), [({}, 40), ({"temperature": 1.0}, 40), ({"temperature": 1.0, "top_k": 4}, 3)]
)
def test_logits_that_leave_no_choice_are_usage_errors(options: dict[str, Any], count: int) -> None:
    good = logits_of(0, count)
    sampler = Sampler(**options)
    for value, place in itertools.product((float("nan"), INF), (0, count - 1)):
        bad = good.copy()
        bad[place] = value
        with pytest.raises(UsageError, match=rf"logits\[{place}\]: found (nan|inf)"):
            sampler.sample(bad)
    with pytest.raises(UsageError, match="no token that may be chosen"):
        sampler.sample(np.full(count, -INF, np.float32))
    with pytest.raises(UsageError, match="no token that may be chosen"):
        sampler.sample(np.zeros(0, np.float32))
    with pytest.raises(UsageError, match="no token that may be chosen"):
        Sampler(logit_bias=dict.fromkeys(range(count), -INF), **options).sample(good)
    with pytest.raises(UsageError, match="2 dimensions"):
        sampler.sample(good[None])


def test_masked_and_extreme_logits_are_handled() -> None:
    largest = float(np.finfo(np.float32).max)
    logits = np.array([-INF, -largest, largest, largest], np.float32)
    for options in (
        {},
        {"temperature": 1.0},
        {"temperature": 1e-300, "top_p": 0.9},
        {"temperature": 1e300, "top_k": 2},
    ):
        sampler = Sampler(**options, seed=0)
        assert {sampler.sample(logits)[0] for _ in range(20)} <= {2, 3}
    huge = Sampler(logit_bias={1: 1e308}, frequency_penalty=1e308)
    huge.accept([2, 2, 2])
    assert huge.sample(np.zeros(4, np.float32))[0] == 1


def test_tokens_outside_the_vocabulary_are_usage_errors() -> None:
    logits = np.zeros(4, np.float32)
    with pytest.raises(UsageError, match="logit_bias: found 4"):
        Sampler(logit_bias={4: 1.0}).sample(logits)
    sampler = Sampler(presence_penalty=1.0)
    sampler.accept([4])
    with pytest.raises(UsageError, match="accepted token: found 4"):
        sampler.sample(logits)
    with pytest.raises(UsageError, match="ids: found -1"):
        sampler.accept([-1])
    with pytest.raises(UsageError, match="top_logprobs: found -1"):
        sampler.sample(logits, top_logprobs=-1)

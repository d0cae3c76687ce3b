"""A sampler that is given only the best logits, as a GPU finds them, chooses what it would from all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lola_cpp._core import Sampler, UsageError, testing

VOCABULARY = 4000
CHAINS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "greedy with penalties": {"repetition_penalty": 1.3, "frequency_penalty": 0.5, "presence_penalty": 0.2},
    "top-k": {"temperature": 1.0, "top_k": 40},
    "llama.cpp's defaults": {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "min_p": 0.05, "repetition_penalty": 1.1},
    "top-p": {"temperature": 1.0, "top_p": 0.9},
    "top-p and min-p": {"temperature": 1.3, "top_p": 0.95, "min_p": 0.02},
    "min-p": {"temperature": 2.0, "min_p": 0.05},
    "min-p with penalties": {"temperature": 0.7, "min_p": 0.05, "presence_penalty": 0.5},
    "top-k with a bias down": {"temperature": 1.0, "top_k": 10, "logit_bias": {5: -3.0, 6: -float("inf")}},
    "a window of everything": {"temperature": 1.0, "top_k": 20, "frequency_penalty": 0.3, "penalty_window": -1},
}


def logits_of(rng: np.random.Generator) -> NDArray[np.float32]:
    """As of a language model: few stand out; many ties."""
    logits = rng.standard_normal(VOCABULARY) + 9.0 * (rng.random(VOCABULARY) < 0.01) * rng.random(VOCABULARY)
    return np.round(logits * 16).astype(np.float32) / 16


@pytest.mark.parametrize("name", CHAINS)
def test_the_best_logits_give_the_token_that_all_give(name: str) -> None:
    told, rng = 0, np.random.default_rng(1)
    full, best = (Sampler(seed=11, **CHAINS[name]) for _ in range(2))
    for sampler in (full, best):
        sampler.accept([int(x) for x in np.random.default_rng(2).integers(0, VOCABULARY, 30)])
    for step in range(300):
        logits = logits_of(rng)
        before = best.save()
        found = testing.sample_from_best(best, logits, testing.candidates_wanted(best), min(step % 4, 1))
        wanted = full.sample(logits, min(step % 4, 1))
        if found is None:
            assert best.save() == before  # nothing was drawn or remembered
            best.sample(logits)
            continue
        told += 1
        assert found == wanted
        assert best.save() == full.save()
    assert told > 200  # a nucleus may be larger than what is asked for


@pytest.mark.parametrize("count", [1, 2, 7, 64, VOCABULARY])
def test_too_few_of_the_best_are_never_enough_for_another_token(count: int) -> None:
    rng = np.random.default_rng(3)
    for options in CHAINS.values():
        full, best = (Sampler(seed=4, **options) for _ in range(2))
        for _ in range(60):
            logits = logits_of(rng)
            found = testing.sample_from_best(best, logits, count)
            wanted = full.sample(logits)
            assert found is None or found == wanted
            if found is None:
                best.sample(logits)


@pytest.mark.parametrize(
    "options",
    [
        {"logit_bias": {3999: 2.0}},
        {"repetition_penalty": 0.5},
        {"presence_penalty": -1.0},
        {"temperature": 1.0},
        {"temperature": 1.0, "top_p": 0.9, "presence_penalty": 1.0},
        {"temperature": 1.0, "top_k": 2000},
    ],
)
def test_what_the_best_cannot_tell_is_left_to_all_logits(options: dict[str, Any]) -> None:
    sampler = Sampler(seed=1, **options)
    sampler.accept([3998])
    logits = np.linspace(5.0, -5.0, VOCABULARY, dtype=np.float32)
    assert testing.sample_from_best(sampler, logits, 100) is None


def test_a_bias_outside_the_vocabulary_is_still_refused() -> None:
    sampler = Sampler(logit_bias={VOCABULARY: -1.0})
    logits = logits_of(np.random.default_rng(0))
    assert testing.sample_from_best(sampler, logits, 10) is None
    with pytest.raises(UsageError, match="logit_bias"):
        sampler.sample(logits)

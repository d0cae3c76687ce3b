"""The tools behind docs/recall.md: their models are the engine's, their budgets spend what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the studies need torch")
pytest.importorskip("transformers", reason="the studies train models of transformers")
pytest.importorskip("safetensors", reason="models are written with safetensors")

import study_kappa  # noqa: E402
from budgets.model import Student  # noqa: E402
from budgets.policies import MOST, adaptive, fixed, shared  # noqa: E402
from lola_cpp import Model  # noqa: E402
from reference import tiny_gguf  # noqa: E402
from reference.tiny_gguf import TinyAdapter, tiny  # noqa: E402

TOKENS = [int(x) for x in np.random.default_rng(5).integers(2, 200, 150)]


@pytest.fixture
def scores() -> torch.Tensor:
    """[layers, batch, heads, pairs]; a fifth of the places are empty."""
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(3, 2, 4, 40, generator=generator) + 2 * torch.randn(3, 1, 4, 1, generator=generator)
    return values.masked_fill(torch.rand(values.shape, generator=generator) < 0.2, float("-inf"))


@pytest.mark.parametrize("policy", ["self_recall", "weighted_recall"])
@pytest.mark.parametrize("lora_rank", [0, 2])
def test_the_student_with_fixed_budgets_is_the_engine(tmp_path: Path, policy: str, lora_rank: int) -> None:
    config, adapter = tiny(), TinyAdapter(policy=policy, kappa=0.7, lora_rank=lora_rank, window_size=32)
    weights = tiny_gguf.random_weights(config, std=0.12)
    tiny_gguf.write_model(tmp_path / "base.gguf", config, weights)
    learned = tiny_gguf.random_adapter(config, adapter)
    tiny_gguf.write_adapter(tmp_path / "adapter.gguf", config, adapter, learned)
    model = Model(tmp_path / "base.gguf", tmp_path / "adapter.gguf", threads=1)
    wanted = model.session(pair_type="f32").score(TOKENS)[1:]
    student = Student(tmp_path / "base.gguf", tmp_path / "adapter.gguf", "cpu")
    hidden, counts = student.hidden(torch.tensor([TOKENS]), fixed(adapter.sparse_size), policy)
    found = student.logits(hidden)[0].log_softmax(-1)[torch.arange(len(TOKENS) - 1), torch.tensor(TOKENS[1:])]
    np.testing.assert_allclose(found.numpy(), wanted, atol=2e-3)
    assert (counts.mean, counts.most) == (8.0, 8)


def test_a_fixed_budget_keeps_the_best_of_every_head(scores: torch.Tensor) -> None:
    kept = fixed(5)(scores)
    assert (kept.sum(-1) == 5).all()
    assert (scores.masked_fill(~kept, float("inf")).amin(-1) >= scores.masked_fill(kept, -9).amax(-1)).all()


def test_an_adaptive_budget_keeps_the_fewest_pairs_that_hold_its_share(scores: torch.Tensor) -> None:
    kept, mass = adaptive(0.5, 100)(scores), scores.softmax(-1)
    held, least = (mass * kept).sum(-1), mass.masked_fill(~kept, 9).amin(-1)
    assert (held >= 0.5).all() and (held - least < 0.5).all()
    assert adaptive(0.99, 2)(scores).sum(-1).max() == MOST * 2


@pytest.mark.parametrize("relative", [False, True])
def test_a_shared_budget_is_spent_whole_and_by_no_head_alone(scores: torch.Tensor, relative: bool) -> None:
    in_layer, in_model = (shared(3, layers=layers, relative=relative)(scores) for layers in (False, True))
    assert (in_layer.sum((2, 3)) == 3 * 4).all()
    assert (in_model.sum((0, 2, 3)) == 3 * 4 * 3).all()
    assert max(in_layer.sum(-1).max(), in_model.sum(-1).max()) <= MOST * 3
    assert not (in_model & (scores == float("-inf"))).any()


def test_more_room_than_pairs_keeps_them_all(scores: torch.Tensor) -> None:
    there = scores > float("-inf")
    for budget in (fixed(40), adaptive(1.0, 40), shared(40, layers=True, relative=True)):
        assert (budget(scores) == there).all()


def test_questions_hide_what_they_ask_for() -> None:
    language = study_kappa.Language(1)
    for count, varied in study_kappa.TASKS.values():
        tokens, thing = language.question(count, varied)
        name = tokens[-1] - study_kappa.NAME
        fact = study_kappa.FACT + study_kappa.THINGS * name + thing - study_kappa.THING
        assert len(tokens) == study_kappa.LENGTH and tokens.count(fact) == 1
        assert sum(study_kappa.FACT <= token < study_kappa.WORD for token in tokens) == count
    tokens, answers = language.document(300)
    for at in np.flatnonzero(answers):
        name, thing = tokens[at - 1] - study_kappa.NAME, tokens[at] - study_kappa.THING
        assert study_kappa.FACT + study_kappa.THINGS * name + thing in tokens[:at]


@pytest.mark.parametrize("kind", [study_kappa.KINDS[4], study_kappa.KINDS[-1]])
def test_the_study_of_kappa_goes_through(tmp_path: Path, kind: study_kappa.Kind) -> None:
    study_kappa.write_teacher(kind, tmp_path / "teacher", 2)
    study_kappa.write_adapters(kind, tmp_path, 1)
    rows = study_kappa.table_rows(kind, *study_kappa.find_kappa(tmp_path, 0), study_kappa.measure(tmp_path, 1, 8))
    assert len(rows) == 4 and sum("taken" in row for row in rows) == 1


def test_norms_that_foretell_attention_cost_little() -> None:
    direction, generator = torch.eye(32)[0], torch.Generator().manual_seed(0)
    q = 6 * direction + torch.randn(1, 4, 100, 32, generator=generator)
    k = 8 * torch.rand(1, 2, 100, 1, generator=generator) * direction  # what draws attention is large
    assert study_kappa.norm_loss(q, k, 1) < study_kappa.norm_loss(q, k, -1)

"""kappa of weighted_recall follows what text shows: which keys draw attention, whatever their norms are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lola_cpp import FormatError, Model, UsageError, cli
from lola_cpp._core import GgufFile
from lola_cpp.convert.kappa import write_with_kappa
from lola_cpp.eval.calibrate import _Lookback, _slopes, calibrate, losses_by_rule
from lola_cpp.eval.configurations import Configuration
from lola_cpp.eval.haystacks import read_text
from lola_cpp.eval.likelihood import segments_of
from lola_cpp.model import default_files
from lola_cpp.options import Policy
from reference.mirrored import write_mirrored
from reference.rescaled import write_rescaled

HEADS, KV_HEADS, DIM, LENGTH, WINDOW = 4, 2, 16, 200, 10


def queries_and_keys(attract: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Queries share a direction; a key's part along it says how much attention it draws. attract 1: keys that draw
    much are large; -1: they are small, because the others point away from the queries."""
    rng = np.random.default_rng(seed)
    direction = np.eye(DIM)[0]
    q = 0.3 * rng.normal(size=(LENGTH, HEADS, DIM)) + 6 * direction
    along = 4 * rng.random((LENGTH, KV_HEADS, 1)) - (0 if attract > 0 else 4)
    return np.float32(q), np.float32(0.3 * rng.normal(size=(LENGTH, KV_HEADS, DIM)) + along * direction)


def lookback(q: np.ndarray, k: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    found = _Lookback(LENGTH, WINDOW)
    for begin in range(0, LENGTH, rows):
        found.add(q[begin : begin + rows], k[begin : begin + rows])
    return found.samples()


def test_the_weights_looked_back_at_are_those_of_softmax_attention() -> None:
    q, k = queries_and_keys(1.0)
    norms, peaks = lookback(q, k, rows=37)
    assert norms.shape == peaks.shape == (HEADS, LENGTH - LENGTH // 4 - WINDOW)
    for head in range(HEADS):
        keys = np.float64(k[:, head * KV_HEADS // HEADS])
        for pair in (0, 3, 60):
            weights = []
            for t in range(pair + WINDOW + 1, LENGTH):
                logits = keys[: t + 1] @ np.float64(q[t, head]) / np.sqrt(DIM)
                weights.append(logits[pair] - np.log(np.exp(logits).sum()))
            assert peaks[head, pair] == pytest.approx(max(weights), abs=1e-4)
            assert norms[head, pair] == pytest.approx((keys[pair] ** 2).sum() / (2 * DIM), rel=1e-5)


@pytest.mark.parametrize("attract", [1.0, -1.0])
def test_kappa_has_the_sign_of_what_attracts(attract: float) -> None:
    for head in _slopes(0, [lookback(*queries_and_keys(attract, seed), rows=64) for seed in range(3)]):
        assert head.kappa * attract > 0.5 and head.correlation * attract > 0.5


def test_kappa_undoes_the_scale_of_the_keys() -> None:
    q, k = queries_and_keys(1.0)
    plain, larger = (_slopes(0, [lookback(q / s, k * s, rows=64)]) for s in (np.float32(1), np.float32(4)))
    np.testing.assert_allclose([h.kappa for h in larger], [h.kappa / 16 for h in plain], rtol=1e-5)


def test_equal_norms_say_nothing() -> None:
    q, k = queries_and_keys(1.0)
    assert all(head.kappa == 0.0 for head in _slopes(0, [lookback(q, np.ones_like(k), rows=64)]))


def test_observing_changes_nothing_and_shows_what_the_window_holds(tmp_path: Path) -> None:
    model = Model.default(threads=1)
    tokens = model.tokenize("import os\n\n\ndef add(first, second):\n    return first + second\n" * 3)
    session, plain = (model.session(window_size=64, pair_type="f32") for _ in range(2))
    seen: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
    session._core.observe_attention(tokens, lambda layer, q, k, v: seen.setdefault(layer, []).append((k, v)))
    plain.append(tokens)
    np.testing.assert_array_equal(session.logits, plain.logits)
    session.save(tmp_path / "s.state")
    file = GgufFile(str(tmp_path / "s.state"))
    for layer in range(model.info.layers):
        for name, index in (("window_k", 0), ("window_v", 1)):
            stored = np.frombuffer(bytes(file.tensor_data(f"blk.{layer}.{name}")), np.float32)
            stored = stored.reshape(model.info.kv_heads, -1, model.info.head_dim)[:, : len(tokens)]
            np.testing.assert_array_equal(stored.transpose(1, 0, 2), seen[layer][0][index])


def test_what_an_observer_raises_comes_out() -> None:
    def observe(*_: object) -> None:
        raise KeyError("enough")

    session = Model.default(threads=1).session()
    with pytest.raises(KeyError, match="enough"):
        session._core.observe_attention([1, 2, 3], observe)


def test_a_model_of_the_same_attention_with_larger_keys_gets_smaller_kappas(tmp_path: Path) -> None:
    base, adapter = tmp_path / "base.gguf", tmp_path / "adapter.gguf"
    write_rescaled(2.0, base, adapter)
    segments = segments_of(Configuration("model", threads=1), read_text("stdlib"), 600, 1)
    plain, larger = (calibrate(m, segments) for m in (Model.default(threads=1), Model(base, adapter, threads=1)))
    ratio = np.array([b.kappa / a.kappa for a, b in zip(plain, larger, strict=True) if abs(a.correlation) > 0.2])
    assert len(ratio) > 20
    assert np.median(ratio) == pytest.approx(0.25, rel=0.02)  # quantized activations round differently


def test_a_model_of_the_same_attention_with_mirrored_norms_gets_negative_kappas(tmp_path: Path) -> None:
    base, adapter = tmp_path / "base.gguf", tmp_path / "adapter.gguf"
    write_mirrored(base, adapter)
    segments = segments_of(Configuration("model", threads=1), read_text("stdlib"), 600, 1)
    plain, mirrored = (calibrate(m, segments) for m in (Model.default(threads=1), Model(base, adapter, threads=1)))
    pairs = [(a.kappa, b.kappa) for a, b in zip(plain, mirrored, strict=True) if abs(a.correlation) > 0.2]
    assert len(pairs) > 20
    np.testing.assert_allclose(np.median([b / a for a, b in pairs]), -1.0, rtol=0.1)


def test_the_command_writes_an_adapter_that_uses_its_kappas(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "calibrated.gguf"
    monkeypatch.setattr("lola_cpp.cli.calibrate.losses_by_rule", lambda *_, **__: {"self_recall": 1.0, "slopes": 0.9})
    assert cli.main(["calibrate", "-t", "1", "--length", "512", "--segments", "1", "-o", str(out)]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 1 + 6 + 2 and printed[-1].endswith(": slopes")
    model = Model(default_files()[0], out, threads=1)
    assert model.session_defaults["policy"] == "weighted_recall"
    kappa = np.frombuffer(bytes(GgufFile(str(out)).tensor_data("blk.5.attn_lola_kappa.weight")), np.float32)
    assert kappa.shape == (8,) and np.isfinite(kappa).all() and np.ptp(kappa) > 0
    assert cli.main(["calibrate", "-t", "1", "--length", "100", "-o", str(out)]) == 1
    assert "length: found 100, wanted at least" in capsys.readouterr().err


@pytest.mark.parametrize(("best", "policy"), [("self_recall", "self_recall"), ("as it was", "weighted_recall")])
def test_slopes_that_do_not_help_are_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, best: str, policy: Policy
) -> None:
    losses = {"self_recall": 2.0, "as it was": 2.0, "slopes": 2.0} | {best: 1.0}
    monkeypatch.setattr("lola_cpp.cli.calibrate.losses_by_rule", lambda *_, **__: losses)
    out = tmp_path / "calibrated.gguf"
    assert cli.main(["calibrate", "-t", "1", "--length", "512", "--segments", "1", "-o", str(out)]) == 0
    tokens = segments_of(Configuration("model", threads=1), read_text("stdlib"), 300, 1)[0]
    calibrated = Model(default_files()[0], out, threads=1).session(sparse_size=16)
    wanted = Model.default(threads=1).session(sparse_size=16, policy=policy)
    np.testing.assert_array_equal(calibrated.score(tokens), wanted.score(tokens))


def test_rules_are_compared_where_a_token_needs_the_sparse_cache() -> None:
    base, adapter = map(Path, default_files())
    (segment,) = segments_of(Configuration("model", threads=1), read_text("stdlib"), 600, 1)
    found = losses_by_rule(base, adapter, adapter, [segment], threads=1)
    model = Model.default(threads=1)
    exact, without, rule = (
        -model.session(**options).score(segment)[1:]
        for options in ({"sparse_size": 0, "window_size": 640}, {"sparse_size": 0}, {"policy": "self_recall"})
    )
    needed = without - exact > 0.5
    assert 3 < needed.sum() < 300
    assert found["self_recall"] == pytest.approx(rule[needed].mean(), rel=1e-5)
    assert found["slopes"] == found["as it was"] != found["self_recall"]


def test_only_adapters_get_kappas_and_no_file_is_overwritten_by_its_own_copy(tmp_path: Path) -> None:
    base, adapter = map(Path, default_files())
    with pytest.raises(FormatError, match="no LoLA adapter"):
        write_with_kappa(base, tmp_path / "x.gguf", {})
    with pytest.raises(UsageError, match="the source itself"):
        write_with_kappa(adapter, adapter, {})
    with pytest.raises(UsageError, match="not finite"):
        write_with_kappa(adapter, tmp_path / "x.gguf", {0: np.array([np.nan], np.float32)})

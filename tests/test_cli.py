"""The command line: each subcommand does what it says, and wrong input ends in one line that says why."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lola_cpp import Model, UsageError, _core, cli
from lola_cpp.inspection import CACHE, HIDDEN, WINDOW, inspect
from reference.default_model import DEFAULT

TEXT = "import os\n\n\ndef add(first, second):\n    return first + second\n" * 8


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.default(threads=1)


def test_inspect_says_where_each_token_sits(model: Model, tmp_path: Path) -> None:
    tokens = model.tokenize(TEXT)
    options = {"window_size": 32, "chunk_size": 16, "sparse_size": 9}
    found = inspect(model, tokens, **options)
    session = model.session(**options)
    session.append(tokens)
    left = len(tokens) - len(tokens) % 16 - 32
    assert found.layers == list(range(model.info.layers))
    assert found.place.shape == found.error.shape == (model.info.layers, model.info.heads, len(tokens))
    assert (found.place[:, :, left:] == WINDOW).all()
    assert ((found.place == CACHE).sum(axis=2) == 9).all()
    assert ((found.place == HIDDEN).sum(axis=2) == left - 9).all()
    session.save(tmp_path / "s.state")
    from lola_cpp._core import GgufFile

    file = GgufFile(str(tmp_path / "s.state"))
    for layer in found.layers:
        cached = np.array(file.get(f"blk.{layer}.cache_position")).reshape(model.info.heads, 9)
        shown = [np.flatnonzero(head == CACHE) for head in found.place[layer]]
        np.testing.assert_array_equal(np.sort(cached, axis=1), shown)


def test_the_errors_are_those_that_the_policy_decided_by(model: Model, tmp_path: Path) -> None:
    tokens = model.tokenize(TEXT)[:96]  # the last boundary is behind the last token
    options = {"window_size": 16, "chunk_size": 16, "sparse_size": 20, "policy": "self_recall"}
    session = model.session(**options)
    session.append(tokens[:-1])
    before = session._core.recall_errors(2)
    session.append(tokens[-1:])
    session.save(tmp_path / "s.state")
    from lola_cpp._core import GgufFile

    file = GgufFile(str(tmp_path / "s.state"))
    kept = np.array(file.get("blk.2.cache_position")).reshape(model.info.heads, 20)
    scores = np.frombuffer(bytes(file.tensor_data("blk.2.cache_score")), dtype=np.float32).reshape(kept.shape)
    for head, (positions, errors, _) in enumerate(before):
        by_position = dict(zip(positions.tolist(), errors.tolist(), strict=True))
        # Another instruction set, in float32.
        np.testing.assert_allclose([by_position[p] for p in kept[head]], scores[head], rtol=1e-3)
        leaving = [e for p, e in by_position.items() if p < 80 and p not in set(kept[head])]
        assert max(leaving) <= scores[head].min() * 1.001


def test_a_strict_window_and_a_cache_per_group_are_inspected_too(model: Model) -> None:
    tokens = model.tokenize(TEXT)[:60]
    found = inspect(model, tokens, window_size=10, chunk_size=1, sparse_size=4, sparse_scope="group")
    assert ((found.place == WINDOW).sum(axis=2) == 10).all()
    assert ((found.place == CACHE).sum(axis=2) == 4).all()
    assert np.isfinite(found.error).all()


def test_a_model_without_an_adapter_has_nothing_to_inspect(model: Model) -> None:
    with pytest.raises(UsageError, match="no LoLA adapter"):
        inspect(Model(model.path, threads=1), [5, 6])


def test_the_page_needs_nothing_else_and_runs_no_text_as_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    assert cli.main(["inspect", "-p", "</script><script>alert(1)</script> import os\x1b[2J", "--html", str(page)]) == 0
    html = page.read_text(encoding="utf-8")
    assert html.count("<script>") == 1 and "http" not in html
    data = json.loads(re.search(r"const data = (.*);\n", html)[1])
    assert "".join(data["pieces"]).endswith("import os\x1b[2J")
    assert "\x1b[2J" not in capsys.readouterr().out


def test_chat_answers_each_line_and_takes_turns_back(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["chat", "--template", "chatml", "-n", "6", "--temperature", "0"]
    monkeypatch.setattr("sys.stdin", io.StringIO("import os\n/undo\nimport os\n/exit\nnever\n"))
    assert cli.main(arguments) == 0
    first, second = capsys.readouterr().out.strip("\n").split("\n", 1)[0], None
    monkeypatch.setattr("sys.stdin", io.StringIO("import os\n"))
    assert cli.main(arguments) == 0
    second = capsys.readouterr().out.strip("\n").split("\n", 1)[0]
    assert first == second


def test_doctor_tells_what_is_there(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "[ok] the embedded model read a prompt" in out
    assert re.search(r"^\[(ok|missing)\] device cuda: ", out, re.MULTILINE)
    monkeypatch.setenv("LOLA_FORCE_ISA", "sse9")
    assert cli.main(["doctor"]) == 1
    assert "[wrong] LOLA_FORCE_ISA=sse9: found" in capsys.readouterr().out


def test_doctor_lists_the_gpus(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    gpus = [("NVIDIA H200", (9, 0), 100 << 30, 140 << 30), ("Tesla T4", (7, 5), 1 << 30, 15 << 30)]
    monkeypatch.setattr(_core.testing, "gpus", lambda: gpus)
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "[ok] device cuda: NVIDIA H200, compute capability 9.0, 100.0 of 140.0 GiB free" in out
    assert "[too old] device cuda: Tesla T4, compute capability 7.5" in out


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["run", "-p", "x", "--gpu-layers", "1"], "gpu_layers: found 1 with device 'cpu', wanted a GPU"),
        (["run", "-m", "missing.gguf", "-p", "x"], "no such file: missing.gguf"),
        (["chat"], "has no tokenizer.chat_template"),
        (["inspect", "-f", "missing.txt"], "missing.txt"),
        (["info", "--policy", "best"], "policy: found 'best'"),
        (["info", "--window-size", "9" * 20], "window_size: found 99999999999999999999, wanted a 64-bit integer"),
        (["info", "-a", "adapter.gguf"], "adapter: found without a model"),
        (["info", "-t", "9" * 12], "threads: found 999999999999, wanted 1 to 1024"),
        (["run", "-p", "x", "--seed", "-1"], "seed: found -1"),
        (["run", "-p", "x", "--temperature", "nan"], "temperature: found nan"),
        (["run", "-f", os.devnull, "-n", "-1"], "max_tokens: found -1"),
        (["run", "-f", DEFAULT.path], "found no UTF-8, wanted text"),
    ],
)
def test_wrong_input_ends_in_one_line(arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("lola-cpp: ") and problem in errors and errors.count("\n") == 1


@pytest.mark.parametrize("command", ["run", "chat", "info", "inspect", "bench", "eval", "calibrate", "demo", "doctor"])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    assert end.value.code == 0
    assert "usage: lola-cpp" in capsys.readouterr().out


def test_the_package_is_the_command() -> None:
    run = subprocess.run([sys.executable, "-m", "lola_cpp", "--version"], capture_output=True, text=True)
    assert run.stdout.startswith("lola-cpp ") and run.returncode == 0


def test_run_saves_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = str(tmp_path / "s.state")
    assert cli.main(["run", "-p", "import os\n", "-n", "5", "--save", state]) == 0
    assert cli.main(["run", "-p", "", "-n", "5", "--load", state]) == 0
    parts = capsys.readouterr().out.removesuffix("\n")
    assert cli.main(["run", "-p", "import os\n", "-n", "10"]) == 0
    assert parts.replace("\n", "") == capsys.readouterr().out.replace("\n", "")

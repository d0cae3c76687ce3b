"""Evaluation: tasks hide what they ask for, counts are right, and reports can be read."""

from __future__ import annotations

import json
import math
import random
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from lola_cpp import Model, UsageError, cli
from lola_cpp.eval.configurations import Configuration, combinations, parse_assignment
from lola_cpp.eval.haystacks import find_haystack, text_haystack
from lola_cpp.eval.likelihood import measure_divergence, measure_perplexity, segments_of
from lola_cpp.eval.paper import paper_configurations
from lola_cpp.eval.plots import Heading, Point, axis_marks, heat_map, line_plot
from lola_cpp.eval.recall import measure_recall
from lola_cpp.eval.report import read_recall
from lola_cpp.eval.statistics import mean_and_error, wilson
from lola_cpp.eval.tasks import TASKS, Prompt, make_prompt, title

BASE = Configuration("model", threads=1)
LINES = tuple(f"line {i} of a text that says little" for i in range(50))


@pytest.fixture(scope="module")
def model() -> Model:
    return BASE.load()


def words_of(text: str) -> list[int]:
    return [len(word) for word in text.split()]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("haystack", [find_haystack("noise"), text_haystack(LINES, "text")])
def test_a_prompt_fills_its_length_and_holds_the_answers(task: str, haystack: object) -> None:
    for length in (300, 2000):
        prompt = make_prompt(task, words_of, length, rng=random.Random(1), haystack=haystack)
        assert length - max(length // 64, 20) <= len(prompt.tokens) <= length
        assert all(answer in prompt.text for answer in prompt.answers)
        assert prompt.found_in(prompt.completion) and not prompt.found_in(" I do not know.")
        assert prompt == make_prompt(task, words_of, length, rng=random.Random(1), haystack=haystack)


def test_the_depth_says_where_the_sentence_lies() -> None:
    for depth in (0.0, 0.5, 1.0):
        prompt = make_prompt("passkey", words_of, 1000, rng=random.Random(2), depth=depth)
        place = prompt.text.index(f"The pass key is {prompt.answers[0]}") / len(prompt.text)
        assert place == pytest.approx(depth, abs=0.1)


def test_the_links_of_a_chain_follow_one_another() -> None:
    for seed in range(20):
        prompt = make_prompt("variable_chain", words_of, 600, rng=random.Random(seed))
        places = [prompt.text.index(f"VAR {name} =") for name in prompt.answers]
        assert places == sorted(places)


def test_the_frequent_words_are_the_most_frequent() -> None:
    for seed in range(10):
        prompt = make_prompt("frequent_words", words_of, 400, rng=random.Random(seed))
        words = Counter(prompt.text.split("coded words. ")[1].split("\nQuestion")[0].split())
        assert [word for word, _ in words.most_common(3)] == list(prompt.answers)


def test_tables_name_the_haystack_where_it_matters() -> None:
    text = text_haystack(LINES, "stdlib")
    assert [title("needle", find_haystack("noise")), title("needle", text)] == ["needle", "needle in stdlib"]
    assert title("frequent_words", text) == "frequent_words"


def test_several_answers_count_one_by_one() -> None:
    prompt = Prompt("", [], ("12", "34", "56", "78"), 0.0)
    assert prompt.share_found(" 34 and 12") == 0.5
    assert Prompt("", [], ("12",), 0.0).share_found(" not 12") == 0.0


@pytest.mark.parametrize(
    ("task", "length", "problem"),
    [("riddle", 500, "'riddle', wanted one of passkey"), ("passkey", 5, "found 5, wanted")],
)
def test_prompts_that_cannot_be_are_refused(task: str, length: int, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        make_prompt(task, words_of, length, rng=random.Random(1))


def test_wilson_intervals_are_those_of_the_tables() -> None:
    assert wilson(0, 10) == (0.0, pytest.approx(0.2775, abs=1e-4))
    assert wilson(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert wilson(10, 10) == (pytest.approx(0.7225, abs=1e-4), 1.0)


def test_a_single_value_has_no_known_error() -> None:
    assert mean_and_error([2.0, 4.0]) == (3.0, 1.0)
    assert math.isnan(mean_and_error([2.0])[1])


def test_recall_is_counted_the_same_however_many_share_a_pass() -> None:
    configurations = combinations(BASE, [parse_assignment("sparse_size=0,64")])
    rows, again = (
        measure_recall(configurations, tasks=["passkey"], lengths=[400], samples=[4], active=active)
        for active in (1, 3)
    )
    assert [row.as_dict() for row in rows] == [row.as_dict() for row in again]
    without, lola = rows
    assert (without.samples, lola.samples, lola.right) == (4, 4, 4)
    assert without.right < lola.right and without.memory_bytes < lola.memory_bytes


def test_what_is_finished_is_told_before_the_rest_is_measured() -> None:
    told: list[list[tuple[int, str]]] = []
    configurations = [BASE, BASE.with_options(sparse_size=0)]
    rows = measure_recall(
        configurations,
        tasks=["passkey"],
        lengths=[200, 300],
        samples=[1],
        after_prompts=lambda rows: told.append([(row.cell.length, row.cell.configuration) for row in rows]),
    )
    assert [len(rows) for rows in told] == [2, 4]
    assert told[-1] == [(row.cell.length, row.cell.configuration) for row in rows]
    assert {length for length, _ in told[0]} == {200}


def test_parts_of_a_table_make_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recall = ["eval", "recall", "-t", "1", "--tasks", "passkey", "--samples", "1", "--vary", "sparse_size=0,64"]
    for lengths in (["300"], ["200"], ["200", "300"]):
        assert cli.main([*recall, "--lengths", *lengths, "-o", str(tmp_path / "-".join(lengths))]) == 0
    assert cli.main([*recall, "--lengths", "200", "--seed", "1", "-o", str(tmp_path / "more")]) == 0
    whole = capsys.readouterr().out.split("**passkey**")[3]
    assert cli.main(["eval", "merge", str(tmp_path / "300"), str(tmp_path / "200"), "-o", str(tmp_path / "m")]) == 0
    assert capsys.readouterr().out.partition("**passkey**")[2] == whole
    assert json.loads((tmp_path / "m" / "results.json").read_text())["settings"]["folders"]
    rows, _ = read_recall([tmp_path / "200", tmp_path / "more"])
    assert [(row.cell.length, row.samples) for row in rows] == [(200, 2), (200, 2)]
    assert cli.main(["eval", "merge", str(tmp_path / "200"), str(tmp_path / "200-300")]) == 1
    assert "which" in capsys.readouterr().err
    for text in ("", "[]", '{"settings": {}}', '{"settings": {"seed": 0}, "rows": [{}]}'):
        (tmp_path / "results.json").write_text(text)
        assert cli.main(["eval", "merge", str(tmp_path)]) == 1
        assert "found no report of recall" in capsys.readouterr().err


def test_layers_on_a_gpu_are_asked_for_and_not_forgotten(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["eval", "recall", "--lengths", "200"], ["calibrate", "-o", "never.gguf"]):
        assert cli.main([*command, "--gpu-layers", "3"]) == 1
        assert "gpu_layers: found 3 with device 'cpu'" in capsys.readouterr().err


def test_a_configuration_says_what_it_runs() -> None:
    assert BASE.softmax().describe() == "the embedded model on cpu, softmax attention"
    assert (
        "window 128 in chunks of 64, first, lambda 7 per head"
        in BASE.with_options(window_size=128, policy="first", sparse_size=7).describe()
    )


def test_every_combination_stands_once() -> None:
    names = ["sparse-size=0,64", "policy=first,self_recall", "window-size=64,128"]
    found = combinations(BASE, list(map(parse_assignment, names)))
    assert len(found) == 2 * 2 + 2  # without a sparse cache the policy does not matter
    assert found[0].name == "sparse_size 0, policy first, window_size 64"


@pytest.mark.parametrize("text", ["sparse_size", "sparse_size=", "sparse_sise=3", "sparse_size=three"])
def test_wrong_variations_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="wanted"):
        parse_assignment(text)


def test_the_papers_rows_spend_one_budget() -> None:
    rows = {c.name: dict(c.options) for c in paper_configurations(BASE, [32, 64, 256])}
    assert rows["window 128"] == {"sparse_size": 0, "window_size": 128}
    assert rows["random, lambda 64"]["policy"] == "random" and "softmax" in rows
    assert len(rows) == 5 + 2 * 3


def test_perplexity_is_that_of_the_scores(model: Model) -> None:
    segments = segments_of(BASE, "def add(first, second):\n    return first + second\n" * 30, 200, 2)
    rows = measure_perplexity([BASE], segments)
    scores = [-model.session().score(segment)[1:] for segment in segments]
    assert rows[-1].mean == pytest.approx(np.mean(scores), rel=1e-4)
    assert [(row.first, row.last) for row in rows] == [(1, 63), (64, 127), (128, 199), (1, 199)]
    assert rows[1].mean == pytest.approx(np.mean([s[63:127] for s in scores]), rel=1e-4)
    last = [(row.first, row.last) for row in measure_divergence(BASE, [BASE], [segments[0][:128]], every=32)]
    assert last == [(1, 63), (64, 128), (32, 128)]


def test_segments_that_are_read_together_diverge_as_alone() -> None:
    segments = segments_of(BASE, "def add(first, second):\n    return first + second\n" * 60, 160, 3)
    together = measure_divergence(BASE, [BASE.softmax()], segments, every=40)[-1]
    alone = [measure_divergence(BASE, [BASE.softmax()], [segment], every=40)[-1] for segment in segments]
    assert together.mean == pytest.approx(np.mean([row.mean for row in alone]), rel=1e-3)
    assert together.same_choice == pytest.approx(np.mean([row.same_choice for row in alone]))


def test_a_configuration_does_not_diverge_from_itself_and_softmax_does(model: Model) -> None:
    segments = segments_of(BASE, "def add(first, second):\n    return first + second\n" * 30, 160, 2)
    same, softmax = (measure_divergence(BASE, [other], segments, every=40)[-1] for other in (BASE, BASE.softmax()))
    assert (same.mean, same.same_choice) == (0.0, 1.0)
    assert softmax.mean > 0.0


def test_pictures_are_well_formed_and_escape_names() -> None:
    head, point, axes = Heading("a < b", "n & m"), Point(512, 0.0, 0.0, 0.0), {"horizontal": "x", "vertical": "<y>"}
    for picture in (
        heat_map(head, [512, 1024], [0.0, 1.0], {(512, 0.0): 1.0, (512, 1.0): 0.5, (1024, 0.0): 0.0}),
        line_plot(head, {"<x>": [point, Point(1024, 0.5, 0.2, 0.7)], "y": [point]}, **axes, ends=(0.0, 1.0)),
        line_plot(head, {"x": [point]}, **axes),
    ):
        assert ElementTree.fromstring(picture).tag.endswith("svg")
        assert "nan" not in picture


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (5.2, 34.7), (0.0, 0.0), (3.0, 3.0), (1e-7, 2e-6), (0, 4e5)])
def test_the_marks_of_an_axis_are_few_and_hold_all_values(low: float, high: float) -> None:
    marks = axis_marks(low, high)
    assert marks[0] <= low <= high <= marks[-1] and marks[0] < marks[-1] and len(marks) <= 9


def test_the_command_writes_a_table_numbers_and_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["-t", "1", "-o", str(tmp_path)]
    text = tmp_path / "text.txt"
    text.write_text("def add(first, second):\n    return first + second\n" * 30)
    recall = ["eval", "recall", "--tasks", "passkey", "--lengths", "200", "250", "--samples", "1", "--depths", "0", "1"]
    assert cli.main([*recall, "--haystack", str(text), *out]) == 0
    assert "| model | 1.000 (0.34 to 1.00) | 1.000 (0.34 to 1.00) | 3,223,552 |" in capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text())
    assert [row["depth"] for row in results["rows"]] == [0.0, 1.0, 0.0, 1.0]
    about = (
        "the embedded model on cpu; where nothing else is said, window 64 in chunks of 64, weighted_recall, lambda 64"
    )
    assert (tmp_path / "report.md").read_text().startswith(about)
    assert about in (tmp_path / "passkey-in-text-txt-model.svg").read_text()
    likelihood = ["--text", str(text), "--length", "100", "--segments", "1", *out]
    assert cli.main(["eval", "perplexity", "--vary", "sparse_size=0,64", *likelihood]) == 0
    assert (tmp_path / "perplexity.svg").exists()
    assert cli.main(["eval", "divergence", "--reference-adapter", "none", "--softmax", *likelihood]) == 0
    assert "| softmax | 0 , 100.0% same" in capsys.readouterr().out.replace("0, ", "0 , ")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["recall", "--samples", "1", "2", "3"], "wanted one number, or one for each of 4 lengths"),
        (["recall", "--depths", "2"], "wanted numbers from 0 to 1"),
        (["recall", "--haystack", "missing.txt"], "'missing.txt', wanted stdlib"),
        (["recall", "--vary", "policy=best", "--lengths", "200", "--samples", "1"], "policy: found 'best'"),
        (["perplexity", "--length", "1"], "found 1"),
        (["divergence", "--every", "0", "--segments", "1", "--length", "100"], "every: found 0"),
        (["divergence", "--reference", "sparse_size=1,2"], "wanted one"),
    ],
)
def test_wrong_input_ends_in_one_line(arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["eval", *arguments]) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("lola-cpp: ") and problem in errors and errors.count("\n") == 1

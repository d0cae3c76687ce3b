"""lm-evaluation-harness runs on the native engine: its numbers are the session's own."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lm_eval", reason="needs lm_eval: pip install 'lola_cpp[eval]'")
pytestmark = pytest.mark.filterwarnings("ignore")  # of the packages that lm_eval brings

from lm_eval.api.instance import Instance  # noqa: E402

from lola_cpp import Model  # noqa: E402
from lola_cpp.eval.harness import LolaModel  # noqa: E402
from lola_cpp.eval.tasks import make_prompt  # noqa: E402

CONTEXT = "import os\n\n\ndef add(first, second):\n    return"
SPLIT = 0.05  # another split of the prompt: activations round to other integers where they are near a border


@pytest.fixture(scope="module")
def lm() -> LolaModel:
    return LolaModel(threads=1, batch_size=2)


def instances(kind: str, *arguments: tuple) -> list[Instance]:
    return [Instance(kind, {}, each, i) for i, each in enumerate(arguments)]


def test_a_log_likelihood_is_the_sum_of_the_scores_of_its_tokens(lm: LolaModel) -> None:
    pairs = [(CONTEXT, " first + second"), (CONTEXT, " self"), ("", "import"), ("x = ", "1")]
    found = lm.loglikelihood(instances("loglikelihood", *pairs), disable_tqdm=True)
    for (context, continuation), (logprob, _) in zip(pairs, found, strict=True):
        before = lm.model.tokenize(context) if context else [lm.prefix_token_id]
        tokens = (
            lm.tok_encode(context + continuation)
            if context
            else [*before, *lm.model.tokenize(continuation, add_special=False)]
        )
        scores = lm.model.session().score(tokens)
        start = len(lm.tok_encode(context.rstrip())) if context else 1
        np.testing.assert_allclose(logprob, scores[start:].sum(), atol=SPLIT)


def test_only_what_greedy_decoding_writes_counts_as_greedy(lm: LolaModel) -> None:
    context = lm.tok_encode(CONTEXT)
    greedy = [t.id for t in lm.model.session().generate(context, max_tokens=4, stop_at_end=False)]
    others = [greedy, [*greedy[:3], greedy[3] + 1], [greedy[0] + 1, *greedy[1:]], greedy[:1]]
    found = lm._loglikelihood_tokens([(("", ""), context, continuation) for continuation in others], disable_tqdm=True)
    assert [is_greedy for _, is_greedy in found] == [True, False, False, True]


def test_a_rolling_likelihood_counts_every_token_once(lm: LolaModel) -> None:
    text = "def add(first, second):\n    return first + second\n"
    (found,) = lm.loglikelihood_rolling(instances("loglikelihood_rolling", (text,)), disable_tqdm=True)
    tokens = [lm.prefix_token_id, *lm.tok_encode(text, add_special_tokens=False)]
    np.testing.assert_allclose(found, lm.model.session().score(tokens)[1:].sum(), rtol=1e-5)


def test_a_limit_keeps_the_end_of_a_context(lm: LolaModel) -> None:
    short = LolaModel(threads=1, max_length=16)
    tokens = lm.tok_encode(CONTEXT * 4 + " first")
    (found,) = short.loglikelihood(instances("loglikelihood", (CONTEXT * 4, " first")), disable_tqdm=True)
    count = len(tokens) - len(lm.tok_encode(CONTEXT * 4))
    np.testing.assert_allclose(found[0], lm.model.session().score(tokens[-16:])[-count:].sum(), atol=SPLIT)


def test_generation_stops_where_the_task_says(lm: LolaModel) -> None:
    requests = instances(
        "generate_until",
        (CONTEXT, {"until": ["\n"], "max_gen_toks": 30}),
        ("import ", {"until": [], "max_gen_toks": 5, "do_sample": False, "temperature": 1.0}),
    )
    first, second = lm.generate_until(requests, disable_tqdm=True)
    assert "\n" not in first
    assert second == "".join(t.text for t in lm.model.session().generate("import ", max_tokens=5))


def test_session_options_are_model_arguments_and_wrong_ones_are_refused() -> None:
    lm = LolaModel.create_from_arg_string("sparse_size=7,policy=first,threads=1")
    assert lm._session(10).config["sparse_size"] == 7
    with pytest.raises(ValueError, match="'sparse_sise'"):
        LolaModel.create_from_arg_string("sparse_sise=7")


@pytest.fixture
def local_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a task of choices and one of a pass key to be generated."""
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    key = make_prompt("passkey", Model.default().tokenize, 400, rng=random.Random(1))
    rows = {
        "choice": [{"text": "import os\nimport", "choices": [" sys", " zebra"], "answer": 0}] * 3,
        "key": [{"text": key.text, "answer": key.answers[0]}],
    }
    kinds = {
        "choice": "output_type: multiple_choice\ndoc_to_choice: choices\nmetric_list:\n  - metric: acc\n",
        "key": "output_type: generate_until\ngeneration_kwargs:\n  until: ['.']\n  max_gen_toks: 20\n"
        "metric_list:\n  - metric: exact_match\n    regexes_to_ignore: ['[^0-9]']\n",
    }
    for name, lines in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
        (tmp_path / f"{name}.yaml").write_text(
            f"task: local_{name}\ndataset_path: json\ndataset_kwargs:\n  data_files: {tmp_path}/{name}.jsonl\n"
            'test_split: train\ndoc_to_text: "{{text}}"\ndoc_to_target: answer\n' + kinds[name]
        )
    return tmp_path


def test_the_command_runs_tasks_made_from_local_files(local_tasks: Path) -> None:
    command = [sys.executable, "-m", "lola_cpp.eval.harness", "--model", "lola_cpp", "--batch_size", "2"]
    command += ["--model_args", "threads=1,sparse_size=64", "--include_path", str(local_tasks)]
    command += ["--tasks", "local_choice,local_key", "--output_path", str(local_tasks / "out.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    (report,) = local_tasks.glob("out*.json")
    results = json.loads(report.read_text())["results"]
    assert results["local_choice"]["acc,none"] == 1.0
    assert results["local_key"]["exact_match,none"] == 1.0


def test_the_entry_point_leads_to_the_model() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 reads no TOML")
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    ((name, target),) = project["entry-points"]["lm_eval.models"].items()
    assert name == "lola_cpp"
    assert EntryPoint(name, target, "lm_eval.models").load() is LolaModel


def test_the_models_own_template_is_wanted_for_chats(lm: LolaModel) -> None:
    assert isinstance(lm.model, Model)
    with pytest.raises(ValueError, match="chat_template"):
        lm.apply_chat_template([{"role": "user", "content": "Hello"}])

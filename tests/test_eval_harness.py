"""lm-evaluation-harness runs on the native engine: its numbers are the session's own."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lm_eval", reason="needs lm_eval: pip install 'lola_cpp[eval]'")
pytestmark = pytest.mark.filterwarnings("ignore")  # of the packages that lm_eval brings

from lm_eval.api.instance import Instance  # noqa: E402

from lola_cpp import Model  # noqa: E402
from lola_cpp.eval.harness import LolaModel  # noqa: E402

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


def test_the_harness_runs_tasks_made_from_local_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [{"text": "import os\nimport", "choices": [" sys", " zebra"], "answer": 0}] * 3
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "choice.yaml").write_text(
        f"task: local_choice\ndataset_path: json\ndataset_kwargs:\n  data_files: {tmp_path}/rows.jsonl\n"
        "test_split: train\noutput_type: multiple_choice\n"
        'doc_to_text: "{{text}}"\ndoc_to_target: answer\ndoc_to_choice: choices\n'
        "metric_list:\n  - metric: acc\n"
    )
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    result = simple_evaluate(
        model="lola_cpp", model_args="threads=1", tasks=["local_choice"], task_manager=manager, bootstrap_iters=0
    )
    assert result["results"]["local_choice"]["acc,none"] == 1.0


def test_the_models_own_template_is_wanted_for_chats(lm: LolaModel) -> None:
    assert isinstance(lm.model, Model)
    with pytest.raises(ValueError, match="chat_template"):
        lm.apply_chat_template([{"role": "user", "content": "Hello"}])

"""The parts of tools/train_tiny.py that need no training: its samples, its model's file, its schedule."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="training needs torch")
pytest.importorskip("transformers", reason="training needs transformers")
pytest.importorskip("safetensors", reason="models are written with safetensors")

from lola_cpp.distill.feature_map import features  # noqa: E402
from lola_cpp.distill.lora import Student  # noqa: E402
from lola_cpp.distill.options import Options  # noqa: E402
from lola_cpp.distill.teacher import Teacher  # noqa: E402
from lola_cpp.distill.transfer import Transfer  # noqa: E402
from lola_cpp.eval.tasks import WORDS  # noqa: E402
from tiny import corpus as tiny_corpus  # noqa: E402
from tiny import stages  # noqa: E402
from tiny import teacher as tiny_teacher  # noqa: E402
from tiny.calibration import calibrate  # noqa: E402
from tiny.evaluate import SOFTMAX, Evaluation, Memory  # noqa: E402
from tiny.memory import SETTINGS, Maps, attend_chunks, remember  # noqa: E402
from tiny.model import MAPS, TinyLlama  # noqa: E402
from tiny.tasks import ANSWER, TASKS, TaskMaker  # noqa: E402
from tiny.text import Renamer, TextMaker  # noqa: E402


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Of a few files of the library, with the whole tool's vocabulary size."""
    patch = pytest.MonkeyPatch()
    everything = tiny_corpus._library
    patch.setattr(tiny_corpus, "_library", lambda: [text for text in everything() if 20_000 < len(text) < 90_000][:60])
    folder = tmp_path_factory.mktemp("corpus")
    tiny_corpus.prepare(folder)
    patch.undo()
    return tiny_corpus.prepare(folder)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("length", [300, 700])
def test_a_prompt_has_the_tokens_of_its_text_and_its_answer_comes_last(corpus, task, length):
    maker = TaskMaker(corpus, np.random.default_rng(length), held_out=True)
    for _ in range(20):
        tokens, places = maker.evaluation(task, length)
        assert len(tokens) == length
        assert places[-1] == length - 1
        tail = 200  # the haystack may begin in the middle of a word
        text = corpus.tokenizer.decode(tokens.tolist())
        assert corpus.tokenizer.encode(text).ids[-tail:] == tokens[-tail:].tolist()
        answer = corpus.tokenizer.decode(tokens[places].tolist()).strip()
        assert all(part in text[: text.rindex("\n")] for part in answer.split(", "))


def test_training_samples_have_their_length_and_none_of_the_words_of_the_evaluation(corpus):
    maker = TaskMaker(corpus, np.random.default_rng(0))
    assert not set(maker.words) & set(WORDS)
    for length in (64, 513, 2049):
        for _ in range(40):
            tokens, kinds = maker.sample(length)
            assert len(tokens) == len(kinds) == length
            assert 0 <= tokens.min() <= tokens.max() < tiny_corpus.VOCABULARY
            assert (kinds == ANSWER).any()


def test_plain_text_begins_with_the_begin_of_text_token_and_often_a_line_or_a_document(corpus):
    text = TextMaker(corpus, np.random.default_rng(0))
    text.renamer = lambda piece: piece
    training, starts = text.texts[0]
    lines, documents = (set(starts[i].tolist()) for i in (1, 2))
    begun, at_line, at_document, count = 0, 0, 0, 100
    for _ in range(count):
        piece = text.sample(64)
        assert len(piece) == 64
        begun += piece[0] == tiny_corpus.BOS
        if piece[0] == tiny_corpus.BOS:
            alike = np.flatnonzero(training[:-62] == piece[1]).tolist()
            places = {i for i in alike if (training[i : i + 63] == piece[1:]).all()}
            assert places
            at_line += bool(places & lines)
            at_document += bool(places & documents)
    assert 0.8 * count < begun < count
    assert at_line + at_document > 0.6 * begun
    assert at_document > 0.1 * begun


def test_renaming_swaps_words_the_same_way_throughout(corpus):
    tokens = corpus.training[:5000].astype(np.int64)
    renamed = Renamer(corpus, np.random.default_rng(0))(tokens)
    pairs = set(zip(tokens.tolist(), renamed.tolist(), strict=True))
    assert len(pairs) == len({old for old, _ in pairs}) == len({new for _, new in pairs})
    assert 0.02 < np.mean(tokens != renamed) < 0.9


def test_some_plain_text_is_of_documents_that_the_teacher_never_sees(corpus):
    text = TextMaker(corpus, np.random.default_rng(0))
    text.renamer = lambda piece: piece

    def of(tokens: np.ndarray, piece: np.ndarray) -> bool:
        return piece[1:].astype(tokens.dtype).tobytes() in tokens.tobytes()

    for unseen, whole in ((0.0, corpus.training), (1.0, corpus.unseen)):
        assert all(of(whole, text.sample(64, unseen)) for _ in range(20))
    copies = sum(of(corpus.training, text.sample(256, 1.0)) for _ in range(40))
    assert copies < 10  # some files share a table or a licence


def test_calibrating_finds_the_temperature_that_a_text_was_drawn_at():
    rng, size = np.random.default_rng(0), 50
    states, output = rng.normal(size=(size, 16)), rng.normal(size=(size, 16))
    likely = np.exp(states @ output.T / 2.0)  # the logits that follow each token, over the temperature
    likely /= likely.sum(1, keepdims=True)
    text = [1]
    for _ in range(20_000):
        text.append(int(rng.choice(size, p=likely[text[-1]])))
    after = torch.from_numpy(states).float()
    model = SimpleNamespace(
        output=torch.from_numpy(output).float(), hidden=lambda tokens, *_: (after[tokens.flatten()], None)
    )
    assert calibrate(model, np.array(text, np.uint16), length=100) == pytest.approx(2.0, rel=0.02)
    torch.testing.assert_close(model.output, torch.from_numpy(output).float() / 2.0, rtol=0.02, atol=0)


def test_the_written_folder_is_the_model_that_was_trained(corpus, tmp_path):
    torch.manual_seed(0)
    model = TinyLlama()
    with torch.no_grad():
        for value in model.maps.parameters():
            value += torch.randn_like(value)
    maps = {name: value.detach().clone() for name, value in model.named_maps().items()}
    model.save(tmp_path)
    with torch.no_grad():  # the file is in bfloat16
        for value in model.parameters():
            value.copy_(value.bfloat16().float())
    again = TinyLlama()
    again.load(tmp_path)
    assert all(torch.equal(value, model.named_weights()[name]) for name, value in again.named_weights().items())
    transfer = Transfer.start(
        Options(tmp_path, (), tmp_path, settings=SETTINGS, maps=tmp_path / MAPS), Teacher(tmp_path)
    )
    transfer.train(data=None)  # takes the maps that are given
    for found in (again.named_maps(), transfer.tensors()):
        assert found.keys() == maps.keys()
        assert all(torch.equal(value, maps[name]) for name, value in found.items())
    tokens = torch.from_numpy(corpus.training[:101].astype(np.int64))[None]
    student = Student(Options(tmp_path, (), tmp_path), Teacher(tmp_path), {}, {})
    with torch.no_grad():
        hidden, _ = model.hidden(tokens[:, :-1], None, 64)
        losses = model.losses(hidden, model.output, tokens[:, 1:].flatten())
        wanted = student.loss(tokens, teacher=True)
    torch.testing.assert_close(losses.mean(), wanted, rtol=1e-4, atol=1e-4)


def test_the_demand_loss_is_lower_where_keys_and_values_stand_out_as_they_are_asked_for():
    from tiny.model import _demand_loss

    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, 200, 64, generator=generator) for heads in (8, 4, 4))
    queries = torch.tensor([[190, 195]])
    q[:, :, 190:] = 40 * k[:, :, 30].repeat_interleave(2, 1)[:, :, None] / 64**0.5
    plain = _demand_loss(q, k, v, queries, 64)
    k[:, :, 30] *= 1.5
    loud_key = _demand_loss(q, k, v, queries, 64)
    v[:, :, 30] *= 3
    assert plain > loud_key > _demand_loss(q, k, v, queries, 64)


class Oracle:
    """Knows the next token everywhere, but for one token of an answer that softmax attention alone gives."""

    def __init__(self) -> None:
        self.teacher = SimpleNamespace(head=lambda: lambda x: x)
        self.options = SimpleNamespace(device="cpu")

    def with_settings(self, **_: object) -> Oracle:
        return self

    def hidden(self, tokens: torch.Tensor, *, sparse_size: int, teacher: bool) -> torch.Tensor:
        logits = 20 * torch.nn.functional.one_hot(tokens.roll(-1, 1), tiny_corpus.VOCABULARY).float()
        if not teacher and sparse_size == 0:
            logits[::2, -3] = 0
        return logits


def test_an_answer_counts_where_every_token_of_it_is_the_likeliest(corpus, monkeypatch):
    monkeypatch.setattr("tiny.evaluate._PERPLEXITY_TOKENS", 6000)
    memories = [SOFTMAX, Memory(64, 0), Memory(64, 32)]
    evaluation = Evaluation(Oracle(), corpus)
    found = evaluation.recall(300, memories, 4)
    assert set(found) == set(TASKS)
    for shares in found.values():
        assert [shares[memory.name] for memory in memories] == [1.0, 0.5, 1.0]
    rows = evaluation._hidden
    evaluation._hidden = lambda tokens, memory: begins.append(tokens[:, 0].unique().tolist()) or rows(tokens, memory)
    begins: list[list[int]] = []
    evaluation.perplexity(300, [SOFTMAX], bos=False)
    evaluation.perplexity(300, [SOFTMAX])
    assert begins[-1] == [tiny_corpus.BOS] != begins[0]
    losses = evaluation.perplexity(300, memories)
    assert losses[SOFTMAX.name] == pytest.approx(1.0, abs=1e-4) == losses[memories[2].name] < losses[memories[1].name]


def test_the_rate_warms_up_stays_and_falls():
    teacher, polish = stages.TEACHER, stages.POLISH
    rates = [teacher.rate_at(step, share) for step, share in ((0, 0), (500, 0.3), (500, 0.65), (500, 1.0))]
    assert rates == pytest.approx([2e-3 / 150, 2e-3, 2e-3, 6e-5])
    rates = [polish.rate_at(step, share) for step, share in ((0, 0), (100, 0.5), (100, 1.0))]
    assert rates == pytest.approx([4e-4 / 30, 2e-4, 0], abs=1e-9)
    for stage in (teacher, polish):
        assert all(sum(shares.values()) == pytest.approx(1) for _, shares in stage.lengths)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with an untrained teacher."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    TinyLlama().save(folder)
    return folder


def test_polishing_goes_on_from_the_folder_and_from_its_own_checkpoint(corpus, base, tmp_path):
    plan = tiny_teacher.Plan(2.0, stages.POLISH, tokens=512, longest=256, workers=0, start=base)
    polished = tiny_teacher.train(corpus, plan, tmp_path, "cpu")
    start = TinyLlama()
    start.load(base)
    pairs = list(zip(polished.parameters(), start.parameters(), strict=True))
    assert any(not torch.equal(new, old) for new, old in pairs)
    assert all((new - old).abs().max() < 0.2 for new, old in pairs)
    again = tiny_teacher.train(corpus, plan, tmp_path, "cpu")  # nothing is left to do
    assert all(torch.equal(*pair) for pair in zip(again.parameters(), polished.parameters(), strict=True))


def functional_kl(model, tokens):
    """How far the first token takes what a model foretells."""

    def logits(part):
        hidden, _ = model.hidden(part, None, 64)
        return torch.nn.functional.linear(hidden, model.output).unflatten(0, part.shape).log_softmax(-1)

    found, wanted = logits(tokens)[:, 1:], logits(tokens[:, 1:])
    return (wanted.exp() * (wanted - found)).sum(-1).mean().item()


@pytest.mark.parametrize(("window", "cache"), [(64, 8), (64, 64), (128, 16), (256, 256)])
def test_the_polish_remembers_the_window_the_best_of_the_rest_and_a_state(window, cache):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, 400, 64, generator=generator) for heads in (8, 4, 4))
    maps = Maps(0)
    found = remember(q, k, v, maps, window, cache, attend_chunks)
    ranks = (SETTINGS.kappa * k.square().sum(-1) / 128 + (v - v.mean(2, keepdim=True)).square().sum(-1).log()).double()
    k, v, ranks = (x.repeat_interleave(2, 1) for x in (k, v, ranks))
    phi_q, phi_k = features(q, maps.query_map, SETTINGS), features(k, maps.key_map, SETTINGS)
    gate = maps.window_logits.sigmoid()
    for head, place in itertools.product((0, 5), (0, 63, 64, 200, 399)):
        left = max(0, place // 64 * 64 - window)
        kept = ranks[1, head, :left].topk(min(cache, left)).indices.tolist()
        exact = [*kept, *range(left, place + 1)]
        lost = [i for i in range(left) if i not in kept]
        weights = gate[head] * (k[1, head, exact] @ q[1, head, place] / 8).exp()
        linear = (1 - gate[head]) * (phi_k[1, head, lost] @ phi_q[1, head, place])
        wanted = (weights @ v[1, head, exact] + linear @ v[1, head, lost]) / (weights.sum() + linear.sum())
        torch.testing.assert_close(found[1, head, place], wanted, rtol=1e-3, atol=1e-5)


def test_polishing_pulls_plain_text_back_to_what_the_start_foretold(corpus, base):
    anchor, model = TinyLlama(), TinyLlama()
    anchor.load(base)
    model.load(base)
    rng = np.random.default_rng(0)
    rows = np.stack([TextMaker(corpus, rng).sample(65) for _ in range(2)] + [TaskMaker(corpus, rng).sample(65)[0]])
    tokens, kinds = torch.from_numpy(rows), torch.zeros(3, 64, dtype=torch.uint8)
    kinds[2] = ANSWER

    def losses():
        hidden, _ = model.hidden(tokens[:, :-1], None, 64)
        return tiny_teacher._polished_losses(model, anchor, hidden, tokens, kinds, memories)

    def drift():
        return losses()[0]

    memories = ()
    far = functional_kl(anchor, tokens[:2, :-1])
    assert drift().item() == pytest.approx(far, abs=1e-4)
    (whole, answer), memories = losses(), (stages.Memory(64, 1, answers=True),)
    twice = (1 + tiny_teacher.REMEMBERED_WEIGHT) * whole.item()  # 64 tokens: the window holds them all
    assert losses()[0].item() == pytest.approx(twice, abs=1e-4)
    assert losses()[1].item() == pytest.approx(2 * answer.item(), abs=1e-4)
    memories = (stages.Memory(0, 1, answers=False),)
    assert losses()[1].item() == pytest.approx(answer.item(), abs=1e-4)
    kinds[:] = ANSWER
    assert drift() == 0
    kinds[:2], memories = 0, ()
    with torch.no_grad():
        model.output += 0.05 * torch.randn_like(model.output)
    first = drift()
    first.backward()
    with torch.no_grad():
        model.output -= 0.1 * model.output.grad / model.output.grad.norm()
        assert drift() < first


def test_lookalike_names_are_of_few_letters_and_all_different(corpus):
    maker = TaskMaker(corpus, np.random.default_rng(0))
    for _ in range(20):
        puzzle = maker.variables(4, list("ABCDE"))
        names = [name for question in puzzle.questions for name in question.answer.strip().split(", ")]
        assert len(set(names)) == 20
        assert set("".join(names)) <= set("ABCDE")
        tokens, kinds = maker.sample(2049, lookalikes=1.0)
        assert len(tokens) == 2049
        assert (kinds == ANSWER).any()

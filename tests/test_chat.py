"""Chat: templates are untrusted and say what they need; a conversation only ever reads what is new."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lola_cpp import Chat, ChatTemplate, FormatError, Model, UsageError, _template_process
from lola_cpp.chat import encode_chat
from lola_cpp.tool_calls import ToolCall, ToolCallReader, collect
from reference import tiny_gguf
from reference.tiny_gguf import tiny

TALK = [
    {"role": "system", "content": "Be <b>brief</b>."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yo"},
    {"role": "user", "content": "Bye"},
]


@pytest.fixture(scope="module")
def model() -> Model:
    return Model.default(threads=1)


# --- Templates ---

WANTED = {
    "chatml": "<|im_start|>system\nBe <b>brief</b>.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    "Yo<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
    "llama-2": "<|bos|>[INST] <<SYS>>\nBe <b>brief</b>.\n<</SYS>>\n\nHi [/INST] Yo <|eos|><|bos|>[INST] Bye [/INST]",
    "llama-3": "<|bos|><|start_header_id|>system<|end_header_id|>\n\nBe <b>brief</b>.<|eot_id|><|start_header_id|>user"
    "<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nYo<|eot_id|><|start_header_id|>"
    "user<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral-instruct": "<|bos|>[INST] Be <b>brief</b>. [/INST][INST] Hi [/INST] Yo<|eos|>[INST] Bye [/INST]",
    "gemma": "<|bos|><start_of_turn>user\nBe <b>brief</b>.<end_of_turn>\n<start_of_turn>user\nHi<end_of_turn>\n"
    "<start_of_turn>model\nYo<end_of_turn>\n<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n",
    "zephyr": "<|system|>\nBe <b>brief</b>.<|eos|>\n<|user|>\nHi<|eos|>\n<|assistant|>\nYo<|eos|>\n<|user|>\nBye<|eos|>"
    "\n<|assistant|>\n",
    "vicuna": "Be <b>brief</b>. USER: Hi ASSISTANT: Yo<|eos|>USER: Bye ASSISTANT:",
    "alpaca": "Be <b>brief</b>.\n\n### Instruction:\nHi\n\n### Response:\nYo\n\n### Instruction:\nBye\n\n"
    "### Response:\n",
}


@pytest.mark.parametrize("name", WANTED)
def test_a_named_template_writes_its_format(model: Model, name: str) -> None:
    assert ChatTemplate.of(model, name).render(TALK) == WANTED[name]


def model_with_template(folder: Path, **templates: str) -> Model:
    config = tiny()
    extra = {f"tokenizer.chat_template{'.' + name if name != 'own' else ''}": text for name, text in templates.items()}
    tiny_gguf.write_model(folder / "m.gguf", config, tiny_gguf.random_weights(config, seed=0), strings=extra)
    return Model(folder / "m.gguf", threads=1)


def test_the_models_own_template_is_the_default_and_others_of_its_file_have_names(tmp_path: Path) -> None:
    model = model_with_template(tmp_path, own="{{ messages | length }}{{ eos_token }}", tool_use="{{ tools | tojson }}")
    assert ChatTemplate.of(model).render(TALK) == "4<|eos|>"
    assert ChatTemplate.of(model, "tool_use").render(TALK, tools=[{"a": "<"}]) == '[{"a": "<"}]'


def test_a_model_without_a_template_says_which_names_there_are(model: Model) -> None:
    with pytest.raises(UsageError, match=r"has no tokenizer\.chat_template; name a template: one of alpaca, chatml"):
        ChatTemplate.of(model)
    with pytest.raises(UsageError, match="found 'chatmll', wanted one of alpaca"):
        ChatTemplate.of(model, "chatmll")


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ messages[0].content.split('<')[-1].strip() }}", "/b>."),
        (
            "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% break %}{% endfor %}",
            "user",
        ),
        ("{{ messages[0].get('x', 'd') }}{{ messages[::-1][0]['content'] }}", "dBye"),
        ("{{ tools | tojson(indent=2) }}{{ strftime_now('%Y') | length }}", "null4"),
        ("{% if tools is defined and tools %}x{% endif %}{% if not enable_thinking %}y{% endif %}", "y"),
        ("{{ messages[0].__class__ }}{{ ''.__class__ }}", ""),
    ],
)
def test_templates_have_what_those_of_todays_models_use_and_no_way_into_python(source: str, text: str) -> None:
    assert ChatTemplate(source).render(TALK) == text


@pytest.mark.parametrize(
    ("source", "error", "problem"),
    [
        ("{% for x in", FormatError, "syntax error"),
        ("{% generation %}", FormatError, "unknown statement generation"),
        ("{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}", FormatError, "recursion"),
        ("{{ raise_exception('roles must alternate') }}", UsageError, "^chat template: roles must alternate$"),
        ("{{ foo.bar }}", FormatError, "`foo` is undefined"),
        ("{{ x | nofilter }}", FormatError, "filter nofilter is unknown"),
        ("{{ nofunction() }}", FormatError, "nofunction is unknown"),
        ("{% include '/etc/passwd' %}", FormatError, "template not found"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}", FormatError, "out of fuel"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", FormatError, "recursion limit"),
        ("{{ 'a' * 10000000000 }}", FormatError, "out of fuel"),
        ("{{ ('a' * 99999) | replace('a', 'b' * 99999) }}", FormatError, "out of fuel"),
        ("{{ '%1000000000d' | format(1) }}", FormatError, "out of fuel"),
        ("{{ range(1000000000) | list }}", FormatError, "too many elements"),
    ],
)
def test_a_template_that_cannot_be_rendered_says_why_and_ends_soon(source: str, error: type, problem: str) -> None:
    with pytest.raises(error, match=problem) as raised:
        ChatTemplate(source).render(TALK)
    assert "\n" not in str(raised.value)


def doubling(begin: str, step: str, end: str = "") -> str:
    return f"{{% set n = namespace(x={begin}) %}}{{% for i in range(60) %}}{step}{{% endfor %}}{end}"


# Each doubles something with every step, which fuel does not see.
BOMBS = {
    "a string": doubling("'ab'", "{% set n.x = n.x ~ n.x %}"),
    "a sum of strings": doubling("'ab'", "{% set n.x = n.x + n.x %}"),
    "a list": doubling("[1]", "{% set n.x = n.x + n.x %}", "{{ n.x }}"),
    "a captured block": doubling("'ab'", "{% set x %}{{ n.x }}{{ n.x }}{% endset %}{% set n.x = x %}"),
    "a list in lists": doubling("'ab'", "{% set n.x = [n.x, n.x] %}", "{{ n.x }}"),
    "JSON of them": doubling("'ab'", "{% set n.x = [n.x, n.x] %}", "{{ n.x | tojson }}"),
    "a joined list": doubling("'ab'", "{% set n.x = [n.x, n.x] | join %}"),
    "a constant": "{{ " + " ~ ".join(["('a' * 100000000)"] * 40) + " }}",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_template_that_doubles_its_values_ends_and_harms_nobody(bomb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_template_process, "SECONDS", 2)
    template = ChatTemplate(BOMBS[bomb])
    with pytest.raises(FormatError, match=r"MiB of memory|no end within|out of fuel|found \d+ characters|memory"):
        template.render(TALK)
    assert ChatTemplate("{{ messages | length }}").render(TALK) == "4"


def test_threads_share_the_process_that_renders(tmp_path: Path) -> None:
    templates = [ChatTemplate(f"{{{{ messages[0].content }}}}{i}") for i in range(4)]

    def render(i: int) -> str:
        return templates[i % 4].render([{"role": "user", "content": f"é{i}\n"}])

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(render, range(64))) == [f"é{i}\n{i % 4}" for i in range(64)]


def test_a_message_that_is_no_data_is_refused() -> None:
    with pytest.raises(UsageError, match="wanted what JSON can hold: found object"):
        ChatTemplate("x").render([{"role": "user", "content": object()}])


def test_a_wrong_template_is_refused_when_it_is_made() -> None:
    with pytest.raises(FormatError, match="own template: syntax error"):
        ChatTemplate("{% if %}", name="own template")


# --- Conversations ---


def talk(chat: Chat, text: str, **options: object) -> str:
    return "".join(part.content for part in chat.send(text, max_tokens=12, stop_at_end=False, **options))


def test_the_session_has_read_the_whole_conversation_each_turn(model: Model) -> None:
    chat = Chat(model, system="def f():", template="chatml")
    for turn in ("import os", "return 1", "class A:"):
        answer = talk(chat, turn)
        assert chat.messages[-1] == {"role": "user", "content": turn}
        prompt = encode_chat(model, chat.template, chat.template.render(chat.messages))
        assert chat.session.tokens[: len(prompt)] == prompt
        *before, last = chat.session.tokens[len(prompt) :]
        end = "<|im_end|>"  # the model may end its turn as the template does, and nothing is read after that
        assert model.tokenizer.decode([*before, last]).partition(end)[0] == answer
        assert end not in model.tokenizer.decode(before)


def test_a_turn_reads_only_what_is_new(model: Model) -> None:
    chat = Chat(model, template="chatml")
    talk(chat, "import os\n" * 100)
    read: list[int] = []
    for _ in chat.send("x", max_tokens=1):
        read.append(chat.session._core.position)
    before = len(model.tokenize("import os\n" * 100))
    progress: list[int] = []
    for _ in chat.send("y", max_tokens=1, progress=progress.append):
        pass
    assert read[0] > before
    assert progress[-1] < 60


def test_a_turn_asked_again_gets_the_same_answer_without_being_read(model: Model) -> None:
    chat = Chat(model, template="chatml")
    talk(chat, "import os")
    answer = talk(chat, "def f():", stop="zzz")
    chat.undo()
    progress: list[int] = []
    assert talk(chat, "def f():", stop="zzz", progress=progress.append) == answer
    assert set(progress) <= {1}  # nothing but what is generated


def test_a_template_that_rewrites_earlier_turns_is_followed(model: Model) -> None:
    rewriting = "{% for m in messages %}{{ '<' ~ loop.revindex ~ m.content ~ '>' }}{% endfor %}"
    chat, turns = Chat(model, template=ChatTemplate(rewriting)), ("import os", "def f():", "return")
    for turn in turns:
        talk(chat, turn)
        prompt = model.tokenize(ChatTemplate(rewriting).render(chat.messages), add_special=False)
        assert chat.session.tokens[: len(prompt)] == prompt


def test_a_turn_that_is_refused_leaves_the_conversation_as_it_was(model: Model) -> None:
    strict = "{% for m in messages %}{{ m.content or raise_exception('empty') }}{% endfor %}"
    chat = Chat(model, template=ChatTemplate(strict))
    talk(chat, "import os")
    with pytest.raises(UsageError, match="empty"):
        chat.send("")
    with pytest.raises(TypeError):
        chat.send("x", max_token=1)
    talk(chat, "def f():")
    assert [message["role"] for message in chat.messages] == ["user", "assistant", "user"]


def test_a_reply_can_be_cancelled_and_the_conversation_goes_on(model: Model) -> None:
    chat = Chat(model, template="chatml")
    reply = chat.send("import os", max_tokens=50, stop_at_end=False)
    for i, _ in enumerate(reply):
        if i == 4:
            reply.cancel()
    assert reply.finish_reason == "cancelled"
    assert talk(chat, "more")
    assert chat.messages[1] == {"role": "assistant", "content": reply.content}


def test_a_reply_streams_to_a_coroutine(model: Model) -> None:
    async def run() -> str:
        chat = Chat(model, template="chatml")
        return "".join([part.content async for part in chat.send("import os", max_tokens=12, stop_at_end=False)])

    assert asyncio.run(run()) == talk(Chat(model, template="chatml"), "import os")


# --- Calls of functions ---

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"type": "integer", "maximum": 9, "minimum": 0}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
CALL_F = ToolCall("f", '{"a": [1, {"b": "}\\""}], "c": ","}')


@pytest.mark.parametrize("step", [1, 3, 1000])
@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        (
            'Sure.<tool_call>\n{"name": "f", "arguments": {"a": [1, {"b": "}\\""}], "c": ","}}\n</tool_call>\n'
            '<tool_call>{"arguments": {"x": 1}, "name": "g"}</tool_call> ok',
            "Sure.\n ok",
            [CALL_F, ToolCall("g", '{"x": 1}')],
        ),
        ('\n{"name": "f", "parameters": {"a": 1}}', "", [ToolCall("f", '{"a": 1}')]),
        (
            '[TOOL_CALLS][{"name": "f", "arguments": {}}, {"name": "g", "arguments": {"a": 1}}]',
            "",
            [ToolCall("f", "{}"), ToolCall("g", '{"a": 1}')],
        ),
        ("plain < text <tool", "plain < text <tool", []),
        (' hi {"name": 1}', ' hi {"name": 1}', []),
        ('<|python_tag|>{"name": "q", "parameters": {', "", [ToolCall("q", "{")]),
    ],
)
def test_calls_are_found_however_the_reply_is_cut(text: str, content: str, calls: list[ToolCall], step: int) -> None:
    reader, found_content, found = ToolCallReader(), "", list[ToolCall]()
    for begin in range(0, len(text), step):
        more, deltas = reader.push(text[begin : begin + step])
        found_content += more
        collect(found, deltas)
    assert (found_content + reader.flush(), found) == (content, calls)


def test_a_forced_call_follows_the_functions_schema_and_streams(model: Model) -> None:
    pytest.importorskip("llguidance")
    chat = Chat(model, template="chatml", tools=[WEATHER])
    reply = chat.send("weather?", tool_choice="weather", temperature=1.0, seed=1, max_tokens=200)
    parts = [delta for part in reply for delta in part.tool_calls]
    assert reply.finish_reason == "tool_calls"
    assert reply.content == ""
    [call] = reply.tool_calls
    assert call.name == "weather"
    arguments = json.loads(call.arguments)
    assert arguments["city"] in ("Oslo", "Rome") and 0 <= arguments["days"] <= 9
    assert len(parts) > 2 and parts[0].name == "weather" and {part.index for part in parts} == {0}
    with pytest.raises(UsageError, match="found 'wether', wanted one of the tools: weather"):
        chat.send("x", tool_choice="wether")

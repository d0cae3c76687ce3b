"""Chat templates: a model's own (Jinja, in its file) or a named one. They are untrusted, and have a fuel limit."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

from . import _core

if TYPE_CHECKING:
    import minijinja

    from .model import Model

Message = Mapping[str, Any]

# What ends a turn of the named templates in a model whose vocabulary has no such piece.
_NAMED: dict[str, tuple[str, ...]] = {
    "alpaca": ("### Instruction:",),
    "chatml": ("<|im_end|>",),
    "gemma": ("<end_of_turn>",),
    "llama-2": ("[INST]",),
    "llama-3": ("<|eot_id|>",),
    "mistral-instruct": ("[INST]",),
    "vicuna": ("USER:",),
    "zephyr": ("<|user|>", "</s>"),
}
_FUEL = 5_000_000  # steps; the templates of today's models use some ten thousand for a long conversation
_MAX_TEXT = 64 << 20  # characters of a rendered conversation


class _Raised(Exception):
    """A template called raise_exception."""


class ChatTemplate:
    """Turns a conversation into a prompt. Immutable; threads may share it.

    source  Jinja text
    name    for messages of errors
    stop    strings that end the model's turn besides its end-of-text tokens
    complete  it writes begin-of-text itself where the model wants it, as templates of Hugging Face's format do
    """

    def __init__(
        self,
        source: str,
        *,
        bos_token: str = "",
        eos_token: str = "",
        name: str = "chat template",
        stop: Sequence[str] = (),
        complete: bool = True,
    ) -> None:
        """FormatError where the source is no template."""
        import minijinja

        self.source = source
        self.name = name
        self.stop = tuple(stop)
        self.complete = complete
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        try:
            self._environment = _environment(source)
        except minijinja.TemplateError as error:
            raise _core.FormatError(f"{name}: {_first_line(error)}") from None

    @classmethod
    def of(cls, model: Model, name: str | None = None) -> ChatTemplate:
        """The model's own template (None), another of its file (tool_use, say), or a named one.

        UsageError where there is no such template.
        """
        tokenizer, file = model.tokenizer, model._core.file
        key = "tokenizer.chat_template" + ("" if name is None else f".{name}")
        source = file.find_string(key)
        bos, eos = ("" if i is None else tokenizer.id_to_token(i) for i in (tokenizer.bos_id, tokenizer.eos_id))
        if source is not None:
            return cls(source.decode(errors="replace"), bos_token=bos, eos_token=eos, name=key)
        if name in _NAMED:
            text = resources.files(__package__).joinpath("chat_templates", f"{name}.jinja").read_text(encoding="utf-8")
            return cls(text, bos_token=bos, eos_token=eos, name=name, stop=_NAMED[name], complete=False)
        wanted = f"one of {', '.join(_NAMED)}"
        if name is None:
            raise _core.UsageError(f"chat: the model's file has no {key}; name a template: {wanted}")
        raise _core.UsageError(f"chat template: found {name!r}, wanted {wanted}")

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The prompt of a conversation.

        messages   dictionaries with `role` and `content`, as in OpenAI's interface
        tools      descriptions of functions, for templates that know them
        variables  further ones that a template reads (enable_thinking, say)

        UsageError with the template's own words where it refuses the conversation; FormatError where it fails.
        """
        import minijinja

        refusals: list[str] = []

        def raise_exception(text: str) -> None:
            refusals.append(str(text))
            raise _Raised(text)

        context = {
            **self._tokens,
            **variables,
            "messages": [dict(message) for message in messages],
            "tools": None if tools is None else list(tools),
            "add_generation_prompt": add_generation_prompt,
            "raise_exception": raise_exception,
        }
        try:
            text = self._environment.render_template("chat", **context)
        except (minijinja.TemplateError, _Raised) as error:
            if refusals:
                raise _core.UsageError(f"{self.name}: {refusals[0]}") from None
            raise _core.FormatError(f"{self.name}: {_first_line(error)}") from None
        if len(text) > _MAX_TEXT:
            raise _core.FormatError(f"{self.name}: found {len(text)} characters, wanted at most {_MAX_TEXT}")
        return text


def _environment(source: str) -> minijinja.Environment:
    """As templates of Hugging Face's format expect it."""
    import minijinja

    return minijinja.Environment(
        templates={"chat": source},
        fuel=_FUEL,
        trim_blocks=True,
        lstrip_blocks=True,
        pycompat=True,
        auto_escape_callback=lambda name: False,
        filters={"tojson": _to_json},
        globals={"strftime_now": time.strftime},
    )


def _first_line(error: Exception) -> str:
    """Without the excerpt of the template that follows."""
    return str(error).split("\n", 1)[0]


def _to_json(value: Any, indent: int | None = None, **options: Any) -> str:
    """minijinja's own escapes for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent, **options)

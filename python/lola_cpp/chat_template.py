"""Chat templates: a model's own (Jinja, in its file) or a named one. Those of files are untrusted, and have limits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

from . import _core
from . import _template_engine as engine
from ._template_process import PROCESS

if TYPE_CHECKING:
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


class ChatTemplate:
    """Turns a conversation into a prompt. Immutable; threads may share it.

    source  Jinja text
    name    for messages of errors
    stop    strings that end the model's turn besides its end-of-text tokens
    complete  it writes begin-of-text itself where the model wants it, as templates of Hugging Face's format do
    trusted   it is rendered in this process. Others are in one of their own, which may take 10 s and, on Linux, 1 GiB
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
        trusted: bool = False,
    ) -> None:
        """FormatError where the source is no template."""
        self.source = source
        self.name = name
        self.stop = tuple(stop)
        self.complete = complete
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        try:
            self._environment = engine.compiled(source) if trusted else None
            if not trusted:
                PROCESS.check(source)
        except engine.TemplateFault as error:
            raise _core.FormatError(f"{name}: {error}") from None

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
            stop = _NAMED[name]
            return cls(text, bos_token=bos, eos_token=eos, name=name, stop=stop, complete=False, trusted=True)
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
        context = {
            **self._tokens,
            **variables,
            "messages": [dict(message) for message in messages],
            "tools": None if tools is None else list(tools),
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            if self._environment is not None:
                return engine.render(self._environment, context)
            return PROCESS.render(self.source, context)
        except engine.TemplateRefusal as error:
            raise _core.UsageError(f"{self.name}: {error}") from None
        except engine.TemplateFault as error:
            raise _core.FormatError(f"{self.name}: {error}") from None

"""Renders chat templates with minijinja. As a program it does so for _template_process.py, one JSON line a request.

It imports nothing of the package, whose modules would take longer to load than most templates to render.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import minijinja

FUEL = 5_000_000  # steps; the templates of today's models use some ten thousand for a long conversation
MAX_TEXT = 64 << 20  # characters of a rendered conversation
MAX_MEMORY = 1 << 30  # bytes of the process, most of it never touched


class TemplateFault(Exception):
    """The template is none, or cannot be rendered."""


class TemplateRefusal(Exception):
    """The template called raise_exception, with these words."""


def compiled(source: str) -> minijinja.Environment:
    """As templates of Hugging Face's format expect it. TemplateFault where the source is no template."""
    import minijinja

    environment = minijinja.Environment(
        fuel=FUEL,
        trim_blocks=True,
        lstrip_blocks=True,
        pycompat=True,
        auto_escape_callback=lambda name: False,
        filters={"tojson": _to_json},
        globals={"strftime_now": time.strftime},
    )
    try:
        environment.add_template("chat", source)
    except Exception as error:  # minijinja's own, or a string that UTF-8 cannot hold
        raise TemplateFault(_first_line(error)) from None
    return environment


def render(environment: minijinja.Environment, context: Mapping[str, Any]) -> str:
    """TemplateRefusal where the template refuses the conversation, TemplateFault where it fails."""
    refusals: list[str] = []

    def raise_exception(text: object) -> None:
        refusals.append(str(text))
        raise TemplateRefusal

    try:
        text = environment.render_template("chat", **context, raise_exception=raise_exception)
    except Exception as error:
        if refusals:
            raise TemplateRefusal(refusals[0]) from None
        raise TemplateFault(_first_line(error)) from None
    if len(text) > MAX_TEXT:
        raise TemplateFault(f"found {len(text)} characters, wanted at most {MAX_TEXT}")
    return str(text)


def _first_line(error: Exception) -> str:
    """Without the excerpt of the template that follows."""
    return (str(error) or type(error).__name__).split("\n", 1)[0]


def _to_json(value: Any, indent: int | None = None, **options: Any) -> str:
    """minijinja's own escapes for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent, **options)


def _limit_memory() -> None:
    """An allocation beyond it ends the process. macOS takes the call and ignores it; Windows has none."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))


def _answer(request: Mapping[str, Any], known: dict[str, minijinja.Environment]) -> dict[str, str]:
    source, context = request["source"], request["context"]
    try:
        if source not in known:
            known.clear()  # one model's template, as a rule
            known[source] = compiled(source)
        return {"text": "" if context is None else render(known[source], context)}
    except TemplateRefusal as error:
        return {"refusal": str(error)}
    except TemplateFault as error:
        return {"fault": str(error)}


def main() -> None:
    sys.path.append(sys.argv[1])  # where minijinja lies
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever asked
    _limit_memory()
    known: dict[str, minijinja.Environment] = {}
    for line in sys.stdin.buffer:
        answer = _answer(json.loads(line), known)
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()

"""`lola-cpp chat`: a conversation in the terminal."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from ..chat import Chat
from .shared import add_model_options, add_session_options, bar, load_model, megabytes, session_options

if TYPE_CHECKING:
    from .shared import Subcommands

_HELP = "An empty line is sent too; /undo takes the last turn back, Ctrl-C stops an answer, Ctrl-D or /exit ends."


def add(commands: Subcommands) -> None:
    parser = commands.add_parser("chat", help="talk with a model")
    add_model_options(parser)
    add_session_options(parser)
    parser.add_argument("--template", help="a named chat template; default: the model's own")
    parser.add_argument("--system", help="what the model is told before the first turn")
    parser.add_argument("-n", "--max-tokens", type=int, default=1024, help="of an answer")
    parser.add_argument("--temperature", type=float, default=0.7)
    parser.add_argument("--top-p", type=float, default=0.95)
    parser.add_argument("--min-p", type=float, default=0.05)
    parser.add_argument("--seed", type=int, help="default: a fresh one")
    parser.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    model = load_model(options)
    chat = Chat(model, system=options.system, template=options.template, **session_options(options))
    if sys.stdin.isatty():
        print(f"{model.info.name or model.path}; {model.info.backend}\n{_HELP}", file=sys.stderr)
    while True:
        try:
            turn = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return 0
        if turn == "/exit":
            return 0
        if turn == "/undo":
            chat.undo()
            continue
        _answer(chat, turn, options)


def _answer(chat: Chat, turn: str, options: argparse.Namespace) -> None:
    with bar(0, "reading") as progress:
        reply = chat.send(
            turn,
            progress=lambda done: progress.update(done - progress.n) and None,
            max_tokens=options.max_tokens,
            temperature=options.temperature,
            top_p=options.top_p,
            min_p=options.min_p,
            seed=options.seed,
        )
        try:
            for part in reply:
                progress.close()
                print(part.content, end="", flush=True)
        except KeyboardInterrupt:
            reply.cancel()
    print()
    session = chat.session
    print(f"[{session.position:,} tokens, {megabytes(session.memory_bytes)}]", file=sys.stderr)

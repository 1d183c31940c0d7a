"""What a model can do, predicts and says: eval, peek, chat."""

from __future__ import annotations

import argparse
import shutil
import sys
from typing import Any

from dunwu.commands.command import DATA, SEED, SET, TASK, Command, Result, arg, show_nothing
from dunwu.types import UsageError

_MODEL = arg("model", metavar="MODEL", help="a model folder, or a run's stage such as runs/x:r1-zero")


def _eval(args: argparse.Namespace) -> Result:
    from dunwu.store import resolve_model
    from dunwu.tasks import get_task, task_options

    options = task_options(args.set, args.data)
    get_task(args.task, **options)  # a wrong name is told before torch loads
    folder = resolve_model(args.model)
    from dunwu.eval.evaluate import evaluate_model

    return evaluate_model(
        str(folder),
        args.task,
        n=args.n,
        samples=args.samples,
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        seed=args.seed,
        device=args.device,
        **options,
    )


def _show_eval(result: Result, indent: str = "") -> None:
    for name, value in result.items():
        if isinstance(value, dict):
            if {"low", "high"} <= value.keys():
                middle = value.get("mean", value.get("value"))
                print(f"{indent}{name:12} {middle:.4f}  (95%: {value['low']:.4f} to {value['high']:.4f})")
            else:
                print(f"{indent}{name}")
                _show_eval(value, indent + "  ")
        else:
            print(f"{indent}{name:12} {value:.4g}" if isinstance(value, float) else f"{indent}{name:12} {value}")


EVAL = Command(
    "pass@1, pass@k, cons@k with 95% intervals, lengths, behaviours",
    _eval,
    _show_eval,
    (
        _MODEL,
        TASK,
        arg("--n", type=int, default=256, help="held-out problems (256)"),
        arg("--samples", type=int, default=1, metavar="K", help="samples per problem (1)"),
        arg("--max-tokens", type=int, default=256, help="longest completion (256)"),
        arg("--temperature", type=float, default=1.0, help="0 is greedy (1)"),
        SEED,
        arg("--device", default="auto", help="cpu, cuda, mps or auto"),
        DATA,
        SET,
    ),
)


class _Omissible(argparse.Action):
    """A positional that may be missing. argparse settles its own, "?", at the first flag, and loses a word behind it."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.required = False

    def __call__(self, parser: object, namespace: argparse.Namespace, values: Any, option: object = None) -> None:
        setattr(namespace, self.dest, values)


def _peek(args: argparse.Namespace) -> Result:
    models, text = _models_and_text(args)
    from dunwu.eval.peek import peek

    return peek(models[0], text, args.top, models[1:], args.chat, args.device)


def _models_and_text(args: argparse.Namespace) -> tuple[list[str], str]:
    """Which words are models, and which one is the text.

    `--compare` takes every word behind it: in `--compare A B TEXT` the last is the text; and in `TEXT --compare A B` the
    text stands in MODEL's place. Of the two the text is the one that looks less like a model.
    """
    from dunwu.eval.peek import is_run, names_model
    from dunwu.hub import is_hub_name

    words = [word for word in (args.model, args.text) if word is not None]
    models, text = [*words, *args.compare], args.given_text
    if text is None and len(words) == 2:
        text = models.pop(1)
    elif text is None and models:
        ends = (len(models) - 1, 0) if words else (len(models) - 1,)
        place = min(ends, key=lambda end: 2 if names_model(models[end]) else int(is_hub_name(models[end])))
        text = None if names_model(models[place]) else models.pop(place)
    if text is None or not models:
        missing = "there is no text to continue" if models else "there is no model to look into"
        raise UsageError(f"peek: {missing}", "dunwu peek MODEL TEXT [--compare MODEL2], or --text TEXT anywhere")
    if args.compare and len(models) == 1 and not is_run(models[0]):
        raise UsageError(f"peek: {models[0]} has nothing beside it", "name two models and a text")
    return models, text


def _show_peek(result: Result) -> None:
    from dunwu.eval.peek_view import peek_lines
    from dunwu.serve.terminal import wants_colour

    width = shutil.get_terminal_size((100, 24)).columns
    print("\n".join(peek_lines(result, width, wants_colour(sys.stdout))))


PEEK = Command(
    "next-token tables: of a model, of several side by side, of every stage of a run",
    _peek,
    _show_peek,
    (
        arg("model", metavar="MODEL", action=_Omissible, help="a model folder, RUN:STAGE, or a run: all its models"),
        arg("text", metavar="TEXT", action=_Omissible, help="what the models continue"),
        arg("--top", type=int, default=10, help="rows of each model (10)"),
        arg("--compare", nargs="+", default=[], metavar="MODEL2", help="models beside the first, each a column"),
        arg("--text", dest="given_text", metavar="TEXT", help="the text, where words could be mistaken"),
        arg("--chat", action="store_true", help="the text is a user's turn: how does the reply begin?"),
        arg("--device", default="auto", help="cpu, cuda, mps or auto"),
    ),
)


def _chat(args: argparse.Namespace) -> Result:
    from dunwu.rollout.endpoint import Endpoint, is_url
    from dunwu.store import resolve_model

    remote = is_url(args.model)
    if remote and not args.model_name:
        raise UsageError(f"{args.model} serves models by name", "name one: --model-name NAME")
    if args.prompt is None and args.json and sys.stdin.isatty():
        raise UsageError("--json has nothing to ask", "give --prompt TEXT, or questions on stdin")
    folder = None if remote else resolve_model(args.model)
    from dunwu.serve.session import Sitting, sit
    from dunwu.serve.speaker import RemoteSpeaker, open_speaker

    sitting = Sitting(
        prompt=args.prompt,
        system=args.system,
        seed=args.seed,
        temperature=args.temperature,
        max_tokens=args.max_tokens,
        fold=args.fold,
        language=args.lang,
        quiet=args.json,
    )
    if folder is None:
        return sit(RemoteSpeaker(Endpoint(args.model, args.model_name)), sitting)
    return sit(open_speaker(folder, args.model, args.frame, args.device), sitting)


CHAT = Command(
    "talk to a model: its thinking dim, its answer bold, English and Chinese",
    _chat,
    show_nothing,
    (
        arg("model", metavar="MODEL", help="a model folder, RUN:STAGE, or the URL of a chat server"),
        arg("--model-name", default="", metavar="NAME", help="the model a server is asked for"),
        arg("--prompt", metavar="TEXT", help="one question, then leave (else every line of stdin is a turn)"),
        arg("--system", default="", metavar="TEXT", help="said before the conversation"),
        arg("--max-tokens", type=int, default=512, help="longest reply (512)"),
        arg("--temperature", type=float, default=0.7, help="0 is greedy (0.7)"),
        SEED,
        arg("--fold", action="store_true", help="begin with folded thinking; /think unfolds it"),
        arg("--frame", choices=("auto", "chat", "zero"), default="auto", help="in turns, or in R1-Zero's template"),
        arg("--lang", choices=("auto", "en", "zh"), default="auto", help="of the interface; auto asks the locale"),
        arg("--device", default="auto", help="cpu, cuda, mps or auto"),
    ),
)

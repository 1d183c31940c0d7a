"""What a model can do, predicts and says: eval, peek, chat."""

from __future__ import annotations

import argparse
import sys

from dunwu.commands.command import DATA, SEED, SET, TASK, Command, Result, arg, print_table, show_nothing
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


def _peek(args: argparse.Namespace) -> Result:
    from dunwu.store import resolve_model

    model = resolve_model(args.model)
    other = resolve_model(args.compare) if args.compare else None
    from dunwu.eval.peek import peek

    return peek(str(model), args.text, args.top, str(other) if other else None)


def _show_peek(result: Result) -> None:
    for model, table in (("model", "next"), ("compare", "compare_next")):
        if table in result:
            print(result[model])
            print_table([[f"{row['id']}", repr(row["token"]), f"{row['probability']:.4f}"] for row in result[table]])


PEEK = Command(
    "next-token table: id, token, probability",
    _peek,
    _show_peek,
    (
        _MODEL,
        arg("text", metavar="TEXT", help="what the model continues"),
        arg("--top", type=int, default=10, help="rows (10)"),
        arg("--compare", metavar="MODEL2", help="a second model, beside the first"),
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

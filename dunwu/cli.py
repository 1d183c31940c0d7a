"""The `dunwu` command: words in, one function call, result out. No logic, and no torch until a command needs it.

With `--json` a command's result is printed as one JSON object, alone, on stdout; all else goes to stderr.
The exit code is 0 done, 1 failed, 2 wrong use, 130 interrupted; an error is one line: what, where, cure.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, NoReturn

from dunwu import __version__
from dunwu.commands import COMMANDS
from dunwu.types import DunwuError, UsageError


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are one line, and which remembers its flags to name the nearest."""

    def __init__(self, prog: str, summary: str = "") -> None:
        self.flags: list[str] = []
        super().__init__(prog=prog, description=summary, allow_abbrev=False)
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def add_argument(self, *names: str, **settings: Any) -> argparse.Action:
        """As in argparse; flags are remembered."""
        action = super().add_argument(*names, **settings)
        self.flags += [name for name in action.option_strings if name.startswith("--")]  # also the --no-… of a switch
        return action

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog.removeprefix('dunwu ')}: {message}", f"see {self.prog} --help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0 done, 1 failed, 2 wrong use, 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a character shows "?", and the work goes on
    try:
        return _dispatch(words)
    except BrokenPipeError:  # the reader left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        again = "; the same command resumes" if words[:1] == ["run"] or words[:2] == ["data", "build"] else ""
        return _fail(f"interrupted{again}", 130, words)
    except DunwuError as error:
        return _fail(str(error), error.exit_code, words)
    except Exception as error:  # noqa: BLE001  (the last door: every failure is one line)
        return _fail(_explain(error), 1, words)


def _dispatch(words: list[str]) -> int:
    if words[:1] == ["--debug"]:
        words = [*words[1:], "--debug"]
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if words[0] in ("-V", "--version"):
        print(f"dunwu {__version__}")
        return 0
    name = " ".join(words[:2])
    if name not in COMMANDS:
        name = words[0]
    if name not in COMMANDS:
        return _no_command(words)
    command = COMMANDS[name]
    parser = Parser(f"dunwu {name}", command.summary)
    for names, settings in command.arguments:
        parser.add_argument(*names, **settings)
    if command.as_json:
        parser.add_argument("--json", action="store_true", help="print one JSON object on stdout, nothing else there")
    rest = words[len(name.split()) :]
    if name == "run" and {"-h", "--help"} & set(rest):
        print(_run_help(parser, rest))
        return 0
    if not command.open_ended:
        _check_flags(name, rest, parser.flags)
    args, unread = parser.parse_known_args(rest)
    if unread and not command.open_ended:
        raise _not_understood(name, unread[0], parser.flags)
    args.rest, args.flags = unread, parser.flags
    args.stdout = sys.stdout
    with contextlib.redirect_stdout(sys.stderr) if getattr(args, "json", False) or name == "score" else _nothing():
        result = command.run(args)
    if getattr(args, "json", False):
        print(_json(result))
    else:
        command.show(result)
    sys.stdout.flush()
    return 1 if result.get("ok") is False else 0


_nothing = contextlib.nullcontext


def _check_flags(name: str, rest: Sequence[str], flags: Sequence[str]) -> None:
    """An unknown flag is told first: argparse would rather complain of what is then missing."""
    for word in rest:
        if word == "--":
            return
        if word.startswith("--") and word.split("=", 1)[0] not in flags:
            raise _not_understood(name, word, flags)


def _json(result: dict[str, Any]) -> str:
    from dunwu.disk import finite, plain

    is_utf = "utf" in (sys.stdout.encoding or "").lower()
    return json.dumps(finite(plain(result)), ensure_ascii=not is_utf, allow_nan=False)


def _help() -> str:
    lines = ["usage: dunwu COMMAND …", "", "DeepSeek-R1's pipeline, from web pages to a reasoning model.", ""]
    width = max(map(len, COMMANDS)) + 2
    lines += [f"  {name:{width}}{command.summary}" for name, command in COMMANDS.items()]
    return "\n".join([*lines, "", "`dunwu COMMAND --help` shows a command's flags."])


def _run_help(parser: Parser, rest: Sequence[str]) -> str:
    """The flags of `dunwu run`, and those of the recipe if one is named."""
    from dunwu.recipes import RECIPES, get_recipe
    from dunwu.recipes.flags import flags_help

    named = [word for word in rest if not word.startswith("-")]
    if not named:
        return f"{parser.format_help()}\nrecipes: {', '.join(RECIPES)}; `dunwu run RECIPE --help` shows its flags"
    recipe = get_recipe(named[0])
    preset = next((name for name in named[1:] if name in recipe.presets), recipe.default_preset)
    return f"{parser.format_help()}\n{recipe.name}, preset {preset}:\n{flags_help(recipe.presets[preset])}"


def _no_command(words: Sequence[str]) -> int:
    """A group's name alone lists the group; anything else is an error that names the nearest command."""
    group = [name for name in COMMANDS if name.startswith(words[0] + " ")]
    if group and words[1:2] in (["-h"], ["--help"]):
        print("\n".join(f"  dunwu {name:18} {COMMANDS[name].summary}" for name in group))
        return 0
    if group and len(words) == 1:
        raise UsageError(f"{words[0]} needs a word more", f"one of {', '.join(group)}")
    if group:
        raise _not_understood(words[0], words[1], [])
    near = get_close_matches(words[0], [name.split()[0] for name in COMMANDS], n=1, cutoff=0.5)
    raise UsageError(f"unknown command {words[0]!r}", f"did you mean {near[0]!r}?" if near else "see dunwu --help")


def _not_understood(name: str, word: str, flags: Sequence[str]) -> UsageError:
    if word.startswith("-"):
        near = get_close_matches(word.split("=", 1)[0], flags, n=1, cutoff=0.5)
        return UsageError(f"{name}: unknown flag {word}", f"did you mean {near[0]}?" if near else "see --help")
    near = get_close_matches(f"{name} {word}", [other for other in COMMANDS if other.startswith(name + " ")], n=1)
    return UsageError(
        f"dunwu {name}: {word!r} is not understood", f"did you mean 'dunwu {near[0]}'?" if near else "see --help"
    )


def _explain(error: Exception) -> str:
    """One line for a failure that is not ours by name."""
    from dunwu.disk import explain_os_error

    if isinstance(error, OSError):
        known = explain_os_error(error)
        if known is not None:
            return str(known)
        if error.filename is not None:
            return f"{error.strerror}: {error.filename}"
    if "No space left on device" in str(error):  # libraries wrap it in errors of their own
        return str(explain_os_error(OSError(28, "")))
    first = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first} (unexpected; --debug shows where)"


def _fail(message: str, code: int, words: Sequence[str]) -> int:
    if "--debug" in words:
        traceback.print_exc()
    print(f"dunwu: {' '.join(message.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    raise SystemExit(main())

"""A recipe's config from the command line: `--grpo.steps 10` sets `config.grpo.steps`. Reading is tyro's work."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import Any, TypeVar

import tyro

from dunwu.types import UsageError

Config = TypeVar("Config")


def parse_flags(preset: Config, arguments: Sequence[str], also: Sequence[str] = ()) -> Config:
    """`preset` with the fields the arguments set.

    Args:
        preset: a frozen dataclass instance; nested dataclasses give dotted flags.
        also: flags the caller reads itself, named when one of them is nearest to an unknown one.

    Raises:
        UsageError: one line naming the unknown flag and the nearest known, or the bad value.

    Example:
        >>> @dataclasses.dataclass(frozen=True)
        ... class Knobs:
        ...     steps: int = 3
        >>> parse_flags(Knobs(), ["--steps", "10"])
        Knobs(steps=10)
    """
    known = list(flag_names(preset))
    for argument in arguments:
        flag = argument.split("=", 1)[0].replace("-", "_").replace("__", "--", 1)
        if argument.startswith("--") and flag not in known:
            raise unknown_flag(argument.split("=", 1)[0], [*also, *known])
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(errors):
            return _read(preset, arguments)
    except SystemExit:
        raise UsageError(_one_line(errors.getvalue()), "see --help") from None


def flags_help(preset: Any) -> str:
    """The help text of a recipe's flags, each with its preset's value."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        _read(preset, ["--help"])
    lines = text.getvalue().splitlines()
    start = next((n for n, line in enumerate(lines) if "options" in line), 0)
    return "\n".join(line.rstrip() for line in lines[start:])


def flag_names(config: Any, prefix: str = "--") -> Iterator[str]:
    """Every flag of a config, nested ones dotted, switches also with `no_`."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from flag_names(value, f"{prefix}{field.name}.")
            continue
        yield f"{prefix}{field.name}"
        if isinstance(value, bool):
            yield f"{prefix}no_{field.name}"


def unknown_flag(flag: str, known: Sequence[str]) -> UsageError:
    """The error for a flag nobody knows: names the nearest, also when only its last part is right."""
    near = get_close_matches(flag, known, n=1, cutoff=0.5)
    last = flag.lstrip("-").replace("-", "_").rpartition(".")[2]
    near = [name for name in known if name.rpartition(".")[2].lstrip("-") == last] or near
    return UsageError(f"unknown flag {flag}", f"did you mean {near[0]}?" if near else "see --help")


def _read(preset: Config, arguments: Sequence[str]) -> Config:
    kind: type[Config] = type(preset)
    return tyro.cli(kind, args=list(arguments), default=preset, use_underscores=True, prog="dunwu run RECIPE")


def _one_line(box: str) -> str:
    """The first message of tyro's framed error text: what stands between the first rule and the second."""
    words: list[str] = []
    inside = False
    for line in box.splitlines():
        text = line.strip("│ ")
        if line.startswith("╭") or (text and set(text) <= {"─", "-"}):
            if words:
                break
            inside = True
        elif inside:
            words += text.split()
    return " ".join(words) or "the flags could not be read"

"""`dunwu score`: a stream of JSON lines in, a verdict for each out, in order, none lost.

A line in is `{"problem": {...}, "completion": "..."}`; a line out is `Verdict.to_json()`. A line that cannot be read
(not JSON, not UTF-8, a field missing, blank) gets a verdict with status "error" and the reason; so does one whose verifier
raises, which would be a defect of the verifier. Lines out are ASCII, so any terminal or pipe can take them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TextIO

from dunwu.types import Completion, DunwuError, Problem, Task, Verdict

_encode = json.JSONEncoder(ensure_ascii=True, allow_nan=False).encode


def score_stream(task: Task, lines: Iterable[str | bytes], out: TextIO) -> dict[str, int]:
    """Score every line, write as many lines, and return how many there were by status, and in all ("lines").

    Args:
        task: the verifier.
        lines: a JSON object each; give `sys.stdin.buffer`, so that a line of broken UTF-8 fails alone.
        out: takes a line at a time; flushing is the caller's.
    """
    counts = {"lines": 0, "ok": 0, "unparsable": 0, "timeout": 0, "error": 0}
    write = out.write
    for line in lines:
        verdict = score_line(task, line)
        counts["lines"] += 1
        counts[verdict.status] += 1
        write(_encode(verdict.to_json()) + "\n")
    return counts


def score_line(task: Task, line: str | bytes) -> Verdict:
    """The verdict of one line; never raises for anything a line can contain."""
    try:
        record = json.loads(line)
    except UnicodeDecodeError:
        return _error("line is not UTF-8")
    except RecursionError:
        return _error("line is nested too deeply")
    except ValueError as error:
        return _error(f"line is not JSON: {error}" if line.strip() else "line is empty")
    if not isinstance(record, dict):
        return _error('line is not an object {"problem": {...}, "completion": "..."}')
    data, completion = record.get("problem"), record.get("completion")
    if not isinstance(data, dict):
        return _error('"problem" is not an object')
    if not isinstance(completion, str):
        return _error('"completion" is not a string')
    try:
        return task.score(Problem(task.name, "", data, ""), completion)
    except Exception as error:  # noqa: BLE001 - a verifier that raises is a counted error, not a zero and not a crash
        return _error(f"verifier raised {type(error).__name__}: {error}")


def judge(task: Task, problems: Sequence[Problem], completions: Sequence[Completion]) -> list[Verdict]:
    """A verdict for each (problem, completion), in order: in one call where the task judges many at once.

    A task may offer `score_completions(problems, completions)`, which sees token ids too, or `score_all(problems,
    texts)` (`types.BatchTask`); else its `score` is asked one by one.
    """
    many = getattr(task, "score_completions", None)
    if many is not None:
        verdicts = list(many(problems, completions))
    elif (score_all := getattr(task, "score_all", None)) is not None:
        verdicts = list(score_all(problems, [completion.text for completion in completions]))
    else:
        return [task.score(p, c.text) for p, c in zip(problems, completions, strict=True)]
    if len(verdicts) != len(problems):
        raise DunwuError(
            f"task {task.name} gave {len(verdicts)} verdicts for {len(problems)} completions", "give one for each"
        )
    return verdicts


def judge_groups(
    task: Task, problems: Sequence[Problem], groups: Sequence[Sequence[Completion]]
) -> list[list[Verdict]]:
    """`judge` for several completions of each problem."""
    repeated = [problem for problem, group in zip(problems, groups, strict=True) for _ in group]
    verdicts = iter(judge(task, repeated, [completion for group in groups for completion in group]))
    return [[next(verdicts) for _ in group] for group in groups]


def _error(reason: str) -> Verdict:
    return Verdict({}, 0.0, "error", reason)

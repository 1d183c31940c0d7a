"""What a thought does, read from its trace: sums, tries, checks, backtracks, subgoals.

`analyse` reads ONE Countdown completion against its problem; `aggregate` turns groups of them into
the `emergence/*` metrics of docs/metrics.md. The definitions, in one place:

* equation: `expression = value`, true or false by exact arithmetic on what is written.
* try: sums that end in a comparison with the target: a verdict ("no", "not 24", "yes", 不对, 对了,
  ✓, ✗, …) or a last stated value equal to the target. Steps are composed: `12-7=5, 5*3=15` is the
  expression (12-7)*3, whose exact value is what counts, not the value the text states.
* works: a try's exact value is the target and it uses every number of the problem exactly once
  (inside a subgoal: its value is one of the values needed and the kept numbers complete the set).
* check: a try closed by an explicit verdict. True: every sum of the try is right and so is the
  verdict. False: it claims to work and does not (`false_success`), or claims not to and does
  (`false_failure`). A right verdict on a wrong sum is neither; it is an `unsound` check.
* backtrack: a try judged a failure with another attempt after it.
* subgoal: "keep 7", "need 17", 留7, 要17. Backward chaining: an equation that starts from the
  target, such as `24-7=17`.

The measures follow the four behaviours of arXiv 2503.01307 (verification, backtracking, subgoal
setting, backward chaining), counted by this parser instead of a language model, and the word count
of arXiv 2501.12948. Reading takes linear time and never raises on any text.

Not covered: tasks other than Countdown get word counts only; prose that judges without sums
("that looks too small") is no try; the sense of a sentence is never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dunwu.eval.fragments import MAX_OPERANDS
from dunwu.eval.thought import read_thought
from dunwu.eval.trace import Span, Trace
from dunwu.tasks.expression import ExpressionError, Rational, evaluate
from dunwu.tasks.formats import ANSWER, ANSWER_END, THINK_END, split_completion
from dunwu.types import Group

REFLECTION = re.compile(
    r"(?P<wait>\bwait\b|等等|等一下)"
    r"|\b(?:mistakes?|however|but|retry|errors?|verify|wrong|evaluate|check)\b"
    r"|不对|错|但是|然而|重新|再试|检查|验证|换一个",
    re.IGNORECASE,
)
"""The paper's list (wait, mistake, however, but, retry, error, verify, wrong, evaluate, check) and its Chinese likeness."""
_GIVE_UP = re.compile(r"\bg[ai]ve\s+up\b|\bno\s+solution\b|\bimpossible\b|放弃|算了|无解", re.IGNORECASE)


def analyse(problem_data: Mapping[str, Any], completion_text: str) -> Trace:
    """Read one completion.

    Args:
        problem_data: `{"numbers": [...], "target": n}`; anything else gives word counts only.
        completion_text: with or without the opening `<think>` (the prompt may hold it).

    Returns:
        The trace; never raises for any text, in time linear in its length.

    Example:
        >>> trace = analyse({"numbers": [3, 5, 9], "target": 24}, "3*5=15, 15+9=24, yes!</think>")
        >>> trace.tries[0].is_true_check
        True
    """
    numbers, target = _problem(problem_data)
    thought_end, answer_start, answer_end = _parts(completion_text)
    thought = read_thought(completion_text, thought_end, numbers, target) if target is not None else None
    words = list(REFLECTION.finditer(completion_text, 0, thought_end))
    give_up = _GIVE_UP.search(completion_text, 0, thought_end)
    spans = list(thought.spans) if thought else []
    spans += [Span(m.start(), m.end(), "reflection", None) for m in words]
    if give_up:
        spans.append(Span(give_up.start(), give_up.end(), "give_up", None))
    answer = split_completion(completion_text).answer
    works = None if answer is None or target is None else _answer_works(answer, numbers, target)
    spans.append(Span(answer_start, answer_end, "answer", works))
    return Trace(
        equations=tuple(thought.equations) if thought else (),
        tries=tuple(thought.tries) if thought else (),
        subgoals=thought.subgoals if thought else 0,
        backtracks=thought.backtracks if thought else 0,
        reflections=len(words),
        waits=sum(m.group("wait") is not None for m in words),
        gave_up=give_up is not None,
        answer=None if answer is None else answer.strip(),
        answer_works=works,
        spans=_without_overlap(spans),
    )


def annotate(problem_data: Mapping[str, Any], text: str) -> list[tuple[int, int, str, bool | None]]:
    """Spans `(start, end, kind, is_true)` of a completion to colour: sorted, not overlapping, not empty."""
    return [(s.start, s.end, s.kind, s.is_true) for s in analyse(problem_data, text).spans]


@dataclass(frozen=True)
class Sample:
    """What `aggregate` needs of a rollout.

    Attributes:
        text: the completion.
        length: its tokens.
        right: the verifier's accuracy verdict; None where there is none (an error that is ours).
    """

    text: str
    length: int
    right: bool | None


def aggregate(groups: Iterable[Group | Mapping[str, Any]]) -> dict[str, float]:
    """The `emergence/*` metrics of one step: means over completions unless docs/metrics.md says else.

    Args:
        groups: groups in memory, or their records from `rollouts.jsonl.zst`.

    Returns:
        Finite numbers only: a ratio whose denominator is zero, or the mean length of no completions, has no key.
    """
    totals: dict[str, float] = {}
    lengths: dict[str, list[int]] = {"all": [], "right": [], "wrong": []}
    distinct_per_problem: list[int] = []

    def add(key: str, value: float) -> None:
        totals[key] = totals.get(key, 0.0) + value

    for group in groups:
        problem, samples = _samples(group)
        seen: set[str] = set()
        for sample in samples:
            trace = analyse(problem, sample.text)
            seen |= trace.distinct
            lengths["all"].append(sample.length)
            if sample.right is not None:
                lengths["right" if sample.right else "wrong"].append(sample.length)
            for key, value in counts(trace).items():
                add(key, value)
        distinct_per_problem.append(len(seen))
    n = len(lengths["all"])
    if not n:
        return {}
    metrics = {f"emergence/{key}": total / n for key, total in totals.items()}
    metrics |= {f"emergence/length_{kind}": sum(of) / len(of) for kind, of in lengths.items() if of}
    metrics["emergence/distinct_per_problem"] = sum(distinct_per_problem) / len(distinct_per_problem)
    if totals["equations"]:
        metrics["emergence/equation_accuracy"] = totals["true_equations"] / totals["equations"]
    if totals["verifications"]:
        metrics["emergence/check_accuracy"] = totals["true_checks"] / totals["verifications"]
    return metrics


def counts(trace: Trace) -> dict[str, float]:
    """One completion's numbers, by the name they have after `emergence/`."""
    true_equations = sum(e.is_true for e in trace.equations)
    attempted = sum(len(t.expressions) for t in trace.tries)
    false_checks = trace.false_success + trace.false_failure
    return {
        "equations": len(trace.equations),
        "true_equations": true_equations,
        "false_equations": len(trace.equations) - true_equations,
        "tries": len(trace.tries),
        "distinct_expressions": len(trace.distinct),
        "repeated_expressions": attempted - len(trace.distinct),
        "verifications": trace.verifications,
        "true_checks": trace.true_checks,
        "false_checks": false_checks,
        "false_success": trace.false_success,
        "false_failure": trace.false_failure,
        "unsound_checks": trace.verifications - trace.true_checks - false_checks,
        "backtracks": trace.backtracks,
        "subgoals": trace.subgoals,
        "backward_chains": sum(e.backward for e in trace.equations),
        "reflection_words": trace.reflections,
        "wait_words": trace.waits,
        "gave_up": float(trace.gave_up),
        "answered": float(trace.answer is not None),
        "answer_works": float(trace.answer_works is True),
        "answer_fails": float(trace.answer_works is False),
    }


def _samples(group: Group | Mapping[str, Any]) -> tuple[Mapping[str, Any], list[Sample]]:
    if isinstance(group, Group):
        return group.problem.data, [
            Sample(r.completion.text, len(r.completion.token_ids), _right(r.verdict.rewards, r.verdict.status))
            for r in group.rollouts
        ]
    return group["problem"], [
        Sample(r["completion"], r["length"], _right(r["rewards"], r["status"])) for r in group["rollouts"]
    ]


def _right(rewards: Mapping[str, float], status: str) -> bool | None:
    accuracy = rewards.get("accuracy")
    return None if accuracy is None or status in ("timeout", "error") else accuracy > 0


def _problem(data: Mapping[str, Any]) -> tuple[tuple[Rational, ...], Rational | None]:
    numbers, target = data.get("numbers"), data.get("target")
    if (
        not isinstance(numbers, (list, tuple))
        or not all(type(n) is int for n in numbers)
        or type(target) is not int
        or len(numbers) > MAX_OPERANDS
    ):
        return (), None
    return tuple(sorted(numbers)), target


def _parts(text: str) -> tuple[int, int, int]:
    """End of the thought, start and end of the answer's text (equal where there is none)."""
    opened, think_end = text.find(ANSWER), text.rfind(THINK_END)
    thought_end = think_end if think_end >= 0 else opened if opened >= 0 else len(text)
    closed = text.find(ANSWER_END)
    if split_completion(text).answer is None:
        return thought_end, len(text), len(text)
    return thought_end, opened + len(ANSWER), closed


def _answer_works(answer: str, numbers: tuple[Rational, ...], target: Rational) -> bool:
    try:
        value, used = evaluate(answer)
    except ExpressionError:
        return False
    return value == target and tuple(sorted(used)) == numbers


def _without_overlap(spans: Iterable[Span]) -> tuple[Span, ...]:
    """Sorted; where two overlap, the one with a truth value stays (a verdict may be a reflection word too)."""
    kept: list[Span] = []
    for span in sorted(spans, key=lambda s: (s.start, s.is_true is None, -s.end)):
        if span.end <= span.start:
            continue
        if kept and span.start < kept[-1].end:
            if kept[-1].is_true is not None or span.is_true is None:
                continue
            kept.pop()
        kept.append(span)
    return tuple(kept)

"""Countdown as an exercise, in English and Chinese: the problems and the verifier of `countdown.py`, without its prompt."""

from __future__ import annotations

import ast
from collections.abc import Hashable
from dataclasses import replace

from dunwu.tasks.countdown import Countdown, CountdownConfig
from dunwu.tasks.expression import evaluate
from dunwu.tasks.formats import ANSWER, ANSWER_END, split_completion
from dunwu.tasks.language import check_share, draw_language
from dunwu.tasks.rewrite import rewrite
from dunwu.tasks.templates import question
from dunwu.types import Message, Problem, Verdict, derive_seed

_SIGNS: dict[type[ast.operator], str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}


class CountdownExercise:
    """The exercise: `dunwu.types.Exercise` for Countdown.

    Args:
        config: which problems are asked; its language and template are not used.
        chinese: share of the problems asked in Chinese.

    Example:
        >>> exercise = CountdownExercise(chinese=0.0)
        >>> problem = exercise.draw("test", seed=0, index=0)
        >>> problem.messages[0].content == question(problem.data["numbers"], problem.data["target"])
        True
    """

    name = "countdown"
    reasoning = True

    def __init__(self, config: CountdownConfig | None = None, chinese: float = 0.4) -> None:
        self.countdown = Countdown(config)
        self.chinese = check_share(self.name, "chinese", chinese)

    def draw(self, split: str, seed: int, index: int) -> Problem:
        """The problem of `Countdown` at this place, in the place's language.

        Raises:
            UsageError: unknown split, negative index. DunwuError: the config leaves the split empty.
        """
        drawn = self.countdown.problem(split, seed, index)
        language = draw_language(self.name, self.chinese, split, seed, index)
        asked = question(drawn.data["numbers"], drawn.data["target"], language)
        return replace(
            drawn,
            id=drawn.id + ("-zh" if language == "zh" else ""),
            data={**drawn.data, "language": language},
            prompt="",
            meta={**drawn.meta, "language": language, "family": self.name},
            messages=(Message("user", asked),),
        )

    def judge(self, problem: Problem, answer: str | None) -> Verdict:
        """The accuracy of `Countdown`."""
        if answer is None:
            fault = self.countdown.score(problem, "")
            if fault.status == "error":
                return fault
            return Verdict({"accuracy": 0.0}, 0.0, "unparsable", "no answer")
        verdict = self.countdown.score(problem, f"{ANSWER}{answer}{ANSWER_END}")
        if verdict.status == "error":
            return verdict
        accuracy = verdict.rewards["accuracy"]
        reason = None if accuracy else verdict.reason
        return Verdict({"accuracy": accuracy}, accuracy, verdict.status, reason, verdict.answer)

    def key(self, problem: Problem, answer: str | None) -> Hashable:
        """As `Countdown.answer_key`."""
        return self.countdown.answer_key(problem, answer)

    def solution(self, problem: Problem) -> Message:
        """The shortest solution in steps, in the style of `rewrite`.

        Raises:
            DunwuError: the problem is malformed or has no solution.
        """
        answer = str(split_completion(self.countdown.gold(problem)).answer)
        return rewrite(problem, ",".join(steps(answer)), answer, derive_seed(problem.id, "gold"))


def steps(expression: str) -> list[str]:
    """An expression worked out step by step, innermost first.

    Raises:
        ExpressionError: as `expression.evaluate`.

    Example:
        >>> steps("(12-7)*3")
        ['12-7=5', '5*3=15']
    """
    evaluate(expression)
    done: list[str] = []

    def value(node: ast.expr) -> str:
        if isinstance(node, ast.BinOp):
            left, right = value(node.left), value(node.right)
            # A fraction on the way is bracketed, as in 8/(1/3).
            shown = [f"({text})" if "/" in text else text for text in (left, right)]
            equation = _SIGNS[type(node.op)].join(shown)
            result = str(evaluate(ast.unparse(node)).value)
            done.append(f"{equation}={result}")
            return result
        return ast.unparse(node)

    value(ast.parse(expression, mode="eval").body)
    return done

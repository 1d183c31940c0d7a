"""Fuzz the Countdown verifier against an oracle written another way: `python tests/fuzz_countdown.py --n 1000000`.

Each case is a problem and a completion: a gold or a random one, put through up to four mutations that imitate what a
policy under reward pressure writes (other operators, other scripts, second answers, moved tags, equations, truncation, …).
Both rewards must equal the oracle's, in both directions; nothing may raise or take longer than 0.2 s of processor time.

The oracle shares no code with `dunwu`: a recursive-descent parser over pairs of ints instead of `ast` and Fraction, one
regular expression for the format instead of searches. Not collected by pytest, which runs a small share of it
(`tests/tasks/test_countdown_fuzz.py`).
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import time
from collections import Counter
from math import gcd
from typing import NoReturn

from dunwu.tasks import get_task
from dunwu.types import Problem

Pair = tuple[int, int]

# --- the oracle ----------------------------------------------------------------------------------------------------

_INSIDE = r"(?:(?!</?think>|</?answer>).)*"
_WELL_FORMED = re.compile(
    rf"[ \t\r\n]*<think>{_INSIDE}</think>[ \t\r\n]*<answer>{_INSIDE}</answer>[ \t\r\n]*", re.DOTALL
)
_TAG = re.compile(r"</?think>|</?answer>")
_TOKEN = re.compile(r"[0-9]+|[-+*/()×÷−]|[ \t\r\n]+|.", re.DOTALL)


class Refused(Exception):
    """The oracle cannot read the answer."""


def oracle(numbers: list[int], target: int, completion: str) -> tuple[float, float]:
    """(accuracy, format) that a completion deserves."""
    return float(_deserves(numbers, target, completion)), float(_WELL_FORMED.fullmatch(completion) is not None)


def _deserves(numbers: list[int], target: int, completion: str) -> bool:
    tags = list(_TAG.finditer(completion))
    answers = [tag for tag in tags if "answer" in tag.group()]
    if [tag.group() for tag in answers] != ["<answer>", "</answer>"]:
        return False
    if any(tag.group() == "</think>" and tag.start() > answers[0].start() for tag in tags):
        return False
    try:
        top, bottom, used = read(completion[answers[0].end() : answers[1].start()])
    except Refused:
        return False
    return top == target * bottom and Counter(used) == Counter(numbers)


def read(text: str) -> tuple[int, int, list[int]]:
    """Numerator, denominator (> 0) and the literals of an expression."""
    text = text.strip(" \t\r\n")
    if len(text) > 200:
        raise Refused
    tokens = [token for token in _TOKEN.findall(text) if not token.isspace() or token.strip(" \t\r\n")]
    parser = _Parser([{"×": "*", "÷": "/", "−": "-"}.get(token, token) for token in tokens])
    top, bottom = parser.sum(0)
    if parser.place != len(tokens):
        raise Refused
    return top, bottom, parser.used


class _Parser:
    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.place, self.used = tokens, 0, list[int]()

    def peek(self) -> str:
        return self.tokens[self.place] if self.place < len(self.tokens) else ""

    def sum(self, depth: int) -> Pair:
        a, b = self.product(depth)
        while self.peek() in ("+", "-"):
            sign = 1 if self.take() == "+" else -1
            c, d = self.product(depth)
            a, b = a * d + sign * c * b, b * d
        return _lowest(a, b)

    def product(self, depth: int) -> Pair:
        a, b = self.atom(depth)
        while self.peek() in ("*", "/"):
            operation = self.take()
            c, d = self.atom(depth)
            if operation == "*":
                a, b = a * c, b * d
            elif c == 0:
                raise Refused
            else:
                a, b = a * d, b * c
        return _lowest(a, b)

    def atom(self, depth: int) -> Pair:
        token = self.take()
        if token == "(":
            if depth == 20:
                raise Refused
            value = self.sum(depth + 1)
            if self.take() != ")":
                raise Refused
            return value
        if not token or any(digit not in "0123456789" for digit in token):
            raise Refused
        if len(token) > 9 or str(int(token)) != token:
            raise Refused
        self.used.append(int(token))
        return int(token), 1

    def take(self) -> str:
        token = self.peek()
        self.place += 1
        return token


def _lowest(a: int, b: int) -> Pair:
    if b < 0:
        a, b = -a, -b
    shared = gcd(a, b)
    return (a // shared, b // shared) if shared > 1 else (a, b)


# --- the cases -----------------------------------------------------------------------------------------------------

_PIECES: tuple[str, ...] = (
    *"0123456789+-*/()×÷−.,= \n\t_",
    *("**", "//", "%", "<think>", "</think>", "<answer>", "</answer>", "<Answer>", "< answer>", "3", "７", "٣", "²"),
    *("（", "）", "＋", "\u3000", "\x00", "\x0b", "\ud800", "\u200b", "1e3", "0x1f", "1_0", "007", "1.0", "99**99**99"),
    *("__import__('os')", "eval(1)", "abs", "lambda:0", "[1]", "'", "#", "\\frac{1}{2}", "$", "Wait,", "等等", " or "),
)


def random_expression(rng: random.Random, numbers: list[int]) -> str:
    """An expression that uses the numbers once each, with needless parentheses and spaces now and then."""
    parts = [str(number) for number in numbers]
    rng.shuffle(parts)
    while len(parts) > 1:
        place = rng.randrange(len(parts) - 1)
        joined = parts[place] + rng.choice(("+", "-", "*", "/", " + ", " × ", "÷", "−")) + parts[place + 1]
        parts[place : place + 2] = [f"({joined})" if rng.random() < 0.6 else joined]
    return parts[0]


def random_completion(rng: random.Random, numbers: list[int]) -> str:
    answer = random_expression(rng, numbers)
    return f"<think>{answer}, {rng.choice(('no', 'yes!', '对了！', ''))}</think>\n<answer>{answer}</answer>"


def mutate(rng: random.Random, text: str) -> str:
    """One small, structured change, most often inside the answer."""
    low = max(text.rfind("<answer>"), 0) if rng.random() < 0.6 else 0
    a, b = sorted((rng.randint(low, len(text)), rng.randint(low, len(text))))
    kind = rng.randrange(14)
    if kind == 0:  # put something in
        return text[:a] + rng.choice(_PIECES) + text[a:]
    if kind == 1:  # replace a character
        return text[:a] + rng.choice(_PIECES) + text[a + 1 :]
    if kind == 2:  # leave a character out
        return text[:a] + text[a + 1 :]
    if kind == 3:  # leave a stretch out
        return text[:a] + text[b:]
    if kind == 4:  # say a stretch twice
        return text[:b] + text[a:b] + text[b:]
    if kind == 5:  # stop early
        return text[: rng.randint(0, len(text))]
    if kind == 6:  # two completions
        return text + rng.choice(("", "\n", " or ")) + text
    if kind == 7:  # other signs
        old, new = rng.choice((("*", "×"), ("/", "÷"), ("-", "−"), ("*", "**"), ("/", "//"), ("+", "＋"), ("(", "（")))
        return text.replace(old, new)
    if kind == 8:  # an equation, a sign, a needless zero, nesting
        depth = rng.choice((1, 2, 19, 20, 21, 60))
        before, after = rng.choice(
            (("", "=24"), ("-", ""), ("+", ""), ("0", ""), ("0+", ""), ("(" * depth, ")" * depth))
        )
        return text.replace("<answer>", "<answer>" + before).replace("</answer>", after + "</answer>")
    if kind == 9:  # white space
        return text.replace(
            rng.choice(("+", "(", "<answer>", "</think>", ">")), rng.choice((" ", "\n", "\t", "\u3000")) * 2
        )
    if kind == 10:  # move a tag
        tag = rng.choice(("<think>", "</think>", "<answer>", "</answer>"))
        rest = text.replace(tag, "", 1)
        place = rng.randint(0, len(rest))
        return rest[:place] + tag + rest[place:]
    if kind == 11:  # something around it
        before, after = (
            rng.choice(("", "Sure. ", "\n ", "<think>")),
            rng.choice(("", "\n", " Done.", "</answer>", "\x00")),
        )
        return before + text + after
    if kind == 12:  # white space around the operators of the answer, which changes nothing
        head, tag, tail = text.rpartition("<answer>")
        answer, end, rest = tail.partition("</answer>")
        return head + tag + re.sub(r"([-+*/()])", rng.choice((r" \1", r"\1 ", "\n\\1\t")), answer) + end + rest
    return text[:a] + "".join(rng.choice(_PIECES) for _ in range(rng.randint(1, 60))) + text[b:]


def fuzz(n: int, seed: int) -> dict[str, float]:
    """Run `n` cases; raises AssertionError at the first that differs. Returns counts and the slowest call in seconds."""
    rng = random.Random(seed)
    task = get_task("countdown")
    problems = [task.problem("train", seed, index) for index in range(2000)]
    golds = [task.gold(problem) for problem in problems]
    counts: Counter[str] = Counter()
    slowest = 0.0
    for case in range(n):
        which = rng.randrange(len(problems))
        problem = problems[which]
        completion = golds[which] if rng.random() < 0.7 else random_completion(rng, problem.data["numbers"])
        for _ in range(rng.choice((0, 1, 1, 1, 1, 2, 2, 3, 4))):
            completion = mutate(rng, completion)
        start = time.process_time()
        verdict = task.score(problem, completion)
        slowest = max(slowest, time.process_time() - start)
        deserved = oracle(problem.data["numbers"], problem.data["target"], completion)
        if verdict.status == "error" or (verdict.rewards["accuracy"], verdict.rewards["format"]) != deserved:
            _differ(case, problem, completion, verdict.to_json(), deserved)
        counts[verdict.status] += 1
        counts["accuracy 1"] += deserved[0] == 1.0
        counts["format 1"] += deserved[1] == 1.0
        counts["accuracy 1 without format"] += deserved == (1.0, 0.0)
    assert slowest < 0.2, f"a call took {slowest:.3f} s"
    return {**counts, "slowest ms": round(slowest * 1e3, 3)}


def _differ(case: int, problem: Problem, completion: str, verdict: object, deserved: object) -> NoReturn:
    raise AssertionError(f"case {case}: {dict(problem.data)} {completion!a}: {verdict}, the oracle says {deserved}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--n", type=int, default=100_000, help="cases")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    start = time.perf_counter()
    counts = fuzz(arguments.n, arguments.seed)
    print(f"{arguments.n} cases in {time.perf_counter() - start:.0f} s: {counts}", file=sys.stdout)


if __name__ == "__main__":
    main()

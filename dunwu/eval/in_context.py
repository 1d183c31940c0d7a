"""What a model learns inside its context: loss by position, and accuracy by the number of solved examples.

* **Loss by position.** Later tokens have more before them. How much that helps is the curve of the mean loss over token
  positions, in bins that double in width. Its summary is the in-context score, the loss late in the window minus the
  loss early in it (Olsson et al. 2022, "In-context Learning and Induction Heads": token 500 minus token 50 of 512; here
  the same fractions of any context). Below 0 the context helps; errors are over windows, which are independent, while
  the tokens of one are not.
* **Few-shot accuracy.** The same question after 0, 1, 2, … solved ones. `Sums` are on the world's pages; `Symbols` maps
  words to digits anew in every prompt, so nothing in the weights knows the answer and all of the rise is in-context
  (as random labels in Wei et al. 2023, "Larger language models do in-context learning differently").

Not covered: ranking given answers by likelihood, chat prompts, induction heads themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from dunwu.data.tokenizer import Tokenizer
from dunwu.eval.passk import Interval, over_seeds, pass_at_1
from dunwu.model.transformer import Transformer
from dunwu.types import Sampler, SamplingParams, UsageError, derive_seed
from dunwu.world.arithmetic import equation

EARLY, LATE = 50 / 512, 500 / 512
"""Where in the window the in-context score is taken, as shares of it (Olsson et al.)."""
WIDTH = 1 / 40
"""Half the width of the two places: their losses are means over that share of the window to both sides."""
SHORTEST = 4
"""Tokens of a window in which early and late are two places."""
SHOTS = (0, 1, 2, 4, 8)
"""Numbers of solved examples."""


@dataclass(frozen=True)
class PositionLoss:
    """Mean loss of the tokens at positions `first` to `last` of a window; position 1 has one token before it."""

    first: int
    last: int
    mean: float
    """Nats per token."""
    error: float
    """Standard error over windows; infinite for one window."""


@dataclass(frozen=True)
class LossByPosition:
    """The curve of one model on one set of windows."""

    bins: tuple[PositionLoss, ...]
    score: Interval
    """Loss at `LATE` minus loss at `EARLY`, paired by window; Student's t over windows."""
    windows: int
    """Windows of `context` predicted tokens."""
    context: int

    def as_json(self) -> dict[str, Any]:
        """`{"context", "windows", "score": interval, "bins": [[first, last, mean, error or null], …]}`."""
        rows = [[b.first, b.last, b.mean, b.error if math.isfinite(b.error) else None] for b in self.bins]
        return {"context": self.context, "windows": self.windows, "score": self.score.as_json(), "bins": rows}


def position_bins(context: int, bins: int | None = None) -> list[tuple[int, int]]:
    """(first, last) positions of bins that widen by a constant factor; doubling where `bins` is None.

    A last one that would be less than half as wide as the one before is a part of it.

    Example:
        >>> position_bins(10)
        [(1, 1), (2, 3), (4, 7), (8, 10)]
    """
    if bins is None:
        edges = [1 << n for n in range(context.bit_length())]
    else:
        edges = sorted({round((context + 1) ** (n / bins)) for n in range(bins)})
    if len(edges) > 2 and 2 * (context + 1 - edges[-1]) < edges[-1] - edges[-2]:
        edges.pop()
    return [(first, after - 1) for first, after in zip(edges, [*edges[1:], context + 1], strict=True)]


@torch.inference_mode()
def loss_by_position(
    model: Transformer, batches: Iterable[NDArray[np.int64]], bins: int | None = None
) -> LossByPosition:
    """Mean loss at every stretch of the window.

    Args:
        batches: (B, T + 1) ids each, T the same in all.
        bins: about how many stretches, widening by a constant factor; None: each twice as wide as the one before.

    Raises:
        UsageError: no window, or windows too short to have a beginning and an end.
    """
    sums: list[NDArray[np.float64]] = []
    was_training = model.training
    model.eval()
    try:
        for ids_BT in batches:
            sums += list(_token_losses(model, ids_BT))
    finally:
        model.train(was_training)
    context = len(sums[0]) if sums else 0
    if context < SHORTEST:
        cure = f"give windows of {SHORTEST} tokens or more"
        raise UsageError(f"{len(sums)} windows of {context} tokens have no curve", cure)
    losses_WT = np.stack(sums)
    found = []
    for first, last in position_bins(context, bins):
        per_window = losses_WT[:, first - 1 : last].mean(1)
        found.append(PositionLoss(first, last, float(per_window.mean()), _standard_error(per_window)))
    gains = _around(losses_WT, LATE) - _around(losses_WT, EARLY)
    return LossByPosition(tuple(found), over_seeds([float(gain) for gain in gains]), len(losses_WT), context)


def _token_losses(model: Transformer, ids_BT: NDArray[np.int64]) -> NDArray[np.float64]:
    """(B, T) nats of ids[:, 1:], logits in fp32, some rows at a time."""
    ids = torch.from_numpy(ids_BT).to(model.head_weight.device)
    hidden, targets = model.hidden(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()
    rows = max(512, 2**21 // len(model.head_weight))
    parts = [
        torch.nn.functional.cross_entropy((h @ model.head_weight.T).float(), t, reduction="none")
        for h, t in zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True)
    ]
    return torch.cat(parts).view(len(ids_BT), -1).double().cpu().numpy()


def _around(losses_WT: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """(W,) mean loss near a place of the window, itself included."""
    context = losses_WT.shape[1]
    low = max(1, round((share - WIDTH) * context))
    high = min(context, max(low, round((share + WIDTH) * context)))
    mean: NDArray[np.float64] = losses_WT[:, low - 1 : high].mean(1)
    return mean


def _standard_error(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.inf


@dataclass(frozen=True)
class FewShot:
    """Solved examples and one question; a question ends where its answer begins."""

    examples: tuple[tuple[str, str], ...]
    question: str
    answer: str

    def prompt(self, shots: int) -> str:
        """The last `shots` examples, a line each, and the question.

        Example:
            >>> FewShot((("a=", "1"), ("b=", "2")), "a=", "1").prompt(1)
            'b=2\\na='
        """
        shown = self.examples[len(self.examples) - shots :]
        return "".join(f"{question}{answer}\n" for question, answer in shown) + self.question


class FewShotTask(Protocol):
    """A kind of question whose solved examples can stand in a prompt."""

    @property
    def name(self) -> str: ...

    def draw(self, dice: Random, shots: int) -> FewShot:
        """A question with `shots` examples."""
        ...

    def best(self, shots: int) -> float | None:
        """The highest accuracy that the prompt alone allows; None where the weights may know the answer."""
        ...


@dataclass(frozen=True)
class Sums:
    """Sums as the world's arithmetic pages list them: `9*12=108`, a line each."""

    name: str = "sums"
    high: int = 20
    """As in `world.arithmetic.equation`."""

    def draw(self, dice: Random, shots: int) -> FewShot:
        drawn = [equation(dice, self.high).split("=") for _ in range(shots + 1)]
        *examples, (question, answer) = [(f"{left}=", right) for left, right in drawn]
        return FewShot(tuple(examples), question, answer)

    def best(self, shots: int) -> float | None:
        return None


WORDS = ("red", "blue", "green", "black", "white", "stone", "tree", "river", "house", "bird", "fish", "moon")


@dataclass(frozen=True)
class Symbols:
    """Words that stand for digits, another code in every prompt: `blue=3`, in the spelling of the sums.

    Examples go round the words, each round in a new order; the question is any of the words, so with fewer shots than
    words it may be one not shown.

    Example:
        >>> Symbols().best(0), Symbols().best(4)
        (0.1, 1.0)
    """

    name: str = "symbols"
    words: int = 4
    """Words of a code, with different digits."""

    def draw(self, dice: Random, shots: int) -> FewShot:
        words = dice.sample(WORDS, self.words)
        code = dict(zip(words, dice.sample("0123456789", self.words), strict=True))
        order: list[str] = []
        while len(order) < shots:
            order = dice.sample(words, self.words) + order  # whole rounds last: any last k show k words, up to all
        examples = tuple((f"{word}=", code[word]) for word in order[len(order) - shots :])
        asked = dice.choice(words)
        return FewShot(examples, f"{asked}=", code[asked])

    def best(self, shots: int) -> float | None:
        seen = min(shots, self.words)
        return seen / self.words + (1 - seen / self.words) / (10 - seen)


TASKS: dict[str, FewShotTask] = {task.name: task for task in (Sums(), Symbols())}


@dataclass(frozen=True)
class FewShotPoint:
    """Accuracy after so many solved examples."""

    shots: int
    accuracy: Interval
    """Share of right answers, Wilson's interval."""
    tokens: float
    """Mean length of the prompt: beyond the context a model was trained with, more examples may hurt."""
    best: float | None
    """See `FewShotTask.best`."""

    def as_json(self) -> dict[str, Any]:
        """`{"shots", "accuracy": interval, "tokens", "best"}`."""
        return {
            "shots": self.shots,
            "accuracy": self.accuracy.as_json(),
            "tokens": self.tokens,
            "best": self.best,
        }


def few_shot_accuracy(
    sampler: Sampler,
    tokenizer: Tokenizer,
    task: FewShotTask,
    shots: Sequence[int] = SHOTS,
    n: int = 200,
    seed: int = 0,
) -> list[FewShotPoint]:
    """Greedy answers to `n` questions, each asked with every number of examples; the shown ones are the last of the most.

    An answer is what stands before the first line end or comma. Documents begin with the end token, as in training.

    Raises:
        UsageError: no question, or a negative number of examples.
    """
    if n < 1 or not shots or min(shots) < 0:
        raise UsageError(f"{n} questions with {list(shots)} examples measure nothing", "ask 1 or more, with 0 or more")
    problems = [task.draw(Random(derive_seed("few-shot", task.name, seed, j)), max(shots)) for j in range(n)]
    longest = max(len(tokenizer.encode(problem.answer, allow_special=False)) for problem in problems)
    params = SamplingParams(max_tokens=longest + 2, temperature=0.0)
    found = []
    for count in shots:
        prompts = [
            [tokenizer.end_id, *tokenizer.encode(problem.prompt(count), allow_special=False)] for problem in problems
        ]
        drawn = sampler.sample(prompts, [[derive_seed("few-shot answer", seed, j)] for j in range(n)], params)
        right = [[_answer(row[0].text) == problem.answer] for row, problem in zip(drawn, problems, strict=True)]
        tokens = sum(map(len, prompts)) / n
        found.append(FewShotPoint(count, pass_at_1(right), tokens, task.best(count)))
    return found


def _answer(text: str) -> str:
    return text.replace(",", "\n").split("\n", 1)[0].strip()

"""The stage table: every model of a run asked the same held-out problems, every figure with its interval.

A plan is a list of columns; columns that share a task share its samples. What one model scored is a `Measured`:
an interval a column, the value of every problem (so that two models are compared problem by problem), and the groups.
Not covered: which tasks a run has, and where its models are (the recipe's); what the figures say (`verdicts`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from dunwu.data.tokenizer import Tokenizer
from dunwu.eval.evaluate import held_out, sample_groups
from dunwu.eval.passk import Interval, mean_change, mean_share, over_seeds
from dunwu.types import DunwuError, Group, Problem, Rollout, Sampler, SamplingParams, Task, UsageError

LENGTH = "length"
"""What a column reads to count tokens instead of a reward."""
STORY = ("base", "R1-Zero", "Dev1", "Dev2", "Dev3", "R1")
"""Models in the order of the paper's story; each is compared with the one before it."""


@dataclass(frozen=True)
class Column:
    """One figure of the stage table.

    Example:
        >>> from dunwu.tasks.countdown import Countdown
        >>> Column("reasoning", "Countdown", Countdown(), 64).read
        'accuracy'
    """

    key: str
    """Its name in files; `verdicts` and the report know reasoning, reasoning_easy, instruction, language, …"""
    title: str
    """Its name on the page."""
    task: Task
    """Asks and judges; columns with the same task object share its samples."""
    problems: int
    """Held-out problems, from the first on."""
    read: str = "accuracy"
    """A reward's name, in [0, 1]; or "length", tokens of the completion."""
    better: Literal["higher", "lower", ""] = "higher"
    """Which way is better; "" for neither."""
    measure: str = ""
    """What is measured, in a sentence."""
    among: Callable[[Problem], bool] | None = None
    """Only problems for which this holds; None: all."""
    split: str = "test"
    """Of the task."""


@dataclass(frozen=True)
class Measured:
    """One model's row.

    Attributes:
        scores: column → its interval; a column no problem belongs to is not there.
        values: column → problem id → mean over its samples; what paired comparisons read.
        excluded: column → samples left out because judging failed ("timeout", "error"): ours, never a zero.
        groups: column → its scored samples; not part of the JSON.
    """

    scores: Mapping[str, Interval]
    values: Mapping[str, Mapping[str, float]]
    excluded: Mapping[str, int] = field(default_factory=dict)
    groups: Mapping[str, Sequence[Group]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Everything but the groups."""
        return {
            "scores": {key: interval.as_json() for key, interval in self.scores.items()},
            "values": {key: dict(values) for key, values in self.values.items()},
            "excluded": dict(self.excluded),
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Measured:
        """The inverse of `to_json`; unknown ends are infinite.

        Raises:
            DunwuError: the record is none of ours.
        """
        try:
            scores = {key: read_interval(found) for key, found in record["scores"].items()}
            return cls(scores, record["values"], record["excluded"])
        except (KeyError, TypeError, AttributeError) as error:
            raise DunwuError(f"this is no measured stage: {error!r}", "measure it again") from error


@dataclass(frozen=True)
class Row:
    """A model of the table: its name, what it is made of, and what it scored."""

    name: str
    """As the paper calls it: R1-Zero, Dev1, …"""
    measured: Measured
    """Its scores."""
    stage: str = ""
    """The run's stage that made it."""
    parent: str = ""
    """The stage whose weights it started from."""
    data: tuple[str, ...] = ()
    """The stages whose data it saw."""
    seconds: float = 0.0
    """What its stage took."""


def measure(
    sampler: Sampler,
    tokenizer: Tokenizer,
    plan: Sequence[Column],
    params: SamplingParams,
    samples: int = 1,
    seed: int = 0,
) -> Measured:
    """Ask every column's problems and read its figure, with 95% intervals over problems.

    A problem's seeds depend on `seed` and its id only, so every model meets the same problems with the same dice.

    Raises:
        UsageError: two columns share a key; no verdict of a column has the reward that it reads.
    """
    if len({column.key for column in plan}) < len(plan):
        raise UsageError("two columns of the stage table share a key", "give each its own")
    scores, values, excluded, kept = {}, {}, {}, {}
    for columns in _passes(plan):
        first = columns[0]
        problems = held_out(first.task, first.split, max(column.problems for column in columns))
        wanted = [problem for n, problem in enumerate(problems) if any(_asks(c, n, problem) for c in columns)]
        sampled = sample_groups(sampler, tokenizer, first.task, wanted, samples, params, seed)
        group_of = {group.problem.id: group for group in sampled}
        for column in columns:
            ids = [problem.id for n, problem in enumerate(problems) if _asks(column, n, problem)]
            kept[column.key] = [group_of[id] for id in ids]
            rows, excluded[column.key] = _readings(column, kept[column.key])
            if rows:
                values[column.key] = {id: math.fsum(row) / len(row) for id, row in rows.items()}
                scores[column.key] = _interval(column, rows)
    in_order = {column.key: scores[column.key] for column in plan if column.key in scores}
    return Measured(in_order, values, {key: n for key, n in excluded.items() if n}, kept)


def difference(after: Measured, before: Measured, column: str) -> Interval | None:
    """Mean of after − before on the problems both answered; None if there are none."""
    later, earlier = after.values.get(column, {}), before.values.get(column, {})
    changes = [later[id] - earlier[id] for id in later if id in earlier]
    if not changes:
        return None
    return mean_change(changes) if max(map(abs, changes)) <= 1 else over_seeds(changes)


def stage_table(plan: Sequence[Column], rows: Sequence[Row]) -> dict[str, Any]:
    """`{"columns": […], "models": […]}` of `stages.json`; columns that no model has are left out.

    A model of the story says what changed against the one before it, problem by problem.
    """
    shown = [column for column in plan if any(column.key in row.measured.scores for row in rows)]
    columns = [
        {"key": c.key, "title": c.title, "better": c.better, "measure": c.measure or default_measure(c)} for c in shown
    ]
    models = []
    for row in rows:
        scores = {key: interval.as_json() for key, interval in row.measured.scores.items()}
        facts = {"name": row.name, "stage": row.stage, "parent": row.parent, "data": list(row.data)}
        models.append({**facts, "scores": scores, "seconds": row.seconds, **_changes(row, rows)})
    return {"columns": columns, "models": models}


def _changes(row: Row, rows: Sequence[Row]) -> dict[str, Any]:
    """`{"against": name, "changes": {column: interval}}` for a model of the story that has one before it."""
    measured = {other.name: other.measured for other in rows}
    told = [name for name in STORY if name in measured]
    if row.name not in told[1:]:
        return {}
    before = told[told.index(row.name) - 1]
    found = {key: difference(row.measured, measured[before], key) for key in row.measured.scores}
    return {"against": before, "changes": {key: change.as_json() for key, change in found.items() if change}}


def seed_table(seeds: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, Any]]]:
    """`over_seeds` of `stages.json` from its `seeds`: model → column → mean with Student's t interval.

    Example:
        >>> rows = [{"seed": n, "scores": {"R1": {"reasoning": score}}} for n, score in enumerate([0.6, 0.7, 0.8])]
        >>> seed_table(rows)["R1"]["reasoning"]["n"]
        3
    """
    found: dict[str, dict[str, list[float]]] = {}
    for seed in seeds:
        for name, scores in seed["scores"].items():
            for key, value in scores.items():
                found.setdefault(name, {}).setdefault(key, []).append(value)
    return {
        name: {key: over_seeds(values).as_json() for key, values in columns.items()} for name, columns in found.items()
    }


def default_measure(column: Column) -> str:
    """What a column measures, where the plan does not say."""
    what = "tokens per completion" if column.read == LENGTH else f"reward “{column.read}”"
    return f"{what}, {column.problems} held-out problems of {column.task.name}"


def read_interval(found: Mapping[str, Any]) -> Interval:
    """An `Interval` back from its JSON; unknown ends are infinite."""
    low = -math.inf if found["low"] is None else found["low"]
    return Interval(found["value"], low, math.inf if found["high"] is None else found["high"], found["n"])


def _passes(plan: Sequence[Column]) -> Iterator[list[Column]]:
    """Columns that share their samples, together."""
    together: dict[tuple[int, str], list[Column]] = {}
    for column in plan:
        together.setdefault((id(column.task), column.split), []).append(column)
    yield from together.values()


def _asks(column: Column, n: int, problem: Problem) -> bool:
    return n < column.problems and (column.among is None or column.among(problem))


def _readings(column: Column, groups: Sequence[Group]) -> tuple[dict[str, list[float]], int]:
    """The figure of every sample by problem id, and how many samples could not be judged."""
    rows: dict[str, list[float]] = {}
    excluded = 0
    names: set[str] = set()
    for group in groups:
        for rollout in group.rollouts:
            if rollout.verdict.status in ("timeout", "error"):
                excluded += 1
                continue
            names |= rollout.verdict.rewards.keys()
            value = _reading(column, rollout)
            if value is not None:
                rows.setdefault(group.problem.id, []).append(value)
    if names and column.read not in names and column.read != LENGTH:
        cure = f"read one of {', '.join(sorted(names))}, or {LENGTH}"
        raise UsageError(f"column {column.key}: {column.task.name} gives no reward {column.read!r}", cure)
    return rows, excluded


def _reading(column: Column, rollout: Rollout) -> float | None:
    """The sample's figure. A completion that could not be parsed scores 0 in what its verdict does not name."""
    if column.read == LENGTH:
        return float(len(rollout.completion.token_ids))
    unnamed = 0.0 if rollout.verdict.status == "unparsable" else None
    return rollout.verdict.rewards.get(column.read, unnamed)


def _interval(column: Column, rows: Mapping[str, Sequence[float]]) -> Interval:
    if column.read != LENGTH:
        return mean_share(list(rows.values()))
    found = over_seeds([math.fsum(row) / len(row) for row in rows.values()])
    return Interval(found.value, max(0.0, found.low), found.high, found.n)

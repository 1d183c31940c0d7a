"""The course of a stage of reinforcement learning, read from its run folder: curves, and what its samples say.

Reads files only; what is missing (a stage that has just begun, no samples) is an empty curve. No torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dunwu.log import read_json, read_metrics, read_rollouts
from dunwu.types import DunwuError, UsageError

Curve = list[tuple[int, float]]
"""(step, value), steps ascending."""
KINDS = ("grpo", "ppo")
"""Prefixes of the metrics of reinforcement learning."""
HELD_OUT = "held-out"


@dataclass
class Sampled:
    """What one step sampled on one sub-task, in sums over its scored rollouts."""

    rollouts: int = 0
    groups: int = 0
    flat: int = 0
    """Groups whose scored rewards are all equal, or none is scored."""
    errors: int = 0
    reason: str = ""
    """Of the first error."""
    reward: float = 0.0
    highest: float = -math.inf
    lowest: float = math.inf
    length: float = 0.0
    named: dict[str, tuple[float, int]] = field(default_factory=dict)
    """Name of a reward → its sum, and the rollouts that have it."""
    distinct: float = 0.0
    """Sum over groups of (different texts − 1) / (samples − 1)."""
    cut: int = 0
    cut_reward: float = 0.0
    """Rollouts that reached the longest length, and the sum of their rewards."""
    length_square: float = 0.0
    reward_square: float = 0.0
    product: float = 0.0
    """Sums, within groups, of (length − mean)², (reward − mean)² and their product."""

    def add(self, group: Mapping[str, Any]) -> None:
        """One group, as the run folder holds it."""
        rollouts = group["rollouts"]
        scored = [r for r in rollouts if r["status"] in ("ok", "unparsable") and r["reward"] is not None]
        rewards, lengths = [float(r["reward"]) for r in scored], [float(r["length"]) for r in scored]
        self.groups += 1
        self.flat += len(set(rewards)) < 2
        self.errors += len(rollouts) - len(scored)
        if not self.reason:
            self.reason = next((str(r["reason"]) for r in rollouts if r["status"] in ("error", "timeout")), "")
        if len(rollouts) > 1:
            self.distinct += (len({r["completion"] for r in rollouts}) - 1) / (len(rollouts) - 1)
        if not scored:
            return
        self.rollouts += len(scored)
        self.reward += sum(rewards)
        self.highest, self.lowest = max(self.highest, *rewards), min(self.lowest, *rewards)
        self.length += sum(lengths)
        for rollout, reward in zip(scored, rewards, strict=True):
            if rollout["finish_reason"] == "length":
                self.cut += 1
                self.cut_reward += reward
            for name, value in rollout["rewards"].items():
                if value is not None:
                    total, count = self.named.get(name, (0.0, 0))
                    self.named[name] = (total + value, count + 1)
        mean_reward, mean_length = sum(rewards) / len(rewards), sum(lengths) / len(lengths)
        self.length_square += sum((x - mean_length) ** 2 for x in lengths)
        self.reward_square += sum((y - mean_reward) ** 2 for y in rewards)
        self.product += sum((x - mean_length) * (y - mean_reward) for x, y in zip(lengths, rewards, strict=True))


@dataclass(frozen=True)
class Course:
    """One stage.

    Attributes:
        kind: "grpo" or "ppo", or "" for a stage that failed in other training.
        metrics: name without "grpo/" or "ppo/" → curve; values that were not finite are left out.
        held_out: name without "eval/" → curve.
        samples: sub-task (`Problem.task`) → step → what it sampled; {} without samples on record.
        settings: the stage's settings of reinforcement learning, as far as its record has them.
        lost: (step, key) of every value that was not finite.
        status, error: of the stage's record.
    """

    stage: str
    kind: str
    metrics: Mapping[str, Curve]
    held_out: Mapping[str, Curve] = field(default_factory=dict)
    samples: Mapping[str, Mapping[int, Sampled]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    lost: tuple[tuple[int, str], ...] = ()
    status: str = "done"
    error: str = ""

    def curve(self, name: str) -> Curve:
        """A metric's curve, empty if it was not logged."""
        return self.metrics.get(name, [])

    @property
    def rewards(self) -> list[str]:
        """Names of the rewards on record, sorted."""
        metrics = {name.removeprefix("reward/") for name in self.metrics if name.startswith("reward/")}
        sampled = {name for by_step in self.samples.values() for s in by_step.values() for name in s.named}
        return sorted(metrics | sampled)

    def of_samples(self, task: str, figure: Callable[[Sampled], float]) -> Curve:
        """A figure of every step of a sub-task; steps where it is not finite are left out."""
        found = ((step, figure(sampled)) for step, sampled in sorted(self.samples.get(task, {}).items()))
        return [(step, value) for step, value in found if math.isfinite(value)]

    def together(self, figure: Callable[[Sampled], float], steps: Iterable[int]) -> float:
        """Sum of a figure over all sub-tasks in these steps."""
        wanted = set(steps)
        return sum(figure(by_step[step]) for by_step in self.samples.values() for step in wanted if step in by_step)

    @property
    def steps(self) -> list[int]:
        """Every step that logged a metric."""
        return sorted({step for points in self.metrics.values() for step, _ in points})


def read_courses(run_dir: Path, stage: str = "") -> list[Course]:
    """Every stage of a run folder that learned by reinforcement or failed, in the order of the record.

    Args:
        stage: only this one.

    Raises:
        DunwuError: no run folder, or a damaged record.
        UsageError: it has no such stage.
    """
    if not (run_dir / "run.json").is_file():
        raise DunwuError(f"{run_dir} is no run folder: it has no run.json", "see `dunwu runs`")
    run = read_json(run_dir / "run.json")
    records = {file.stem: read_json(file) for file in sorted((run_dir / "stages").glob("*.json"))}
    if stage and stage not in records:
        raise UsageError(f"{run_dir} has no stage {stage!r}", f"one of {', '.join(records) or 'none yet'}")
    curves, lost = _curves(read_metrics(run_dir))
    learned = [name for name, of_stage in curves.items() if any(key.split("/")[0] in KINDS for key in of_stage)]
    failed = [name for name, record in records.items() if record.get("error") and name not in learned]
    wanted = [name for name in [*learned, *failed] if stage in ("", name)]
    samples = _samples(run_dir, set(wanted)) if learned else {}
    return [
        Course(
            name,
            next((kind for kind in KINDS if any(key.startswith(f"{kind}/") for key in curves.get(name, {}))), ""),
            _named(curves.get(name, {}), KINDS),
            _named(
                curves.get(f"{name}/{HELD_OUT}") or (curves.get(HELD_OUT, {}) if learned == [name] else {}), ("eval",)
            ),
            samples.get(name, {}),
            settings_of(records.get(name, {}).get("config")) or settings_of(run.get("config")),
            tuple(lost.get(name, ())),
            str(records.get(name, {}).get("status", "")),
            str(records.get(name, {}).get("error", "")),
        )
        for name in wanted
    ]


def settings_of(config: Any) -> Mapping[str, Any]:
    """The settings of reinforcement learning somewhere in a config, with `lora` if there is one; {} if there are none.

    Example:
        >>> settings_of({"final": {"grpo": {"group_size": 4, "max_tokens": 9}}, "seed": 0})
        {'group_size': 4, 'max_tokens': 9}
    """
    if not isinstance(config, Mapping):
        return {}
    if "group_size" in config and "max_tokens" in config:
        return config
    found = next((inner for value in config.values() if (inner := settings_of(value))), {})
    lora = config.get("lora")
    return {**found, "lora": lora} if found and lora and "lora" not in found else found


def _curves(
    lines: Iterable[Mapping[str, Any]],
) -> tuple[dict[str, dict[str, Curve]], dict[str, list[tuple[int, str]]]]:
    curves: dict[str, dict[str, Curve]] = {}
    lost: dict[str, list[tuple[int, str]]] = {}
    for line in lines:
        stage, step = str(line["stage"]), int(line["step"])
        of_stage = curves.setdefault(stage, {})
        for key, value in line.items():
            if key in ("stage", "step", "time"):
                continue
            if isinstance(value, (int, float)) and math.isfinite(value):
                of_stage.setdefault(key, []).append((step, float(value)))
            else:
                lost.setdefault(stage, []).append((step, key))
    for of_stage in curves.values():
        for points in of_stage.values():
            points.sort()
    return curves, lost


def _named(of_stage: Mapping[str, Curve], prefixes: Sequence[str]) -> dict[str, Curve]:
    split = ((*key.partition("/")[::2], points) for key, points in of_stage.items())
    return {name: points for prefix, name, points in split if prefix in prefixes}


def _samples(run_dir: Path, stages: set[str]) -> dict[str, dict[str, dict[int, Sampled]]]:
    found: dict[str, dict[str, dict[int, Sampled]]] = {}
    for group in read_rollouts(run_dir):
        if group["stage"] in stages:
            by_step = found.setdefault(group["stage"], {}).setdefault(str(group["task"]), {})
            by_step.setdefault(int(group["step"]), Sampled()).add(group)
    return found

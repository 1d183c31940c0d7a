"""Signs of the six pathologies that every course on reinforcement learning names: a course and the limits in, a `Sign` out.

None where the course shows no such thing, or too little to say. `pathology.PATHOLOGIES` has their names and cures.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from dunwu.eval.course import Course, Curve, Sampled
from dunwu.eval.trends import ends, mean, since, steps_of, trend

AUXILIARY = ("format", "language")
"""Rewards that steer the form; their rise is no sign of anything."""
TRUTH = "truth/"
PREFERENCE = "preference/"


@dataclass(frozen=True)
class Limits:
    """From where on a figure is a pathology. Defaults stand clear of every healthy run measured (docs/doctor.md)."""

    steps: int = 4
    """Steps below which nothing but a stop is judged."""
    errors: float = 3.0
    """Standard errors of a regression line's rise that count as a rise."""
    stays: float = 0.05
    """A truth that rises by less than this share of its scale stays where it is."""
    rise: float = 0.1
    """A reward that rises by this share of its scale or more, rises."""
    solved: float = 0.9
    """Mean reward, as a share of the way from the lowest to the highest seen, from which on a task is solved."""
    entropy_fall: float = 0.2
    """Collapse: last entropy over first. Cui et al. (2505.22617) see the gains end where the entropy is spent."""
    entropy_nats: float = 1.0
    """Collapse: entropy of a whole completion in nats; below 1 there are fewer than e ≈ 3 completions to choose from."""
    distinct: float = 0.2
    """Collapse: different siblings beyond the first; healthy runs kept 0.43 and more."""
    length_growth: float = 1.5
    """Length hacking: last length over first."""
    length_correlation: float = 0.3
    """Length hacking: correlation of reward and length among siblings; healthy runs had at most 0.06."""
    flat: float = 0.8
    """Starvation: groups without variance among those sampled; healthy runs had at most 0.63 in a step."""
    mismatch: float = 0.03
    """Nats a token between sampler and trainer; rounding alone (bf16) made at most 0.01."""
    moved: float = 0.7
    """Frozen: the most parameter tensors that any step moved; healthy bf16 runs reached 0.86 and more."""
    collapse: float = 0.5
    """Reward collapse: what is left of the best mean reward, counted from the lowest reward seen."""
    truncated: float = 0.3
    """Completions cut off; ScaleRL (2510.13786) keeps below 0.05, and above 0.1 training was seen to lose its stability."""
    verifier_errors: float = 0.05
    """Rollouts without a verdict."""
    step_kl: float = 0.05
    """Nats a token from the policy that sampled; the usual target of PPO is 0.01 to 0.02."""
    single_kl: float = 0.5
    """The same of one update alone: enough to lose the policy for good."""
    clipped: float = 0.3
    """Clipped tokens; PPO in control has 0.1 to 0.2, language models 0.001."""
    ref_kl: float = 1.0
    """Nats a token from the reference, still doubling."""
    critic_steps: int = 10
    """Steps over which a critic may explain nothing."""


@dataclass(frozen=True)
class Sign:
    """Where a pathology shows.

    Attributes:
        first_step, last_step: of the stage.
        figure: the evidence, by name.
        what: the same as a sentence.
    """

    first_step: int
    last_step: int
    figure: Mapping[str, float]
    what: str


Judge = Callable[[Course, Limits], "Sign | None"]
_NOT_ONE = re.compile(
    r"(?:sampler and (?:trainer|student) disagree by|policy ratio is|KL to the reference is)"
    r" (-?(?:nan|inf|\d+(?:\.\d+)?(?:e[-+]?\d+)?))"
)
"""Before the first update sampler, policy and reference are one network; what the checks of it say where they are not."""


def sign(course: Course, first: int, figure: Mapping[str, float], what: str, last: int | None = None) -> Sign:
    """A sign from `first` to `last`, or to the end of the course; figures that are not finite are left out."""
    end = last if last is not None else max([first, *course.steps[-1:]])
    return Sign(first, end, {name: value for name, value in figure.items() if math.isfinite(value)}, what)


def entropy_collapse(course: Course, limits: Limits) -> Sign | None:
    """The policy has one completion left for a question it does not answer."""
    lengths = dict(course.curve("length"))
    distinct = [(step, share_of(course, [step], lambda s: s.distinct, lambda s: s.groups)) for step in course.steps]
    distinct = [(step, y) for step, y in distinct if math.isfinite(y)]
    entropy = course.curve("entropy")
    if len(course.steps) < limits.steps:
        return None
    start, end = ends([(step, 0.0) for step in course.steps])
    if _progress(course, steps_of(end)) >= limits.solved:
        return None
    late = [(step, y) for step, y in entropy if step >= end[0][0]]
    fell = nats = math.nan
    if late and len(entropy) >= 2:
        before = mean(ends(entropy)[0])
        fell = mean(late) / before if before > 0 else math.nan
        nats = fmean(y * lengths.get(step, math.nan) for step, y in late)
    first, last = (mean([p for p in distinct if p[0] in set(steps_of(part))]) for part in (start, end))
    spent = fell <= limits.entropy_fall and nats < limits.entropy_nats
    alike = last < limits.distinct and first > 2 * last
    if not (spent or alike):
        return None
    where = since(distinct, lambda y: y < 2 * limits.distinct) if alike else late[0][0]
    figure = {"entropy_share_left": fell, "nats_per_completion": nats, "distinct_before": first, "distinct": last}
    said = f"siblings that differ: {first:.0%} → {last:.0%}" if alike else f"{fell:.0%} of the entropy is left"
    if math.isfinite(nats):
        said += f"; {nats:.2g} nats for a whole completion"
    return sign(course, where, figure, f"{said}, and the reward is not at its top")


def length_hacking(course: Course, limits: Limits) -> Sign | None:
    """Completions grow because length pays, and the truth does not rise with them."""
    for task, by_step in course.samples.items():
        length = course.of_samples(task, lambda s: s.length / s.rollouts if s.rollouts else math.nan)
        line, truth = trend(length), _truth(course, task)
        if line is None or line.rise <= limits.errors * line.error or (truth and _rises(truth[1], limits)):
            continue
        before, after = map(mean, ends(length))
        # At the longest length nothing varies any more, so a run that has arrived there shows it where it grew.
        grew, arrived = length[: max(3, 2 * len(length) // 3)], ends(length)[1]
        pays = max(_correlation([by_step[step] for step in steps_of(part)]) for part in (grew, arrived))
        if after < limits.length_growth * before or pays < limits.length_correlation:
            continue
        figure = {"length_before": before, "length": after, "correlation": pays}
        what = f"length {before:.0f} → {after:.0f} tokens, and among siblings the longer earn more (r = {pays:.2f})"
        what += f"; {truth[0]} does not rise" if truth else ""
        return sign(course, line.first, figure, f"{task}: {what}")
    return None


def _correlation(sampled: Sequence[Sampled]) -> float:
    """Of length and reward within groups."""
    squares = sum(s.length_square for s in sampled) * sum(s.reward_square for s in sampled)
    return sum(s.product for s in sampled) / math.sqrt(squares) if squares > 0 else 0.0


def starvation(course: Course, limits: Limits) -> Sign | None:
    """Groups whose rewards are all equal teach nothing; nearly all are."""
    alone = course.kind == "ppo" and not course.settings.get("group_baseline")
    if alone or course.settings.get("baseline") in ("batch", "none"):
        return None  # their advantages do not come from siblings
    replaced = dict(course.curve("replaced_groups"))
    shown = {step: course.together(lambda s: s.groups, [step]) or _number(course, "problems") for step in course.steps}
    share = [
        (step, flat / total)
        for step, flat in course.curve("zero_variance_groups")
        if (total := shown[step] + replaced.get(step, 0.0)) > 0
    ]
    if len(share) < limits.steps:
        return None
    start, end = ends(share)
    left = mean(end)
    if left < limits.flat:
        return None
    reached, began = _progress(course, steps_of(end)), _progress(course, steps_of(start))
    if reached >= limits.solved and not (mean(start) >= limits.flat and began >= limits.solved):
        return None  # solved by learning: nothing is left to teach
    same = share_of(course, steps_of(end), lambda s: s.distinct, lambda s: s.groups)
    why = "the task is too easy" if reached >= limits.solved else "nearly no answer earns more than another"
    if same < limits.distinct:
        why = "siblings are one text, see entropy-collapse"
    where = since(share, lambda y: y >= limits.flat)
    what = f"{left:.0%} of the groups have equal rewards: {why}"
    return sign(course, where, {"flat_groups": left, "progress": reached}, what)


def sampler_mismatch(course: Course, limits: Limits) -> Sign | None:
    """Sampler and trainer, or trainer and reference, give the same token another probability."""
    if found := _NOT_ONE.search(course.error):
        return sign(course, 1, {"mismatch": float(found[1])}, f"the run stopped: {first_line(course.error)}")
    points = course.curve("sampler_mismatch")
    if len(points) < limits.steps:
        return None
    last = mean(ends(points)[1])
    if last <= limits.mismatch:
        return None
    where = since(points, lambda y: y > limits.mismatch)
    began = mean(points[:1])
    what = f"{last:.3f} nats a token between sampler and trainer ({began:.4f} at the start)"
    return sign(course, where, {"mismatch_first": began, "mismatch": last}, what)


def reward_hacking(course: Course, limits: Limits) -> Sign | None:
    """What is rewarded rises; what is wanted falls or stays."""
    for place, proxy_name, proxy, truth_name, truth in _pairs(course):
        whole = trend(truth)
        if whole is None:
            continue
        top = max(range(len(truth)), key=lambda n: fmean(y for _, y in truth[max(0, n - 1) : n + 2]))
        for begin in sorted({truth[0][0], truth[top][0]}):
            up, down = (trend([p for p in points if p[0] >= begin]) for points in (proxy, truth))
            if up is None or down is None or not _rises(proxy, limits, begin):
                continue
            falls = down.rise < -limits.errors * down.error and -down.rise > limits.stays * _scale(truth)
            level = abs(down.rise) <= limits.stays * _scale(truth)
            stays = begin == truth[0][0] and level and not _rises(truth, limits)
            if proxy_name == "reward" and stays and not falls:
                continue  # a reward that is nothing but rules: its form is learned first, and that is no hack
            if stays and mean(ends(truth)[1]) >= limits.solved and max(y for _, y in truth) <= 1:
                continue
            if falls or stays:
                word = "falls" if falls else "stays"
                figure = {"proxy_before": up.before, "proxy": up.after}
                figure |= {"truth_before": down.before, "truth": down.after}
                what = f"{proxy_name} rises {up.before:.3g} → {up.after:.3g} while {truth_name} {word}"
                what += f", {down.before:.3g} → {down.after:.3g}"
                return sign(course, up.first, figure, f"{place}: {what}", up.last)
    return None


def frozen(course: Course, limits: Limits) -> Sign | None:
    """Parameters that no step moved."""
    lora = course.settings.get("lora") or {}
    tokens, rates = dict(course.curve("trained_tokens")), dict(course.curve("lr"))
    points = [(step, y) for step, y in course.curve("moved_tensors") if tokens.get(step, 1.0) > 0]
    if len(points) < limits.steps:
        return None
    most = max(y for _, y in points)
    if most >= (1e-9 if lora.get("rank") else limits.moved):
        return None
    varies = len({round(y, 6) for _, y in points}) > 1
    rate = max((rates.get(step, math.nan) for step, _ in points), default=math.nan)
    why = "always as many: they are not trained"
    if rate == 0:
        why = "the learning rate is 0"
    elif varies or most == 0:
        why = f"at a learning rate of {rate:.1g} a step is lost in the rounding of the weights"
    what = f"no step moved more than {most:.0%} of the parameter tensors; {why}"
    return sign(course, points[0][0], {"moved_tensors": most, "lr": rate}, what)


# ---- what rewards and truths a course has


def _pairs(course: Course) -> list[tuple[str, str, Curve, str, Curve]]:
    """(place, proxy's name and curve, truth's name and curve): held-out first, then each sub-task's samples."""
    found = []
    held_truth = next(
        (n for n in ("truth", "truth/helpful", "truth/accuracy", "accuracy", "pass@1") if n in course.held_out), ""
    )
    for name, points in course.held_out.items():
        if name == "proxy" or name.startswith(PREFERENCE):
            twin = TRUTH + name.removeprefix(PREFERENCE)
            truth = twin if twin in course.held_out else held_truth
            if truth and (twin in course.held_out or name != "preference/safety"):
                found.append(("held-out", name, points, truth, course.held_out[truth]))
    for task in course.samples:
        truth_of_task = _truth(course, task)
        if truth_of_task is None and held_truth and len(course.samples) == 1:
            truth_of_task = f"held-out {held_truth}", course.held_out[held_truth]
        if truth_of_task is None:
            continue
        names = [
            n for n in _reward_names(course, task) if not n.startswith(TRUTH) and n not in (*AUXILIARY, "accuracy")
        ]
        for name in names or ["reward"]:
            twin = TRUTH + name.removeprefix(PREFERENCE)
            twin_curve = _named(course, task, twin)
            if name.startswith(PREFERENCE) and not twin_curve and name != "preference/helpful":
                continue  # a truth of another kind says nothing of it
            curve = _named(course, task, name)
            found.append((task, name, curve, *((twin, twin_curve) if twin_curve else truth_of_task)))
    return found


def _reward_names(course: Course, task: str) -> list[str]:
    return sorted({name for s in course.samples[task].values() for name in s.named})


def _named(course: Course, task: str, name: str) -> Curve:
    """Mean of one reward over the samples that have it; "reward" is the whole."""
    if name == "reward":
        return course.of_samples(task, lambda s: s.reward / s.rollouts if s.rollouts else math.nan)

    def figure(sampled: Sampled) -> float:
        total, count = sampled.named.get(name, (0.0, 0))
        return total / count if count else math.nan

    return course.of_samples(task, figure)


def _truth(course: Course, task: str) -> tuple[str, Curve] | None:
    """The best word on whether a sub-task's answers are good: its hidden truth, else its accuracy."""
    names = _reward_names(course, task)
    known = [name for name in names if name.startswith(TRUTH)]
    name = next((n for n in ("truth/helpful", "truth/accuracy", *known, "accuracy") if n in names), "")
    return (name, _named(course, task, name)) if name else None


def _scale(points: Curve) -> float:
    """1 for shares, the largest value for what is larger."""
    return max(1.0, *(abs(y) for _, y in points))


def _rises(points: Curve, limits: Limits, begin: int = 0) -> bool:
    line = trend([p for p in points if p[0] >= begin])
    return line is not None and line.rise > limits.errors * line.error and line.rise >= limits.rise * _scale(points)


# ---- shares


def _progress(course: Course, steps: Sequence[int]) -> float:
    """Mean reward in these steps between the lowest (0) and the highest (1) seen of its sub-task; NaN if it never varied."""
    found, wanted = [], set(steps)
    for by_step in course.samples.values():
        low = min(s.lowest for s in by_step.values())
        high = max(s.highest for s in by_step.values())
        chosen = [s for step, s in by_step.items() if step in wanted and s.rollouts]
        if chosen and high > low:
            total = sum(s.reward for s in chosen) / sum(s.rollouts for s in chosen)
            found.append((total - low) / (high - low))
    if found:
        return fmean(found)
    return mean([(step, y) for step, y in course.curve("reward/accuracy") if step in wanted])


def share_of(
    course: Course, steps: Sequence[int], part: Callable[[Sampled], float], whole: Callable[[Sampled], float]
) -> float:
    """A sum over all sub-tasks divided by another; NaN if that is 0."""
    total = course.together(whole, steps)
    return course.together(part, steps) / total if total else math.nan


def _number(course: Course, name: str) -> float:
    value = course.settings.get(name)
    return float(value) if isinstance(value, (int, float)) else 0.0


def first_line(text: str) -> str:
    """Of an error, without its class."""
    return text.removeprefix("DunwuError: ").splitlines()[0][:200] if text else ""

"""Signs of further pathologies that are cheap to see: stops, lost rewards, cut-off, updates too large, a blind critic."""

from __future__ import annotations

import math
import re

from dunwu.eval.course import Course
from dunwu.eval.signs import Limits, Sign, first_line, share_of, sign
from dunwu.eval.trends import ends, error_of_mean, mean, since, steps_of


def explosion(course: Course, limits: Limits) -> Sign | None:
    """Numbers that are none, or gradients without bound: the run stopped."""
    found = re.search(r"(loss|gradient norm) is (\S+) at step (\d+)", course.error)
    if found:
        figure = {"value": float(found[2].rstrip(";:,"))}
        return sign(course, int(found[3]), figure, f"the run stopped: {first_line(course.error)}")
    if course.lost:
        step, key = course.lost[0]
        return sign(course, step, {"values": float(len(course.lost))}, f"{key} is no finite number")
    return None


def reward_collapse(course: Course, limits: Limits) -> Sign | None:
    """The reward was learned, and was lost again."""
    for task in course.samples:
        reward = course.of_samples(task, lambda s: s.reward / s.rollouts if s.rollouts else math.nan)
        if len(reward) < 2 * limits.steps:
            continue
        size = max(3, len(reward) // 6)
        windows = [reward[n : n + size] for n in range(len(reward) - size + 1)]
        best, end = max(windows, key=mean), windows[-1]
        low = min(s.lowest for s in course.samples[task].values())
        drop, noise = mean(best) - mean(end), math.hypot(error_of_mean(best), error_of_mean(end))
        if best[-1][0] >= end[0][0] or drop <= limits.errors * noise:
            continue
        if mean(end) - low <= limits.collapse * (mean(best) - low):
            half = low + 0.5 * (mean(best) + mean(end) - 2 * low)
            where = next(step for step, y in reward if step > best[-1][0] and y < half)
            figure = {"best": mean(best), "best_step": float(best[-1][0]), "reward": mean(end)}
            what = f"{task}: the reward fell from {mean(best):.3g} (to step {best[-1][0]}) to {mean(end):.3g}"
            return sign(course, where, figure, what)
    return None


def truncation(course: Course, limits: Limits) -> Sign | None:
    """Many completions are cut off, and earn less for it."""
    points = course.curve("truncated")
    if len(points) < limits.steps:
        return None
    end = ends(points)[1]
    steps, share = steps_of(end), mean(end)
    if not course.samples or share < limits.truncated:
        return None
    sampled = [s for by_step in course.samples.values() for s in by_step.values()]
    low, high = min(s.lowest for s in sampled), max(s.highest for s in sampled)
    cut = share_of(course, steps, lambda s: s.cut_reward - s.cut * low, lambda s: s.cut)
    whole = share_of(
        course, steps, lambda s: s.reward - s.cut_reward - (s.rollouts - s.cut) * low, lambda s: s.rollouts - s.cut
    )
    if not (cut <= 0.5 * whole and whole > limits.stays * (high - low)):
        return None  # where the others earn nothing either, it is not the length that fails
    where = since(points, lambda y: y >= limits.truncated)
    figure = {"truncated": share, "reward_cut": cut + low, "reward_whole": whole + low}
    what = f"{share:.0%} of the completions are cut off; they earn {cut + low:.2g}, the others {whole + low:.2g}"
    return sign(course, where, figure, what)


def verifier_errors(course: Course, limits: Limits) -> Sign | None:
    """Samples that nobody could judge."""
    errors = course.together(lambda s: s.errors, course.steps)
    total = errors + course.together(lambda s: s.rollouts, course.steps)
    if not total or errors / total < limits.verifier_errors:
        return None
    hit = [(step, s) for by_step in course.samples.values() for step, s in by_step.items() if s.errors]
    reason = next((s.reason for _, s in hit if s.reason), "")
    what = f"{errors / total:.0%} of the samples have no verdict" + (f": {first_line(reason)}" if reason else "")
    return sign(course, min(step for step, _ in hit), {"share": errors / total}, what)


def oversized_updates(course: Course, limits: Limits) -> Sign | None:
    """Updates that leave the policy that sampled far behind."""
    low, high = dict(course.curve("clip_low_frac")), dict(course.curve("clip_high_frac"))
    clipped = [(step, low.get(step, 0.0) + high.get(step, 0.0)) for step in sorted(low.keys() | high.keys())]
    kl = course.curve("approx_kl")
    for name, points, limit, alone in (
        ("approx_kl", kl, limits.step_kl, limits.single_kl),
        ("clipped", clipped, limits.clipped, 1.0),
    ):
        for size, bound in ((max(3, len(points) // 6), limit), (1, alone)):
            if len(points) < size or len(course.steps) < limits.steps:
                continue
            worst = max((points[n : n + size] for n in range(len(points) - size + 1)), key=mean)
            if mean(worst) >= bound:
                unit = "nats a token from the policy that sampled" if name == "approx_kl" else "of the tokens clipped"
                where = f"steps {worst[0][0]} to {worst[-1][0]}" if size > 1 else f"step {worst[0][0]}"
                what = f"{mean(worst):.2g} {unit}, in {where}"
                return sign(course, worst[0][0], {name: mean(worst)}, what, worst[-1][0])
    return None


def kl_runaway(course: Course, limits: Limits) -> Sign | None:
    """The policy leaves its reference faster and faster."""
    points = course.curve("ref_kl")
    if len(points) < 2 * limits.steps:
        return None
    third = len(points) // 3
    middle, end = mean(points[third : 2 * third]), mean(points[-third:])
    if end < limits.ref_kl or end < 2 * middle:
        return None
    where = since(points, lambda y: y >= limits.ref_kl)
    what = f"KL to the reference {middle:.2g} → {end:.2g} nats a token, and still doubling"
    return sign(course, where, {"ref_kl_middle": middle, "ref_kl": end}, what)


def blind_critic(course: Course, limits: Limits) -> Sign | None:
    """A critic that knows no more than the mean."""
    points = course.curve("explained_variance")
    late = points[len(points) // 2 :]
    if len(late) < limits.critic_steps or sorted(y for _, y in late)[len(late) // 2] > 0:
        return None
    middle = sorted(y for _, y in late)[len(late) // 2]
    what = f"explained variance {middle:.2g} (median of {len(late)} steps): the critic adds noise to the advantages"
    return sign(course, late[0][0], {"explained_variance": middle}, what)

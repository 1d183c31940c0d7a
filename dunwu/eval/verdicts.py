"""The shape of R1's stage table as claims that figures decide: holds, fails, or open, each with its interval.

The claims are those the paper draws from its Table 3 and section 4 (arXiv 2501.12948 v2). A claim about a difference holds
if the whole 95% interval is on its side, fails if the whole interval is on the other, and is open where it has both.
A claim that does not hold says in `reason` what the figures point to: a rule's guess from this table, not a diagnosis.
Not covered: correction for asking eleven questions of one table.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dunwu.eval.passk import Interval, over_seeds
from dunwu.eval.stages import Measured, difference

REASONING, INSTRUCTION, HELPFUL = "reasoning", "instruction", "helpful"
HELPFUL_MODEL = "rm-helpful"
FACTS, SAFETY, LANGUAGE, FORMAT, LENGTH = "facts", "safety", "language", "format", "length"
ZERO, DEV1, DEV2, DEV3, R1 = "R1-Zero", "Dev1", "Dev2", "Dev3", "R1"
ARMS = {"base": "base", "sft": "SFT", "rl": "RL alone", "opd": "on-policy distillation"}
"""Arms of a student."""

PAPER_TABLE: Mapping[str, Mapping[str, tuple[float, ...]]] = {
    REASONING: {"AIME 2024": (77.9, 59.0, 74.0, 78.1, 79.8)},
    "reasoning_easy": {"MATH-500": (95.9, 94.2, 95.9, 95.4, 97.3)},
    INSTRUCTION: {"IF-Eval": (46.6, 71.7, 72.0, 78.1, 83.3)},
    HELPFUL: {"AlpacaEval 2": (24.7, 50.1, 55.8, 62.1, 87.6), "ArenaHard": (53.6, 77.0, 73.2, 75.6, 92.3)},
    FACTS: {"SimpleQA": (30.3, 17.8, 28.2, 24.9, 30.1), "C-Eval": (92.8, 85.7, 91.9, 86.4, 91.8)},
}
"""The paper's Table 3, in percent, for R1-Zero, Dev1, Dev2, Dev3, R1: the benchmarks nearest to our columns."""
PAPER_MODELS = (ZERO, DEV1, DEV2, DEV3, R1)
"""The columns of that table."""
FLAT = 2.0
"""Points by which a paper figure must change to be drawn as up or down."""


@dataclass(frozen=True)
class Margins:
    """How much is much, in the units of the table (shares)."""

    gain: float = 0.25
    """R1 above Dev1 on held-out reasoning."""
    close: float = 0.05
    """What counts as hardly a move, of reasoning under the final RL."""
    lost: float = 0.05
    """Most that mixed SFT may cost in reasoning, and that Dev2 may stay below R1-Zero."""
    consistent: float = 0.98
    """Language consistency with its reward."""
    decay: float = 0.02
    """What counts as visible decay of language consistency without it."""
    agreement: float = 0.75
    """Held-out agreement of the helpful reward model with the truth."""


@dataclass(frozen=True)
class Student:
    """A student of the table: its size, its arm ("base", "sft", "rl", "opd") and what it scored."""

    name: str
    size: str
    arm: str
    measured: Measured


@dataclass(frozen=True)
class Findings:
    """Everything the claims are decided from; what is missing leaves its claim open."""

    rows: Mapping[str, Measured]
    """By name: R1-Zero, Dev1, Dev2, Dev3, R1."""
    without_language: Measured | None = None
    """Dev2 trained without the language reward."""
    agreement: Interval | None = None
    """The helpful reward model's held-out agreement with the truth."""
    students: Sequence[Student] = ()
    """Of every size and arm."""
    margins: Margins = field(default_factory=Margins)
    """How much is much."""


class Finding(NamedTuple):
    """One figure that bears on a claim."""

    holds: bool | None
    figure: str


def shape_verdicts(found: Findings) -> list[dict[str, Any]]:
    """The eleven claims in the order of the stages: `{"claim", "holds", "figure", "reason"}`; `reason` "" where one holds."""
    claims = (
        _follows, _pays, _recovers, _broadens, _pleases, _keeps, _gains, _speaks, _agrees, _distils, _distils_on_policy,
    )  # fmt: skip
    return [claim(found) for claim in claims]


def seed_verdicts(seeds: Sequence[Mapping[str, Any]], margins: Margins | None = None) -> list[dict[str, Any]]:
    """The claims on reasoning and on the helpful reward model once more, over independent runs: per-run differences with Student's t interval.

    Args:
        seeds: `[{"seed": n, "scores": {"Dev1": {"reasoning": share, …}, "rm-helpful": {"agreement": share}, …}}, …]`; runs without a figure are left out of
            its claim, and the figure says how many it rests on.
        margins: how much is much.
    """
    margins = margins or Margins()
    asked: tuple[tuple[str, list[tuple[str, str, Callable[[Interval], bool | None]]]], ...] = (
        ("cold start lowers reasoning", [(DEV1, ZERO, _below)]),
        (
            f"reasoning RL recovers it (Dev2 above Dev1, and at most {margins.lost:.2f} below R1-Zero)",
            [(DEV2, DEV1, _above), (DEV2, ZERO, lambda i: _above(i, -margins.lost))],
        ),
        ("the final RL hardly moves it", [(R1, DEV3, lambda i: _within(i, margins.close))]),
        (f"R1 beats Dev1 by {margins.gain:.2f}", [(R1, DEV1, lambda i: _above(i, margins.gain))]),
    )
    found, why = [], "the runs differ from each other or from the claim"
    for claim, parts in asked:
        named = {name for after, before, _ in parts for name in (after, before)}
        scores = [seed["scores"] for seed in seeds if all(_has(seed["scores"], name) for name in named)]
        if len(scores) >= 2:
            judged = []
            for after, before, judge in parts:
                interval = over_seeds([s[after][REASONING] - s[before][REASONING] for s in scores])
                judged.append(Finding(judge(interval), f"{after} − {before}: {_signed(interval)}"))
            found.append(_verdict(f"Over {len(scores)} seeds: {claim}", judged, why))
    agreements = [s["scores"][HELPFUL_MODEL]["agreement"] for s in seeds if HELPFUL_MODEL in s["scores"]]
    if len(agreements) >= 2:
        interval, each = over_seeds(agreements), ", ".join(f"{value:.3f}" for value in agreements)
        claim = f"the helpful reward model agrees with the truth on {margins.agreement:.2f} of held-out pairs"
        part = Finding(_above(interval, margins.agreement, equal=True), f"{interval} ({each})")
        found.append(_verdict(f"Over {len(agreements)} seeds: {claim}", [part], why))
    return found


# ---- the claims -------------------------------------------------------------------------------


def _follows(found: Findings) -> dict[str, Any]:
    change = _change(found, INSTRUCTION, DEV1, ZERO)
    if _score(found, ZERO, INSTRUCTION) > 0.9:
        why = "R1-Zero already follows nearly every instruction, which leaves the cold start nothing to raise"
    else:
        why = (
            "the cold-start data may hold too few conversations with instructions, or too few updates were made on them"
        )
    return _verdict("Cold start raises instruction following (Dev1 above R1-Zero)", [_judged(change, _above)], why)


def _pays(found: Findings) -> dict[str, Any]:
    change = _change(found, REASONING, DEV1, ZERO)
    if _score(found, ZERO, REASONING) < _score(found, DEV1, REASONING):
        why = "imitating selected correct samples taught the base more than R1-Zero's own RL, which may have been short"
    else:
        why = "the cold-start data come from R1-Zero itself and are all correct, so little is lost at this size"
    return _verdict("Cold start lowers reasoning (Dev1 below R1-Zero)", [_judged(change, _below)], why)


def _recovers(found: Findings) -> dict[str, Any]:
    lost = found.margins.lost
    above = _judged(_change(found, REASONING, DEV2, DEV1), _above)
    near = _judged(_change(found, REASONING, DEV2, ZERO), lambda i: _above(i, -lost))
    if above.holds:
        why = "the RL stage is shorter than what R1-Zero had, or the language reward takes its share of the signal"
    else:
        why = "too few RL steps or groups without signal: see the reward and zero-variance curves of dev2"
    claim = f"Reasoning RL recovers it (Dev2 above Dev1, and at most {lost:.2f} below R1-Zero)"
    return _verdict(claim, [above, near], why)


def _broadens(found: Findings) -> dict[str, Any]:
    lost = found.margins.lost
    general = [key for key in (HELPFUL, FACTS, INSTRUCTION) if _change(found, key, DEV3, DEV2) is not None]
    parts = [_judged(_change(found, key, DEV3, DEV2), lambda i: _above(i, -lost), key) for key in general]
    raised = [_judged(_change(found, key, DEV3, DEV2), _above).holds for key in general]
    some = Finding(True if True in raised else None if None in raised or not raised else False, "")
    kept = _judged(_change(found, REASONING, DEV3, DEV2), lambda i: _above(i, -lost), REASONING)
    if not general:
        parts = [Finding(None, "general columns not measured")]
    if kept.holds is False:
        why = "the reasoning share of the SFT data is too small, or two epochs too few, for a base of this size to relearn it"
    else:
        why = "the general data are few, or Dev2 knew as much already; a column that falls names what the data lack"
    claim = (
        f"Mixed SFT broadens (Dev3 above Dev2 on a general column; none, nor reasoning, down by more than {lost:.2f})"
    )
    return _verdict(claim, [*parts, some, kept], why)


def _pleases(found: Findings) -> dict[str, Any]:
    # Both columns are asked; the paper has no safety column in Table 3, and speaks of preference scores.
    parts = [_judged(_change(found, key, R1, DEV3), _above, key) for key in (HELPFUL, SAFETY)]
    if _score(found, DEV3, HELPFUL) > 0.9 or _score(found, DEV3, SAFETY) > 0.95:
        why = "Dev3 is near the ceiling already"
    else:
        why = "the preference reward is learned and comes only in the last steps: see agreement and over-optimisation"
    return _verdict("The final RL lifts preference (R1 above Dev3 in helpfulness and in safety)", parts, why)


def _keeps(found: Findings) -> dict[str, Any]:
    close = found.margins.close
    change = _change(found, REASONING, R1, DEV3)
    moved_up = change is not None and change.value > 0
    if moved_up:
        why = "Dev3 had not converged on reasoning, and the rule rewards of the final RL still teach it"
    else:
        why = "preference steps crowd out reasoning prompts: fewer of them, or a smaller weight, would keep it"
    claim = f"The final RL hardly moves reasoning (R1 within {close:.2f} of Dev3)"
    return _verdict(claim, [_judged(change, lambda i: _within(i, close))], why)


def _gains(found: Findings) -> dict[str, Any]:
    gain = found.margins.gain
    change = _change(found, REASONING, R1, DEV1)
    if _score(found, DEV1, REASONING) > 1 - gain:
        why = f"Dev1 stands at {_score(found, DEV1, REASONING):.2f}, which leaves less than {gain:.2f} to gain"
    else:
        why = "reasoning RL or the SFT on its samples gave less than that: compare Dev2 and Dev3 in the table"
    claim = f"R1 beats Dev1 by at least {gain:.2f} on held-out reasoning"
    return _verdict(claim, [_judged(change, lambda i: _above(i, gain, equal=True))], why)


def _speaks(found: Findings) -> dict[str, Any]:
    margins, dev1, dev2 = found.margins, found.rows.get(DEV1), found.rows.get(DEV2)
    kept = dev2.scores.get(LANGUAGE) if dev2 else None
    with_reward = Finding(None, "Dev2 not measured")
    if kept is not None:
        with_reward = Finding(_above(kept, margins.consistent, equal=True), f"with the reward {kept}")
    # Below Dev1, where both began: below Dev2 alone could be Dev2's rise.
    decay = difference(found.without_language, dev1, LANGUAGE) if found.without_language and dev1 else None
    without = Finding(None, "the ablation was not measured")
    if decay is not None:
        without = Finding(_below(decay, -margins.decay), f"without it, against Dev1: {_signed(decay)}")
    if with_reward.holds is False:
        why = "chains still mix languages with the reward: longer training or a larger weight would hold them"
    elif dev1 is not None and dev1.scores.get(LANGUAGE, Interval(0, 0, 0, 0)).value > 0.99:
        why = "Dev1 hardly mixes languages, so nothing pulled the RL without the reward away within its steps"
    else:
        why = "the RL without the reward found no gain in the other language within its steps"
    claim = f"The language reward keeps consistency at {margins.consistent:.2f}; without it, it decays"
    return _verdict(claim, [with_reward, without], why)


def _agrees(found: Findings) -> dict[str, Any]:
    least, agreement = found.margins.agreement, found.agreement
    part = Finding(None, "not measured")
    if agreement is not None:
        part = Finding(_above(agreement, least, equal=True), f"{agreement}")
    claim = f"The helpful reward model agrees with the truth on {least:.2f} of held-out pairs"
    why = "too few pairs, noise of the judge, or a preference for length: see its calibration and length bias"
    return _verdict(claim, [part], why)


def _distils(found: Findings) -> dict[str, Any]:
    claim = "Distillation beats RL on the small student (SFT on R1's data above RL alone)"
    why = "at this size RL alone finds what the data would teach, or the student is too small to imitate long chains"
    return _verdict(claim, _arms(found.students, "sft", "rl"), why)


def _distils_on_policy(found: Findings) -> dict[str, Any]:
    claim = "On-policy distillation beats both SFT and RL on the small student"
    parts = [*_arms(found.students, "opd", "sft"), *_arms(found.students, "opd", "rl")]
    why = "the student's own samples leave what the teacher knows, or the SFT arm is at the teacher's level already"
    return _verdict(claim, parts, why)


# ---- how a claim is decided -------------------------------------------------------------------


def _above(interval: Interval, bound: float = 0.0, equal: bool = False) -> bool | None:
    """Is the figure above the bound (or equal to it)? None where the interval has both sides."""
    if interval.low > bound or (equal and interval.low >= bound):
        return True
    return False if interval.high < bound or (not equal and interval.high <= bound) else None


def _below(interval: Interval, bound: float = 0.0) -> bool | None:
    return _above(Interval(-interval.value, -interval.high, -interval.low, interval.n), -bound)


def _within(interval: Interval, close: float) -> bool | None:
    """Is the size of the figure at most `close`?"""
    if -close <= interval.low and interval.high <= close:
        return True
    return False if interval.low > close or interval.high < -close else None


def _judged(change: Interval | None, judge: Any, name: str = "") -> Finding:
    label = f"{name} " if name else ""
    return Finding(None, f"{label}not measured") if change is None else Finding(judge(change), label + _signed(change))


def _arms(students: Sequence[Student], better: str, worse: str) -> list[Finding]:
    """The two arms of every size that has both, compared on reasoning."""
    found = []
    for size in dict.fromkeys(student.size for student in students):
        arms = {student.arm: student.measured for student in students if student.size == size}
        if better in arms and worse in arms:
            change = difference(arms[better], arms[worse], REASONING)
            name = f"{size}, {ARMS[better]} − {ARMS[worse]}:"
            found.append(_judged(change, _above, name))
    return found or [Finding(None, "no student has both arms")]


def _change(found: Findings, column: str, after: str, before: str) -> Interval | None:
    if after not in found.rows or before not in found.rows:
        return None
    return difference(found.rows[after], found.rows[before], column)


def _score(found: Findings, name: str, column: str) -> float:
    """A model's figure; not a number, and so beyond no bound, where there is none."""
    row = found.rows.get(name)
    return row.scores[column].value if row and column in row.scores else math.nan


def _has(scores: Mapping[str, Any], name: str) -> bool:
    return REASONING in scores.get(name, {})


def _verdict(claim: str, parts: Sequence[Finding], why: str) -> dict[str, Any]:
    """All parts must hold; one that fails decides."""
    answers = [part.holds for part in parts]
    holds = False if False in answers else None if None in answers else True
    figure = "; ".join(part.figure for part in parts if part.figure)
    missing = holds is None and any("not measured" in part.figure or "no student" in part.figure for part in parts)
    reason = "" if holds else "not measured in this run" if missing else _said(holds, why)
    return {"claim": claim, "holds": holds, "figure": figure, "reason": reason}


def _said(holds: bool | None, why: str) -> str:
    if holds is None:
        return "open: the interval has both answers; more problems or seeds would decide"
    return f"not reproduced: {why}"


def _signed(interval: Interval) -> str:
    return f"{interval.value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"

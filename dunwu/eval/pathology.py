"""What goes wrong in reinforcement learning, by name and with its cure: `dunwu doctor RUN` on files alone.

`signs.py` and `signs_more.py` have a function for each, of a `Course`; docs/doctor.md is this table for readers.

Not covered: pathologies that leave no trace in metrics or samples, such as a wrong gold answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dunwu.eval import signs, signs_more
from dunwu.eval.course import Course
from dunwu.eval.signs import Judge, Limits


@dataclass(frozen=True)
class Finding:
    """A pathology that a stage shows.

    Attributes:
        first_step, last_step: where it shows.
        figure: the evidence, by name.
        what: the same as a sentence.
        cure: settings that treat it.
    """

    pathology: str
    stage: str
    first_step: int
    last_step: int
    figure: Mapping[str, float]
    what: str
    cure: str

    def as_json(self) -> dict[str, Any]:
        """A plain object."""
        return asdict(self)


@dataclass(frozen=True)
class Pathology:
    """A name, its judge, and what treats it."""

    name: str
    chinese: str
    judge: Judge
    cure: str
    source: str


PATHOLOGIES: tuple[Pathology, ...] = (
    Pathology("entropy-collapse", "熵坍缩", signs.entropy_collapse,
              "lower lr (`dunwu run lr-find`), raise clip_high (0.28), or set stability.entropy_coef or entropy_target",
              "2505.22617; DAPO 2503.14476, 3.1"),
    Pathology("length-hacking", "长度投机", signs.length_hacking,
              "take length out of the reward; overlong penalty, loss_norm constant, smaller max_tokens",
              "Dr. GRPO 2503.20783; Singhal et al. 2310.03716"),
    Pathology("zero-variance-starvation", "零方差断粮", signs.starvation,
              "problems of the right difficulty (or SFT first), larger group_size, temperature 1, dynamic_rounds above 1",
              "DAPO 2503.14476, 3.2"),
    Pathology("sampler-mismatch", "采样失配", signs.sampler_mismatch,
              "sample with the trainer's weights, dtype and temperature; routing_replay; off_policy.tis truncate",
              "Yao et al. 2025, Off-Policy RL (TIS)"),
    Pathology("reward-hacking", "奖励投机", signs.reward_hacking,
              "reward by rule, kl_coef above 0 (stability.kl_target), stop earlier, an ensemble of reward models",
              "Gao et al. 2210.10760; R1 2501.12948, 3.2"),
    Pathology("frozen-parameters", "参数冻结", signs.frozen,
              "raise lr; see that every parameter requires its gradient (with adapters: lora.rank, lora.targets)",
              "moved_tensors in docs/metrics.md"),
    Pathology("explosion", "数值爆炸", signs_more.explosion,
              "lower lr, max_grad_norm 1 or less, a longer warmup; the batch is saved beside the last checkpoint",
              "docs/grpo.md"),
    Pathology("reward-collapse", "奖励崩塌", signs_more.reward_collapse,
              "lower lr (`dunwu run lr-find`), kl_coef above 0, stability.stop_kl; go back to the checkpoint before it",
              "Henderson et al. 1709.06560"),
    Pathology("truncation", "截断", signs_more.truncation,
              "larger max_tokens, or overlong mask or penalty",
              "DAPO 2503.14476, 3.4; ScaleRL 2510.13786"),
    Pathology("verifier-errors", "判分失败", signs_more.verifier_errors,
              "mend the score function or its time limit: `dunwu score` shows the error of one completion",
              "docs/tasks.md"),
    Pathology("oversized-updates", "更新过大", signs_more.oversized_updates,
              "lower lr, fewer minibatches or epochs, or stability.stop_kl 0.02",
              "Schulman et al. 1707.06347"),
    Pathology("kl-runaway", "KL 失控", signs_more.kl_runaway,
              "larger kl_coef, stability.kl_target, or reference_every",
              "Ziegler et al. 1909.08593, 2.2"),
    Pathology("blind-critic", "价值失明", signs_more.blind_critic,
              "value_warmup, larger value_lr, critic own; or critic none, which needs no value",
              "Schulman et al. 1506.02438"),
)  # fmt: skip


def examine(courses: Sequence[Course], limits: Limits | None = None) -> list[Finding]:
    """Every pathology of every stage, in the order of `courses` and `PATHOLOGIES`."""
    limits = limits or Limits()
    found = []
    for course in courses:
        for p in PATHOLOGIES:
            if sign := p.judge(course, limits):
                found.append(
                    Finding(p.name, course.stage, sign.first_step, sign.last_step, sign.figure, sign.what, p.cure)
                )
    return found

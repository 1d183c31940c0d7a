"""Coefficients that steer themselves: the KL's weight and the entropy bonus's. Pure functions of what was measured.

    β ← β · (1 + K_β · clip(KL / target − 1, ±0.2))         Ziegler et al. 2019, arXiv 1909.08593, 2.2
    α ← α + rate while the entropy is under its target,     after Skywork-OR1, arXiv 2505.22312, which besides switches
        else α − rate, never below 0                        the bonus off at once above the target

What guards against numbers gone bad is `steps.check_finite`; what names a drift afterwards is `dunwu doctor RUN`.
"""

from __future__ import annotations

from collections.abc import Mapping

from dunwu.train.config import PolicyConfig


def next_kl_coef(coef: float, kl: float, target: float, gain: float = 0.1) -> float:
    """β of the next step.

    Args:
        coef: β now.
        kl: measured mean KL to the reference, nats a token.
        target: what it should be.
        gain: K_β.

    Example:
        >>> next_kl_coef(0.1, kl=0.3, target=0.1), next_kl_coef(0.1, kl=0.09, target=0.1)  # +20% at most, and −1%
        (0.10200000000000001, 0.099)
    """
    error = min(0.2, max(-0.2, kl / target - 1.0))
    return coef * (1.0 + gain * error)


def next_entropy_coef(coef: float, entropy: float, target: float, rate: float) -> float:
    """α of the next step.

    Example:
        >>> next_entropy_coef(0.0, entropy=0.2, target=0.3, rate=0.005), next_entropy_coef(0.004, 0.4, 0.3, 0.005)
        (0.005, 0.0)
    """
    return coef + rate if entropy < target else max(0.0, coef - rate)


def coefficients(held: Mapping[str, float], config: PolicyConfig) -> dict[str, float]:
    """The coefficients of this step: as `held` from the last one, or as configured."""
    return {"kl_coef": config.kl_coef, "entropy_coef": config.stability.entropy_coef} | dict(held)


def steered(held: Mapping[str, float], config: PolicyConfig, entropy: float, ref_kl: float | None) -> dict[str, float]:
    """What to hold for the next step; {} where nothing is steered, so that constant coefficients stay in the config alone."""
    now, rules, following = coefficients(held, config), config.stability, {}
    if rules.kl_target and ref_kl is not None:
        following["kl_coef"] = next_kl_coef(now["kl_coef"], ref_kl, rules.kl_target, rules.kl_gain)
    if rules.entropy_target:
        coef = next_entropy_coef(now["entropy_coef"], entropy, rules.entropy_target, rules.entropy_rate)
        following["entropy_coef"] = coef
    return following

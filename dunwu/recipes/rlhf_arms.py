"""The arms of RLHF: reinforcement by learned preference, with proxy, truth and KL measured on the way and at the end.

Proxy: what the arm's judges give a reply, in standard deviations above the demonstrations. Truth: the world's `helpful`.
KL: mean over replies of log π − log π_SFT of the whole reply, in nats, sampled from π.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from dunwu.data.tokenizer import Tokenizer, load_tokenizer
from dunwu.disk import write_atomically
from dunwu.eval.evaluate import held_out, sample_groups
from dunwu.eval.passk import Interval, mean_change, mean_share, over_seeds
from dunwu.eval.report_rlhf import SFT, curve_svg, rlhf_table, rlhf_verdicts
from dunwu.log import Run, read_json, read_metrics
from dunwu.model.hf import from_pretrained, save_model
from dunwu.model.runtime import COMPUTED, resolve_device
from dunwu.model.transformer import Transformer
from dunwu.recipes.ppo import pages_of
from dunwu.recipes.pretraining import MODEL
from dunwu.recipes.reinforce import open_learner, reinforce, save_learner
from dunwu.recipes.rlhf_config import Arm, RlhfConfig
from dunwu.recipes.rlhf_stages import ZERO, rewarded
from dunwu.rollout.best_of import best_of_kl, mean_best_of_curve
from dunwu.rollout.engine import Engine
from dunwu.store import Artifact
from dunwu.train.losses import state_logprobs
from dunwu.train.preference import DISAGREEMENT, HELPFUL, TRUTH, PreferenceTask
from dunwu.types import DunwuError, Group, Sampler, SamplingParams
from dunwu.world.general_judge import REFUSALS

KEPT, MEASURED, FILE, PLOT = "kept", "measured.json", "rlhf.json", "over-optimisation.svg"
PARTS = ("correct", "instruction", "in_language", "polite", "sentence", "fluent", "safe")
"""What the truth is made of."""
ROWS = 128
"""Replies of one forward pass."""
HELPED = f"{TRUTH}helpful"


# ---- measuring ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """What a policy's replies to some prompts were worth, reply by reply."""

    truth: list[float]
    proxy: list[float]
    kl: float
    """Nats a reply."""
    length: float
    """Tokens a reply, the stop token included."""
    refusals: float
    """Share of replies that refuse."""
    parts: dict[str, float]
    """Means of what the truth is made of."""
    disagreement: float | None
    """Mean over the replies of the members' standard deviation; None of one judge."""
    replies: list[str]

    @property
    def point(self) -> dict[str, float]:
        """A point of a curve, as it is logged."""
        found = {"proxy": fmean(self.proxy), "truth": fmean(self.truth), "kl": self.kl, "length": self.length}
        found |= {"refusals": self.refusals} | {f"truth/{name}": value for name, value in self.parts.items()}
        if self.disagreement is not None:
            found["disagreement"] = self.disagreement
        return {f"rlhf/{name}": value for name, value in found.items()}


class Gauge:
    """The same held-out prompts for every policy, with the same dice.

    Args:
        task: judges the replies.
        reference: the SFT model.
        split, problems: which prompts, each asked once.
    """

    def __init__(
        self, task: PreferenceTask, encoder: Tokenizer, reference: Transformer, split: str, problems: int, tokens: int
    ) -> None:
        self.task, self.encoder, self.reference = task, encoder, reference
        self.problems = held_out(task, split, problems)
        self.params = SamplingParams(max_tokens=tokens)

    def take(self, engine: Engine) -> Reading:
        """One reply to every prompt.

        Raises:
            DunwuError: a reward model gave no number.
        """
        groups = sample_groups(engine, self.encoder, self.task, self.problems, 1, self.params)
        rollouts = [group.rollouts[0] for group in groups]
        rewards = [_rewards(rollout.verdict.rewards) for rollout in rollouts]
        spread = [found[DISAGREEMENT] for found in rewards if DISAGREEMENT in found]
        replies = [rollout.completion.text for rollout in rollouts]
        return Reading(
            truth=[found[HELPED] for found in rewards],
            proxy=[found[HELPFUL] for found in rewards],
            kl=divergence(engine.model, self.reference, groups),
            length=fmean(len(rollout.completion.token_ids) for rollout in rollouts),
            refusals=fmean(any(word in reply.lower() for word in REFUSALS) for reply in replies),
            parts={name: fmean(found[TRUTH + name] for found in rewards) for name in PARTS},
            disagreement=fmean(spread) if spread else None,
            replies=replies,
        )


def _rewards(rewards: Mapping[str, float]) -> Mapping[str, float]:
    if HELPFUL not in rewards:
        raise DunwuError("a reward model's score is no number", "lower its learning rate, or the policy's")
    return rewards


@torch.inference_mode()
def divergence(policy: Transformer, reference: Transformer, groups: Sequence[Group]) -> float:
    """Mean over the completions of Σ_t (log π − log π_reference), nats: an unbiased estimate of KL(π ‖ reference)."""
    texts = [(group.prompt_ids, rollout.completion.token_ids) for group in groups for rollout in group.rollouts]
    texts.sort(key=lambda text: -len(text[0]) - len(text[1]))
    total, device = 0.0, policy.head_weight.device
    for start in range(0, len(texts), ROWS):
        part = texts[start : start + ROWS]
        width = max(len(prompt) + len(reply) for prompt, reply in part)
        ids = torch.zeros(len(part), width, dtype=torch.long)
        places: list[int] = []
        for row, (prompt, reply) in enumerate(part):
            ids[row, : len(prompt) + len(reply)] = torch.tensor([*prompt, *reply])
            first = row * width + len(prompt) - 1  # the state that predicts the reply's first token
            places += range(first, first + len(reply))
        targets_N = torch.tensor([token for _, reply in part for token in reply], device=device)
        ours_N, theirs_N = (
            state_logprobs(model.hidden(ids.to(device)).flatten(0, 1)[places], model.head_weight, targets_N)[0]
            for model in (policy, reference)
        )
        total += float((ours_N.double() - theirs_N.double()).sum())
    return total / len(texts)


# ---- reinforcement --------------------------------------------------------------------------


def optimised(
    run: Run, config: RlhfConfig, arm: Arm, sft: Artifact, models: Artifact, zero: Artifact, tokens: Artifact | None
) -> Artifact:
    """The SFT model reinforced by an arm's judges; the critic begins as the first of them. The model of every point is kept."""
    device, settings, wanted = resolve_device(config.device), config.settings(arm), config.measure
    name = f"rl-{arm.name}"
    mixed = tokens if arm.ptx_coef else None
    windows = (config.pretrain.rows, config.pretrain.context)

    def build(work: Path) -> dict[str, object]:
        folder = sft.path / MODEL
        learner, encoder, state = open_learner(work, folder, settings, device, critic_from=models.path / MODEL)
        engine = Engine(learner.policy, encoder, lambda: learner.optimizer.version)
        task = rewarded(config, arm.judges, models, zero)
        gauge = Gauge(task, encoder, from_pretrained(folder, device), "valid", wanted.problems, settings.max_tokens)
        pages = pages_of(mixed.path / "train", encoder.vocab_size, *windows, run.seed) if mixed else None

        def on_step(step: int) -> dict[str, float]:
            if step % wanted.every and step != settings.steps:
                return {}
            point = gauge.take(engine).point
            run.log(f"{name}/held-out", step, point)
            save_model(learner.policy, work / KEPT / str(step), encoder.end_id, encoder.stop_ids)
            return {figure: point[f"rlhf/{figure}"] for figure in ("proxy", "truth", "kl")}

        every, seed = config.save_every, run.seed
        last = reinforce(run, name, learner, engine, encoder, task, settings, seed, work, state, every, on_step, pages)
        save_learner(learner, encoder, work)
        return {figure: last[figure] for figure in ("proxy", "truth", "kl")}

    key: dict[str, Any] = {"judges": arm.judges, arm.method: settings, "clip": config.reward_clip, "seed": run.seed}
    key |= {"curve": [wanted.every, wanted.problems], "chinese": config.chinese}
    key |= {"ptx": windows} if mixed else {}
    return run.stage(name, build, key, [sft, models, zero, *([mixed] if mixed else [])], version=COMPUTED)


def curve_of(arm: Arm, made: Artifact) -> list[dict[str, Any]]:
    """The points of an arm's curve: `{"step", "kl", "proxy", "truth", "length", "refusals", …}`."""
    lines = [line for line in read_metrics(made.path) if line["stage"] == f"rl-{arm.name}/held-out"]
    return [
        {"step": line["step"]} | {k.removeprefix("rlhf/"): v for k, v in line.items() if k.startswith("rlhf/")}
        for line in lines
    ]


def stops(curve: Sequence[Mapping[str, Any]], budget: float) -> dict[str, int]:
    """Steps of an arm that are measured: where the validation truth was highest, which only the world knows; where early
    stopping stops, which sees the KL alone; and the last.

    Example:
        >>> points = [(0, 0.0, 0.5), (5, 1.0, 0.7), (10, 3.0, 0.6), (15, 1.5, 0.4)]
        >>> stops([{"step": s, "kl": kl, "truth": t} for s, kl, t in points], budget=2.0)
        {'peak': 5, 'stop': 5, 'last': 15}
    """
    stop = curve[0]["step"]
    for point in curve:
        if point["kl"] > budget:
            break
        stop = point["step"]
    peak = max(curve, key=lambda point: point["truth"])["step"]
    return {"peak": peak, "stop": stop, "last": curve[-1]["step"]}


def measured(
    run: Run, config: RlhfConfig, arm: Arm, sft: Artifact, models: Artifact, zero: Artifact, made: Artifact
) -> Artifact:
    """The SFT model and an arm's peak, stop and end on test prompts."""
    device, wanted, settings = resolve_device(config.device), config.measure, config.settings(arm)

    def build(work: Path) -> dict[str, object]:
        folder, task = sft.path / MODEL, rewarded(config, arm.judges, models, zero)
        encoder = load_tokenizer(folder)
        gauge = Gauge(task, encoder, from_pretrained(folder, device), "test", wanted.final, settings.max_tokens)
        steps = {SFT: 0} | stops(curve_of(arm, made), wanted.kl_budget)
        taken: dict[int, dict[str, Any]] = {}
        for step in sorted(set(steps.values())):
            reading = gauge.take(Engine(from_pretrained(made.path / KEPT / str(step), device), encoder))
            taken[step] = asdict(reading) | {"step": step, "replies": reading.replies[: wanted.shown]}
        prompts = [problem.messages[-1].content for problem in gauge.problems[: wanted.shown]]
        found = {"prompts": prompts} | {name: taken[step] for name, step in steps.items()}
        write_atomically(work / MEASURED, json.dumps(found, ensure_ascii=False) + "\n")
        return {name: fmean(taken[step]["truth"]) for name, step in steps.items()}

    key = {"final": wanted.final, "budget": wanted.kl_budget, "shown": wanted.shown}
    return run.stage(f"measure-{arm.name}", build, key, [sft, models, zero, made], version=COMPUTED)


def best_of_n(run: Run, config: RlhfConfig, sft: Artifact, models: Artifact, zero: Artifact) -> Artifact | None:
    """Proxy and truth of the best of n replies of the SFT model by the first judge, n a power of two (arXiv 2210.10760)."""
    wanted, device = config.measure, resolve_device(config.device)
    if not wanted.best_of:
        return None

    def build(work: Path) -> dict[str, object]:
        task, encoder = rewarded(config, "one", models, zero), load_tokenizer(sft.path / MODEL)
        engine: Sampler = Engine(from_pretrained(sft.path / MODEL, device), encoder)
        params = SamplingParams(max_tokens=config.ppo.max_tokens)
        problems = held_out(task, "valid", wanted.problems)
        groups = sample_groups(engine, encoder, task, problems, wanted.best_of, params, run.seed)
        rewards = [[_rewards(rollout.verdict.rewards) for rollout in group.rollouts] for group in groups]
        proxies, truths = ([[found[key] for found in row] for row in rewards] for key in (HELPFUL, HELPED))
        curves = mean_best_of_curve(proxies), mean_best_of_curve(proxies, truths)
        sizes = [2**power for power in range(wanted.best_of.bit_length()) if 2**power <= wanted.best_of]
        rows = [[n, best_of_kl(n), *(curve[n - 1] for curve in curves)] for n in sizes]
        write_atomically(work / MEASURED, json.dumps({"rows": rows}) + "\n")
        return {"proxy": rows[-1][2], "truth": rows[-1][3]}

    key = {"best_of": wanted.best_of, "problems": wanted.problems, "clip": config.reward_clip}
    key |= {"max_tokens": config.ppo.max_tokens, "chinese": config.chinese, "seed": run.seed}
    return run.stage("best-of-n", build, key, [sft, models, zero], version=COMPUTED)


# ---- what was found -------------------------------------------------------------------------


def write_found(
    run: Run,
    config: RlhfConfig,
    arms: Mapping[Arm, Artifact],
    figures: Mapping[Arm, Artifact],
    zero: Artifact,
    best: Artifact | None,
) -> None:
    """Curves, intervals and claims as `rlhf.json`, `evidence.json`, a picture, and a table on standard output."""
    read = {arm: read_json(artifact.path / MEASURED) for arm, artifact in figures.items()}
    first = next(iter(read.values()))
    plain = next((arm for arm in arms if arm.plain), None)
    found: dict[str, Any] = {
        "measure": f"{len(first[SFT]['truth'])} test prompts, one reply each, temperature 1",
        "kl_budget": config.measure.kl_budget,
        "reward": read_json(zero.path / ZERO),
        SFT: _figures(first[SFT]),
        "arms": [_arm(arm, made, read[arm], read[plain] if plain else None) for arm, made in arms.items()],
        "best_of_n": read_json(best.path / MEASURED)["rows"] if best else [],
        "shown": _shown(read[plain] if plain else first),
    }
    found["verdicts"] = rlhf_verdicts(found)
    write_atomically(run.dir / FILE, json.dumps(found, ensure_ascii=False, indent=1) + "\n")
    evidence = {"rlhf": found, "verdicts": found["verdicts"]}
    write_atomically(run.dir / "evidence.json", json.dumps(evidence, ensure_ascii=False, indent=1) + "\n")
    write_atomically(run.dir / PLOT, curve_svg(found) + "\n")
    print(rlhf_table(found))


def _arm(arm: Arm, made: Artifact, read: Mapping[str, Any], plain: Mapping[str, Any] | None) -> dict[str, Any]:
    """An arm's curve, its figures on test prompts, and differences prompt by prompt: within it, from SFT, from the plain arm."""
    found: dict[str, Any] = asdict(arm) | {"plain": arm.plain, "curve": curve_of(arm, made)}
    found |= {name: _figures(read[name]) for name in ("peak", "stop", "last")}
    found["gain"] = {name: _change(read[name], read[SFT]) for name in ("peak", "stop", "last")}
    found["fall"] = {"truth": _change(read["last"], read["peak"]), "proxy": _rise(read["last"], read["peak"])}
    found["stopped"] = _change(read["stop"], read["last"])
    if plain is not None:
        found["against"] = {name: _change(read[name], plain[name]) for name in ("peak", "last")}
    return found


def _figures(reading: Mapping[str, Any]) -> dict[str, Any]:
    truth, proxy = mean_share([[value] for value in reading["truth"]]), over_seeds(reading["proxy"])
    named = {name: reading[name] for name in ("step", "kl", "length", "refusals", "disagreement", "parts")}
    return named | {"truth": truth.as_json(), "proxy": proxy.as_json()}


def _change(after: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """Of the truth, prompt by prompt."""
    return mean_change([a - b for a, b in zip(after["truth"], before["truth"], strict=True)]).as_json()


def _rise(after: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """Of the proxy, prompt by prompt; no width where nothing lies between."""
    changes = [a - b for a, b in zip(after["proxy"], before["proxy"], strict=True)]
    return (over_seeds(changes) if any(changes) else Interval(0.0, 0.0, 0.0, len(changes))).as_json()


def _shown(read: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Some prompts with the replies of the SFT model, the peak and the end."""
    return [
        {
            "prompt": prompt,
            "replies": [
                {"name": name, "text": read[name]["replies"][n]}
                | {figure: read[name][figure][n] for figure in ("proxy", "truth")}
                for name in (SFT, "peak", "last")
            ],
        }
        for n, prompt in enumerate(read["prompts"])
    ]

"""A run folder as the r1-zero recipe leaves it, made in a second without training: for tests and for looking at.

    python tests/eval/fake_run.py OUT    writes OUT/run and its report

Completions are the world's own pages: guesses early, searches late. The figures are invented.
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dunwu.eval.emergence import aggregate
from dunwu.eval.passk import cons_at_k, mean_pass_at_k, over_seeds, paired_difference, pass_at_1
from dunwu.log import Run
from dunwu.recipes.configs import R1ZeroConfig
from dunwu.store import Store
from dunwu.tasks.countdown import Countdown
from dunwu.types import Completion, Group, Problem, Rollout
from dunwu.world.countdown import CHINESE, ENGLISH, HANDS
from dunwu.world.knobs import Knobs
from dunwu.world.puzzles import draw_puzzle

KNOBS = Knobs(false_check=0.08, max_tries=8)
TASK = Countdown()


def completion(dice: random.Random, puzzle: Any, skill: float) -> str:
    """A guess, or with more skill a search."""
    words = CHINESE if dice.random() < 0.2 else ENGLISH
    hand = dice.choice(["search", "backward"]) if dice.random() < skill else "guess"
    thinking = HANDS[hand](dice, puzzle, KNOBS, words)
    return f"<think>{thinking.text}</think>\n<answer>{thinking.answer}</answer>"


def group(dice: random.Random, skill: float, size: int = 8, texts: tuple[str, ...] = ()) -> Group:
    """A scored group with advantages; `texts` replaces its first completions."""
    puzzle = draw_puzzle(dice, KNOBS, "train")
    data = {"numbers": list(puzzle.numbers), "target": puzzle.target}
    prompt = f"User: Make {puzzle.target} from {', '.join(map(str, puzzle.numbers))}.\nAssistant: "
    problem = Problem("countdown", f"c-{dice.random():.6f}", data, prompt)
    written = [*texts, *(completion(dice, puzzle, skill) for _ in range(size - len(texts)))]
    verdicts = [TASK.score(problem, text) for text in written]
    mean = sum(v.reward for v in verdicts) / size
    std = math.sqrt(sum((v.reward - mean) ** 2 for v in verdicts) / size)
    rollouts = tuple(
        Rollout(
            Completion(text, tuple(range(len(text) // 2)), (-0.5,) * (len(text) // 2), "stop", dice.getrandbits(40)),
            verdict,
            (verdict.reward - mean) / (std + 1e-4) if std else 0.0,
        )
        for text, verdict in zip(written, verdicts)
    )
    return Group(problem, (1, 2, 3), rollouts)


def right(groups: list[Group]) -> list[list[bool]]:
    return [[r.verdict.rewards.get("accuracy") == 1.0 for r in g.rollouts] for g in groups]


def reinforce(run: Run, steps: int, first: tuple[str, ...]) -> Mapping[str, object]:
    """Curves that rise as R1-Zero's do, with noise, and real groups."""
    dice = random.Random(1)
    for step in range(1, steps + 1):
        share = 1 - math.exp(-3 * step / steps)
        groups = [group(dice, 0.15 + 0.8 * share, texts=first if step == 1 and n == 0 else ()) for n in range(4)]
        rollouts = [r for g in groups for r in g.rollouts]
        reward = sum(r.verdict.reward for r in rollouts) / len(rollouts)
        accuracy = sum(r.verdict.rewards.get("accuracy", 0) for r in rollouts) / len(rollouts)
        noise = dice.gauss(0, 0.1)
        metrics = {
            "grpo/reward": reward,
            "grpo/reward/accuracy": accuracy,
            "grpo/reward/format": 0.97 + 0.03 * share,
            "grpo/length": sum(len(r.completion.token_ids) for r in rollouts) / len(rollouts),
            "grpo/entropy": 0.9 * math.exp(-2 * share) + 0.02 * noise,
            "grpo/clip_low_frac": 0.0004 + 0.0002 * abs(noise),
            "grpo/clip_high_frac": 0.0009 + 0.0006 * abs(noise),
            "grpo/approx_kl": 0.0006 + 0.0002 * abs(noise),
            "grpo/ref_kl": 0.08 * share,
            "grpo/sampler_mismatch": 0.004 + 0.001 * abs(noise),
            "grpo/grad_norm": 0.4 + 0.1 * abs(noise),
            "grpo/lr": 3e-4 * min(1, step / 5),
            "grpo/zero_variance_groups": float(dice.randint(2, 9)),
            "grpo/truncated": 0.01 * abs(noise),
            "grpo/rollout_tokens_per_second": 41_000 + 3000 * noise,
            "grpo/update_tokens_per_second": 19_000 + 1000 * noise,
        }
        run.log("r1-zero", step, metrics)
        run.log_groups("r1-zero", step, groups)
        if step % 10 == 0 or step == 1:
            at = 0 if step == 1 else step
            point = {
                "eval/pass@1": 0.31 + 0.42 * share + 0.02 * noise,
                "eval/format": 0.99,
                "eval/length": 40 + 70 * share,
            }
            run.log("held-out", at, point)
    return {"held_out_accuracy": 0.72, "steps": steps}


def pretrain(run: Run) -> Mapping[str, object]:
    for step in range(20, 1201, 20):
        loss = 1.1 + 5 * math.exp(-step / 130)
        metrics = {"pretrain/loss": loss + random.Random(step).gauss(0, 0.05), "pretrain/tokens_per_second": 21_500.0}
        if step % 200 == 0:
            for n, name in enumerate(("countdown-en", "countdown-zh", "arithmetic-en", "arithmetic-zh", "words-en")):
                metrics[f"pretrain/valid_loss/{name}"] = loss * (0.8 + 0.12 * n)
        run.log("base", step, metrics)
    return {"parameters": 811_520, "tokens": 20_000_000, "valid_loss": 1.12}


def evidence(dice: random.Random) -> dict[str, Any]:
    """evidence.json as the report's schema has it."""
    checkpoints, shown_rows, kept = [], [], []
    puzzles = [draw_puzzle(dice, KNOBS, "train") for _ in range(3)]
    for step in (0, 20, 40, 60, 80):
        skill = 0.15 + 0.8 * (1 - math.exp(-3 * step / 80))
        groups = [group(random.Random(step + n), skill, 4) for n in range(60)]
        kept.append(right(groups))
        votes = [[(r.verdict.answer, ok) for r, ok in zip(g.rollouts, row)] for g, row in zip(groups, kept[-1])]
        counts = [(len(row), sum(row)) for row in kept[-1]]
        name = {0: "base", 80: "R1-Zero"}.get(step, f"step {step}")
        checkpoints.append({
            "name": name, "step": step, "pass@1": pass_at_1(kept[-1]).as_json(), "format": 0.99,
            "pass@k": {str(k): mean_pass_at_k(counts, k).as_json() for k in (1, 2, 4)},
            "cons@4": cons_at_k(votes, 4).as_json(), "behaviours": aggregate(groups),
            "four_operands": pass_at_1([row[:1] for row in kept[-1][:20]]).as_json(),
        })  # fmt: skip
        shown_rows.append((name, step, [completion(dice, puzzle, skill) for puzzle in puzzles]))
    shown = []
    for n, puzzle in enumerate(puzzles):
        data = {"numbers": list(puzzle.numbers), "target": puzzle.target}
        problem = Problem("countdown", "x", data, "")
        written = []
        for name, step, texts in shown_rows:
            verdict = TASK.score(problem, texts[n])
            written.append({
                "name": name, "step": step, "completion": texts[n], "reward": verdict.reward,
                "length": len(texts[n]) // 2, "right": verdict.rewards.get("accuracy") == 1.0,
            })  # fmt: skip
        shown.append({"problem": data, "prompt": "User: …\nAssistant: ", "completions": written})
    flat = [[step, 0.31 + 0.01 * math.sin(step)] for step in range(0, 81, 10)]
    low = pass_at_1([[n < 31] for n in range(100)]).as_json()
    return {
        "measure": "60 held-out problems, four samples each, temperature 1",
        "checkpoints": checkpoints,
        "difference": paired_difference(kept[-1], kept[0]).as_json(),
        "shown": shown,
        "controls": [
            {"name": "random reward", "base": low, "result": low, "expected": "|Δ| ≤ 0.03", "holds": True, "curve": flat},
            {"name": "format reward only", "base": low, "result": low, "expected": None, "curve": flat},
            {"name": "base without search pages", "base": low, "result": low, "expected": "does not wake", "holds": None},
        ],
        "seeds": [
            {"seed": s, "base": 0.3 + 0.01 * s, "result": 0.7 + 0.02 * s, "curve": [[x, 0.3 + (0.4 + 0.03 * s) * (1 - math.exp(-x / 30))] for x in range(0, 81, 10)]}
            for s in range(3)
        ],
        "over_seeds": {
            "base": over_seeds([0.3, 0.31, 0.32]).as_json(), "result": over_seeds([0.7, 0.72, 0.74]).as_json(),
            "difference": over_seeds([0.4, 0.41, 0.42]).as_json(),
        },
        "verdicts": [{"claim": "R1-Zero reaches the floor", "holds": True, "figure": "0.72 ≥ 0.65"}],
        "notes": ["Figures of this page are invented: it shows a made-up run."],
    }  # fmt: skip


def fake_run(
    folder: Path, steps: int = 80, with_evidence: bool = True, status: str = "done", first: tuple[str, ...] = ()
) -> Path:
    """Write `folder/run`; `first` replaces completions of the first group of the first step."""
    run = Run.open(folder / "run", "r1-zero", asdict(R1ZeroConfig()), seed=0, store=Store(folder / "store"))
    tokenizer = run.stage("tokenizer", lambda work: {"vocab_size": 1024}, {"pages": 20_000})
    shards = run.stage("shards", lambda work: {"tokens": 20_400_000, "pages": 310_000}, {}, [tokenizer])
    base = run.stage("base", lambda work: pretrain(run), {"model": "0.8M"}, [tokenizer, shards])
    zero = run.stage("r1-zero", lambda work: reinforce(run, steps, first), {"steps": steps}, [base])
    if with_evidence:
        found = evidence(random.Random(2))
        figures = {
            "base": found["checkpoints"][0]["pass@1"]["value"],
            "result": found["checkpoints"][-1]["pass@1"]["value"],
        }
        run.stage("evidence", lambda work: figures, {}, [base, zero])
        (run.dir / "evidence.json").write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")
    run.finish(status)
    return run.dir


if __name__ == "__main__":
    from dunwu.eval.report import write_report

    print(write_report(fake_run(Path(sys.argv[1]))))

"""RLHF at toy size: every stage and what stands in its files, the reward's zero, KL against its definition, a kill, and misuse."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import fmean

import pytest
import torch
from tiny_runs import (
    Killed,
    run_recipe,
    save_folder,
    stage,
    status,
    timeless_metrics,
    tiny_model,
    undocumented,
    weights,
)

from dunwu.data.chat import read_chat, read_rankings
from dunwu.data.tokenizer import load_tokenizer, train_from_texts
from dunwu.eval.evaluate import held_out, sample_groups
from dunwu.eval.report import write_report
from dunwu.log import Run, read_json
from dunwu.model.hf import from_pretrained
from dunwu.recipes import reinforce
from dunwu.recipes.r1_presets import R1_PRESETS
from dunwu.recipes.rlhf_arms import FILE, KEPT, MEASURED, PLOT, curve_of, divergence, stops
from dunwu.recipes.rlhf_config import (
    RLHF_PRESETS,
    Arm,
    ComparisonConfig,
    DemonstrationConfig,
    MeasureConfig,
    RlhfConfig,
)
from dunwu.recipes.rlhf_stages import RANKED, ZERO, asked, rewarded
from dunwu.recipes.sft import HELD_OUT
from dunwu.rollout.engine import Engine
from dunwu.train.preference import HELPFUL
from dunwu.types import SamplingParams, UsageError, derive_seed
from dunwu.world.general import sft_examples

TINY = RLHF_PRESETS["tiny"]
ARMS = ("no-kl", "mean+kl-0.1", "grpo+kl-0.1")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RlhfConfig:
    """On a base that knows nothing but letters, made on the spot."""
    home = tmp_path_factory.mktemp("rlhf")
    encoder = train_from_texts([m.content for row in islice(sft_examples(1, 200), 200) for m in row.messages], 400)
    base = save_folder(home / "base", tiny_model(encoder), encoder)
    return replace(
        TINY,
        base=str(base),
        demonstrations=DemonstrationConfig(rows=120),
        comparisons=ComparisonConfig(prompts=16, held_out=8, replies=3),
        ppo=replace(TINY.ppo, problems=8, max_tokens=8),
        grpo=replace(TINY.grpo, problems=2, max_tokens=8),
        arms=ARMS,
        measure=MeasureConfig(every=2, problems=6, final=8, kl_budget=1e-6, best_of=4, shown=1),
        save_every=1,
    )


@pytest.fixture(scope="module")
def whole(config: RlhfConfig, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_recipe("rlhf", tmp_path_factory.mktemp("runs"), config)


# ---- the whole ------------------------------------------------------------------------------


def test_every_arm_is_measured_against_sft_on_the_same_prompts(whole: Run, config: RlhfConfig) -> None:
    found = read_json(whole.dir / FILE)
    assert [arm["name"] for arm in found["arms"]] == list(ARMS) and undocumented(whole.dir / "metrics.jsonl") == set()
    for arm in found["arms"]:
        assert [point["step"] for point in arm["curve"]] == [0, 2, 4]
        assert arm["curve"][0]["kl"] == 0.0 and arm["curve"][-1]["kl"] != 0.0
        assert arm["stop"]["step"] == stops(arm["curve"], config.measure.kl_budget)["stop"]
        best = max(arm["curve"], key=lambda point: point["truth"])
        assert arm["peak"]["step"] == best["step"] and arm["last"]["step"] == 4
        read = read_json(stage(whole, f"measure-{arm['name']}").path / MEASURED)
        assert len(read["last"]["truth"]) == 8 and len(read["last"]["replies"]) == 1
        for name in ("peak", "stop", "last"):
            gain = fmean(read[name]["truth"]) - fmean(read["sft"]["truth"])
            assert arm["gain"][name]["value"] == pytest.approx(gain)
    plain, ensemble, grpo = found["arms"]
    assert plain["last"]["disagreement"] is None and "disagreement" not in plain["curve"][0]
    assert ensemble["last"]["disagreement"] > 0 and ensemble["curve"][0]["disagreement"] > 0
    assert plain["curve"][0]["truth"] == ensemble["curve"][0]["truth"] == grpo["curve"][0]["truth"]
    assert plain["curve"][0]["proxy"] == grpo["curve"][0]["proxy"] != ensemble["curve"][0]["proxy"]
    assert {n for n, *_ in found["best_of_n"]} == {1, 2, 4}
    proxies = [proxy for _, _, proxy, _ in found["best_of_n"]]
    assert proxies == sorted(proxies)


def test_the_report_and_the_picture_show_the_arms(whole: Run) -> None:
    page = write_report(whole.dir).read_text(encoding="utf-8")
    picture = (whole.dir / PLOT).read_text()
    for name in ARMS:
        assert name in page and name in picture
    assert "Over-optimisation" in page and "true utility from" in page and "best of n" in picture
    assert json.loads((whole.dir / "evidence.json").read_text())["verdicts"] == read_json(whole.dir / FILE)["verdicts"]


def test_labelers_rank_what_the_sft_model_wrote(whole: Run, config: RlhfConfig) -> None:
    rankings, bad = read_rankings(stage(whole, "comparisons").path / RANKED)
    assert not bad and rankings
    general = asked(config).exercise
    drawn = (asked(config).problem("train", derive_seed("comparisons", 0), n) for n in range(16))
    problems = {problem.messages: problem for problem in drawn}
    for row in rankings:
        assert 2 <= len(row.replies) <= 3 and len({reply.content for reply in row.replies}) == len(row.replies)
        truths = [general.judge(problems[row.messages], reply.content).rewards["helpful"] for reply in row.replies]
        assert truths == row.meta["truth"]
    assert stage(whole, "sft").key in stage(whole, "comparisons").meta["inputs"], "or another COMPUTED would find it"
    assert stage(whole, "rm").key in stage(whole, "reward-zero").meta["inputs"]
    counts = stage(whole, "comparisons").meta["metrics"]
    assert counts["rankings"] + counts["rankings_alike"] + counts["rankings_again"] == 16


@pytest.mark.parametrize("judges", ["one", "mean"])
def test_demonstrations_score_0_and_the_truth_never_counts(whole: Run, config: RlhfConfig, judges: str) -> None:
    task = rewarded(config, judges, stage(whole, "rm"), stage(whole, "reward-zero"))  # type: ignore[arg-type]
    rows, _ = read_chat(stage(whole, "demonstrations").path / HELD_OUT)
    assert task.helpful is not None
    scores = task.helpful.normalised(task.helpful.score([row.messages for row in rows]))
    assert fmean(scores) == pytest.approx(0.0, abs=1e-4) and max(map(abs, scores)) > 0.1
    assert all(row.messages[-1].reasoning_content is None for row in rows)
    problem = task.problem("valid", 0, 0)
    said = task.score(problem, "Hello.")
    assert said.reward == said.rewards[HELPFUL] and said.rewards["truth/helpful"] <= 1
    assert task.score(problem, " ").reward == -config.reward_clip
    zero = read_json(stage(whole, "reward-zero").path / ZERO)
    assert len(zero["means"]) == 2 and [row["judges"] for row in zero["rows"]] == ["one", "mean", "worst"]
    assert 0.5 <= zero["labelers"] <= zero["bayes_accuracy"] <= 1


def test_the_kl_is_that_of_its_definition(whole: Run, config: RlhfConfig) -> None:
    """Reply by reply, from all logits, without padding."""
    made, sft = stage(whole, "rl-no-kl").path / KEPT / "4", stage(whole, "sft").path / "model"
    policy, reference, encoder = from_pretrained(made).float(), from_pretrained(sft).float(), load_tokenizer(sft)
    task = asked(config)
    problems = held_out(task, "valid", 5)
    groups = sample_groups(Engine(policy, encoder), encoder, task, problems, 2, SamplingParams(max_tokens=6))
    total = 0.0
    with torch.inference_mode():
        for group in groups:
            for rollout in group.rollouts:
                reply = torch.tensor(rollout.completion.token_ids)
                ids = torch.tensor([[*group.prompt_ids, *rollout.completion.token_ids]])
                first = len(group.prompt_ids) - 1
                for model, sign in ((policy, 1), (reference, -1)):
                    logprobs = model(ids)[0, first : first + len(reply)].log_softmax(-1)
                    total += sign * float(logprobs[torch.arange(len(reply)), reply].double().sum())
    assert divergence(policy, reference, groups) == pytest.approx(total / 10, abs=1e-4) and total
    assert divergence(policy, policy, groups) == 0.0


# ---- killed and resumed ---------------------------------------------------------------------


@pytest.mark.parametrize("arm", ["mean+kl-0.1", "grpo+kl-0.1"])
def test_a_killed_arm_ends_with_the_same_bits(
    whole: Run, config: RlhfConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arm: str
) -> None:
    config = replace(config, arms=(arm,))
    save, saved = reinforce.save_state, []

    def stop_after_three(*given: object) -> None:
        save(*given)  # type: ignore[arg-type]
        saved.append(1)
        if len(saved) == 3:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(reinforce, "save_state", stop_after_three)
        run_recipe("rlhf", tmp_path, config)
    resumed = run_recipe("rlhf", tmp_path, config)
    name = f"rl-{arm}"
    assert weights(resumed, name) == weights(whole, name)
    for step in ("0", "2", "4"):
        kept = [(stage(run, name).path / KEPT / step / "model.safetensors").read_bytes() for run in (whole, resumed)]
        assert kept[0] == kept[1]
    mine, theirs = (
        [line for line in timeless_metrics(run) if line["stage"].startswith(name)] for run in (whole, resumed)
    )
    assert mine == theirs
    assert stage(resumed, f"measure-{arm}").meta["metrics"] == stage(whole, f"measure-{arm}").meta["metrics"]


def test_other_arms_find_what_is_there(whole: Run, config: RlhfConfig) -> None:
    more = replace(config, arms=("no-kl", "kl-0.5"), measure=replace(config.measure, kl_budget=1e9))
    run = run_recipe("rlhf", whole.dir.parent, more, "more")
    assert status(run, "rm") == status(run, "rl-no-kl") == "reused"
    assert status(run, "rl-kl-0.5") == status(run, "measure-no-kl") == "done"  # another budget stops elsewhere
    found = read_json(run.dir / FILE)
    assert found["arms"][0]["stop"]["step"] == 4 and found["arms"][0]["stopped"]["value"] == 0.0
    ends = [curve_of(Arm.parse(name), stage(run, f"rl-{name}"))[-1]["kl"] for name in more.arms]
    assert ends[0] != ends[1]


# ---- settings -------------------------------------------------------------------------------


def test_the_stop_sees_the_kl_alone() -> None:
    points = [(0, 0.0, 0.5), (5, 1.0, 0.4), (10, 1.9, 0.6), (15, 3.0, 0.9), (20, 1.0, 0.1)]
    curve = [{"step": step, "kl": kl, "truth": truth} for step, kl, truth in points]
    assert stops(curve, 2.0) == {"peak": 15, "stop": 10, "last": 20}
    assert stops([point | {"truth": -point["truth"]} for point in curve], 2.0)["stop"] == 10


def test_arms_are_spelled_in_words() -> None:
    assert Arm.parse("no-kl").plain and not Arm.parse("kl-0.02").plain and not Arm.parse("grpo").plain
    arm = Arm.parse("uncertainty+kl-1+ptx-0.5")
    assert (arm.judges, arm.kl_coef, arm.ptx_coef, arm.method) == ("uncertainty", 1.0, 0.5, "ppo")
    ppo = TINY.settings(arm)
    assert (ppo.kl_coef, ppo.ptx_coef) == (1.0, 0.5)  # type: ignore[union-attr]
    assert TINY.settings(Arm.parse("grpo+kl-2")).kl_coef == 2.0
    twice = ("kl-0.02+kl-0.5", "no-kl+kl-1", "one+worst")
    for wrong in ("best", "kl-", "kl--1", "kl-nan", "kl-1e3", "", "ptx-1+grpo", *twice):
        with pytest.raises(UsageError):
            Arm.parse(wrong)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (replace(TINY, arms=()), "name at least one"),
        (replace(TINY, arms=("no-kl", "no-kl")), "each once"),
        (replace(TINY, arms=("kl-0.02", "kl-0.020")), "two are one arm"),
        (replace(TINY, arms=("no-kl", "one+kl-0")), "two are one arm"),
        (replace(TINY, arms=("median",)), "'median' says nothing"),
        (replace(TINY, rm=replace(TINY.rm, members=1)), "with one reward model"),
        (replace(TINY, rm=replace(TINY.rm, kind="pairwise")), "replies are ranked"),
        (replace(TINY, arms=("ptx-1",), base="somewhere"), "no pretraining pages"),
        (replace(TINY, reward_clip=0.0), "reward_clip above 0"),
        (replace(TINY, comparisons=ComparisonConfig(replies=1)), "too few"),
        (replace(TINY, demonstrations=DemonstrationConfig(held_out=0.0)), "hold something out"),
        (replace(TINY, measure=MeasureConfig(kl_budget=0.0)), "nats above 0"),
    ],
)
def test_settings_that_cannot_work_are_told(wrong: RlhfConfig, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        wrong.validate()


def test_the_base_is_the_one_of_r1() -> None:
    ours, theirs = RLHF_PRESETS["cpu"], R1_PRESETS["cpu"]
    for name in ("model", "arch", "vocab_size", "tokenizer_pages", "world", "pretrain", "base_seed"):
        assert getattr(ours, name) == getattr(theirs, name)

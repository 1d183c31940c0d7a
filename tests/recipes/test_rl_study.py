"""The study of policy gradients at toy size: its units, parts and a kill give the same artifacts, and its page says everything."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import Killed, run_recipe, save_folder, status, timeless_metrics, tiny_model, undocumented, weights

from dunwu.data.tokenizer import train_from_texts
from dunwu.eval.report import write_report
from dunwu.log import Run, read_json
from dunwu.recipes import reinforce, stages
from dunwu.recipes.r1_config import CrawlConfig
from dunwu.recipes.r1_ground import base_of
from dunwu.recipes.r1_presets import R1_PRESETS
from dunwu.recipes.rl_study import FILE, TEST, Unit, make_task, units
from dunwu.recipes.rl_study_config import RL_STUDY_PRESETS, RlStudyConfig
from dunwu.store import Store
from dunwu.tasks.splits import SPLITS
from dunwu.train.config import PolicyConfig
from dunwu.train.ppo_config import PpoConfig
from dunwu.types import UsageError

SMALL = RlStudyConfig(
    arms=("grpo", "ppo", "ppo-lambda-1"),
    more_seeds=(1,),
    variants=("grpo", "dapo", "ppo-shared"),
    shared=PolicyConfig(steps=3, problems=2, group_size=4, max_tokens=12, warmup=1, overlong_buffer=4, minibatches=2),
    held_out=2,
    held_out_samples=1,
    held_out_every=2,
    test=3,
    test_samples=4,
    save_every=1,
)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RlStudyConfig:
    """The small study on a base that knows nothing but its tokens."""
    tasks = [make_task(SMALL, name) for name in SMALL.tasks]
    texts = [
        task.problem("train", 0, n).prompt + task.gold(task.problem("train", 0, n)) for task in tasks for n in range(40)
    ]
    tokenizer = train_from_texts(texts, 400)
    folder = save_folder(tmp_path_factory.mktemp("base"), tiny_model(tokenizer, spread=0.3), tokenizer)
    return replace(SMALL, base=str(folder))


@pytest.fixture(scope="module")
def whole(config: RlStudyConfig, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The study in one go."""
    return run_recipe("rl-study", tmp_path_factory.mktemp("whole"), config)


def found_in(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / FILE).read_text("utf-8"))
    return found


def test_every_arm_has_its_figures_at_equal_samples_and_seconds(whole: Run) -> None:
    found = found_in(whole.dir)
    assert set(found["tasks"]) == {"countdown", "knights"} and len(found["units"]) == 2 * 3 * 2 + 2
    for part in found["tasks"].values():
        assert [row["arm"] for row in part["rows"]] == ["grpo", "ppo", "ppo-lambda-1"] and part["seeds"] == [0, 1]
        assert part["equal_seconds"] > 0
        for row in part["rows"]:
            assert row["samples"] == 3 * 2 * 4 and row["seeds"] == 2
            assert row["processor_seconds_per_step"] > 0 and row["seconds_per_step"] > 0
    for unit in found["units"]:
        assert [point["step"] for point in unit["curve"]["held_out"]] == [0, 2, 3]
        assert unit["curve"]["held_out"][0]["processor_seconds"] == 0.0
        assert unit["curve"]["held_out"][-1]["processor_seconds"] == unit["processor_seconds"]
        assert unit["k"] == 4 and unit["pass@k"]["value"] >= unit["pass@1"]["value"]
    variants = found["variants"]
    assert [row["arm"] for row in variants["rows"]] == ["grpo", "dapo", "ppo-shared"] and variants["seeds"] == [0]
    assert variants["rows"][1]["samples"] >= variants["rows"][0]["samples"]  # DAPO's rounds are counted
    assert {key for key in undocumented(whole.dir / "metrics.jsonl") if not key.startswith("ppo/")} == set()


def test_settings_of_every_arm_are_on_record(whole: Run) -> None:
    arms = found_in(whole.dir)["arms"]
    assert arms["ppo"]["lam"] == 0.95 and arms["ppo-lambda-1"]["lam"] == 1.0
    assert arms["grpo"]["kl_coef"] == 0.04 and "lr" not in arms["grpo"] and "kl_coef" not in arms["ppo"]
    assert set(arms["ppo"].items()) ^ set(arms["ppo-lambda-1"].items()) == {("lam", 0.95), ("lam", 1.0)}
    page = write_report(whole.dir).read_text(encoding="utf-8")
    for said in ("lam=0.95", "max_tokens=12", "PPO, λ = 1", "By processor seconds", "critic=shared"):
        assert said in page
    assert "Rule rewards alone" not in page and "held-out score yet" not in page


def test_critic_and_reference_count_as_memory(whole: Run) -> None:
    memory = {unit["arm"]: unit["memory"] for unit in found_in(whole.dir)["units"]}
    policy, optimizer = memory["ppo"]["policy"], memory["ppo"]["optimizer"]
    assert set(memory["grpo"]) == {"policy", "optimizer", "reference"} and memory["grpo"]["reference"] == policy
    assert memory["ppo"]["critic"] > policy + optimizer  # its own trunk, moments and a head
    assert memory["ppo-shared"]["critic"] < 0.01 * memory["ppo"]["critic"]


def test_parts_made_apart_are_the_whole(config: RlStudyConfig, whole: Run, tmp_path: Path) -> None:
    """Two processes' parts in one store: the whole then builds nothing, and finds the same."""
    parts = {
        "knights": replace(
            config, tasks=("knights",), variants=(), variant_seeds=0, arms=("ppo-lambda-1", "grpo", "ppo")
        ),
        "countdown": replace(config, tasks=("countdown",), variants=("grpo",)),
        "variants": replace(config, tasks=(), arms=(), more_seeds=()),
    }
    for name, part in parts.items():
        run_recipe("rl-study", tmp_path, part, name)
    again = run_recipe("rl-study", tmp_path, config, "again")
    built = [file.stem for file in (again.dir / "stages").glob("*.json")]
    assert len(built) == 1 + 2 + 14 and {status(again, name) for name in built} == {"reused"}
    assert timeless_metrics(again) == timeless_metrics(whole)
    for name in built:
        assert (
            read_json(again.dir / "stages" / f"{name}.json")["key"]
            == read_json(whole.dir / "stages" / f"{name}.json")["key"]
        )
    ours, theirs = (
        [
            {k: unit[k] for k in ("task", "arm", "seed", "pass@1", "pass@k", "length")}
            for unit in found_in(run.dir)["units"]
        ]
        for run in (again, whole)
    )
    assert ours == theirs
    assert "variants" not in found_in(tmp_path / "knights") and found_in(tmp_path / "variants")["tasks"] == {}
    assert "countdown" in write_report(tmp_path / "variants").read_text("utf-8")


def test_a_killed_unit_goes_on_bit_for_bit(
    config: RlStudyConfig, whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = replace(config, tasks=("knights",), arms=("ppo",), more_seeds=(), variants=(), variant_seeds=0)
    save = reinforce.save_state

    def stop_after_two(*given: Any) -> None:
        save(*given)
        if given[2]["step"] == 2:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(reinforce, "save_state", stop_after_two)
        run_recipe("rl-study", tmp_path, alone)
    cut = run_recipe("rl-study", tmp_path, alone)
    assert weights(cut, "knights-ppo-seed0") == weights(whole, "knights-ppo-seed0")
    stage = "knights-ppo-seed0"
    ours, theirs = ([line for line in timeless_metrics(run) if line["stage"].startswith(stage)] for run in (cut, whole))
    assert ours == theirs and len(ours) == 3 + 3
    curve = found_in(cut.dir)["units"][0]["curve"]["held_out"]
    assert 0 < curve[1]["processor_seconds"] < curve[2]["processor_seconds"]
    files = [
        run.store.home / "artifacts" / read_json(run.dir / "stages" / f"{stage}.json")["key"] / TEST
        for run in (cut, whole)
    ]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_base_is_that_of_r1_without_a_crawl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same settings up to the base, so the same key."""
    config, r1 = RlStudyConfig(), replace(R1_PRESETS["cpu"], crawl=CrawlConfig())
    for name in ("model", "arch", "vocab_size", "tokenizer_pages", "world", "pretrain", "base_seed"):
        assert getattr(config, name) == getattr(r1, name)
    called = []
    for stage in ("tokenizer", "shards", "base"):
        monkeypatch.setattr(stages, stage, lambda *given, stage=stage: called.append((stage, given[2])))
    with Run.open(tmp_path / "run", "rl-study", {}, 3, Store(tmp_path / "store")) as run:
        base_of(run, config)
        assert called == [("tokenizer", 3), ("shards", 3), ("base", 3)]
        called.clear()
        base_of(run, replace(config, base_seed=0))
        assert {seed for _, seed in called} == {0}


def test_units_are_named_once() -> None:
    assert len(units(SMALL, 0)) == len(set(units(SMALL, 0))) == 14
    assert units(SMALL, 0)[0] == Unit("countdown", "grpo", 0) and Unit("countdown", "dapo", 0) in units(SMALL, 0)
    with_more = replace(SMALL, variant_seeds=2)
    assert set(units(SMALL, 0)) < set(units(with_more, 0))


def test_tasks_are_asked_in_the_frame_of_r1_zero() -> None:
    for name in SMALL.tasks:
        task = make_task(SMALL, name)
        for split in SPLITS:
            problem = task.problem(split, 0, 0)
            assert problem.prompt.rstrip().endswith(("Assistant:", "助手：")) and not problem.messages
            assert task.score(problem, task.gold(problem)).reward == 2.0
    two = make_task(replace(SMALL, three=0.0), "knights")
    assert all("C says" not in two.problem("train", 0, n).prompt for n in range(30))


def test_settings_that_cannot_work_are_told() -> None:
    assert isinstance(SMALL.settings("ppo"), PpoConfig) and SMALL.settings("ppo").steps == 3
    for preset in RL_STUDY_PRESETS.values():
        preset.validate()
    for wrong, said in (
        (replace(SMALL, tasks=("chess",)), "no task 'chess'"),
        (replace(SMALL, arms=("pppo",)), "unknown variant 'pppo'"),
        (replace(SMALL, variants=("pppo",)), "unknown variant 'pppo'"),
        (replace(SMALL, arms=(), variants=()), "nothing to compare"),
        (replace(SMALL, variant_seeds=3), "variant_seeds is 3"),
        (replace(SMALL, three=2.0), "three 2.0 is no share"),
        (replace(SMALL, test_samples=0), "test_samples is 0"),
        (replace(SMALL, more_seeds=(1, 1)), "a seed is there twice"),
        (replace(SMALL, shared=replace(SMALL.shared, overlong_buffer=99)), "dapo: overlong_buffer 99"),
    ):
        with pytest.raises(UsageError, match=said):
            wrong.validate()

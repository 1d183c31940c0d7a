"""The recipe `expert` on a small model: rounds, what is trained, a kill, more rounds, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import (
    Killed,
    run_recipe,
    save_folder,
    say_tokenizer,
    stage,
    status,
    timeless_metrics,
    tiny_model,
    undocumented,
    weights,
)

from dunwu.data.tokenizer import load_tokenizer
from dunwu.log import Run, read_metrics, read_rollouts
from dunwu.recipes.expert import EXAMPLES
from dunwu.recipes.expert_config import EXPERT_PRESETS, ExpertRunConfig
from dunwu.train.config import SftConfig
from dunwu.train.expert_config import ExpertConfig
from dunwu.types import DunwuError, UsageError

SMALL = ExpertRunConfig(
    rounds=2,
    expert=ExpertConfig(problems=8, samples=2, max_tokens=6, rationalize="gold"),
    sft=SftConfig(epochs=2, context=512, batch_tokens=400, warmup=0, lr=1e-2),
    held_out=8,
    save_every=1,
    chunk=3,
    device="cpu",
)

expert = partial(run_recipe, "expert")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = say_tokenizer()
    return save_folder(tmp_path_factory.mktemp("model") / "base", tiny_model(tokenizer), tokenizer)


def config(model: Path, **changes: Any) -> ExpertRunConfig:
    return replace(SMALL, model=str(model), options=("operands=3",), **changes)


def examples(run: Run, n: int) -> list[dict[str, Any]]:
    lines = (stage(run, f"expert-samples-{n}").path / EXAMPLES).read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_every_round_samples_trains_and_is_measured(model: Path, tmp_path: Path) -> None:
    run = expert(tmp_path, config(model))
    lines = list(read_metrics(run.dir))
    assert [line["step"] for line in lines if line["stage"] == "held-out"] == [0, 1, 2]
    rounds = [line for line in lines if line["stage"] == "expert"]
    assert [line["step"] for line in rounds] == [1, 2]
    assert all(line["expert/samples"] == 16 and line["expert/problems"] == 8 for line in rounds)
    # A model that knows nothing is never right: what it is taught are the task's own solutions, judged like any sample.
    assert all(line["expert/rationalised"] == 8 and line["expert/right"] == 0 for line in rounds)
    encoder = load_tokenizer(model)
    for row in examples(run, 1):
        assert encoder.decode(row["ids"][row["learned"] :]).count("<answer>") == 1
    assert len(list(read_rollouts(run.dir))) == 2 * 8
    assert stage(run, "expert-samples-1").meta["metrics"]["rationalise/samples"] == 8
    figures = stage(run, "expert-2").meta["metrics"]
    assert figures["examples"] == 8 and 0 <= figures["held_out_accuracy"] <= 1
    assert not undocumented(run.dir / "metrics.jsonl")


def test_rounds_begin_at_the_given_model_or_go_on_and_may_add_up(model: Path, tmp_path: Path) -> None:
    star = expert(tmp_path, config(model), "star")
    onward = expert(tmp_path, config(model, from_start=False), "onward")
    assert weights(star, "expert-1") == weights(onward, "expert-1")
    assert weights(star, "expert-2") != weights(onward, "expert-2")
    fresh = replace(SMALL.expert, same_problems=False)
    adding = expert(tmp_path, config(model, expert=fresh, accumulate=True), "adding")
    assert stage(adding, "expert-2").meta["metrics"]["examples"] == 16
    assert not {tuple(row["ids"]) for row in examples(adding, 1)} & {tuple(row["ids"]) for row in examples(adding, 2)}


def test_more_rounds_find_the_earlier_ones(model: Path, tmp_path: Path) -> None:
    expert(tmp_path, config(model), "two")
    three = expert(tmp_path, config(model, rounds=3), "three")
    found = {name: status(three, name) for name in ("expert-0", "expert-samples-2", "expert-2", "expert-3")}
    assert found == {"expert-0": "reused", "expert-samples-2": "reused", "expert-2": "reused", "expert-3": "done"}


@pytest.mark.parametrize(
    "after", [("expert-samples-1", 6), ("expert", 1), ("expert-1", 2), ("held-out", 1), ("expert-2", 1)]
)
def test_a_killed_run_ends_with_the_same_weights_and_records(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: tuple[str, int]
) -> None:
    whole = expert(tmp_path / "whole", config(model))
    log, log_groups = Run.log, Run.log_groups

    def fall(self: Run, name: str, step: int, metrics: dict[str, float]) -> None:
        log(self, name, step, metrics)
        if (name, step) == after:
            raise Killed

    def fall_too(self: Run, name: str, step: int, groups: Sequence[Any]) -> None:
        log_groups(self, name, step, groups)
        if (name, step) == after:
            raise Killed

    monkeypatch.setattr(Run, "log", fall)
    monkeypatch.setattr(Run, "log_groups", fall_too)
    with pytest.raises(Killed):
        expert(tmp_path / "killed", config(model))
    monkeypatch.undo()
    resumed = expert(tmp_path / "killed", config(model))
    assert all(weights(whole, name) == weights(resumed, name) for name in ("expert-1", "expert-2"))
    assert timeless_metrics(whole) == timeless_metrics(resumed)
    assert list(read_rollouts(whole.dir)) == list(read_rollouts(resumed.dir))


# ---- what is refused


def test_a_model_that_is_never_right_is_told_and_what_would_help(model: Path, tmp_path: Path) -> None:
    nothing = replace(SMALL.expert, rationalize="none")
    with pytest.raises(
        DunwuError, match=r"round 1 kept none of 16 samples, 0 of them right .*--expert.rationalize gold"
    ):
        expert(tmp_path, config(model, expert=nothing))


def test_prompts_that_do_not_fit_are_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"exceed the models' 1024 \(lower --expert.max_tokens"):
        expert(tmp_path, config(model, expert=replace(SMALL.expert, max_tokens=1020)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": ""}, "no model to start from"),
        ({"rounds": 0}, "rounds is 0"),
        ({"expert": ExpertConfig(samples=0)}, "samples is 0"),
        ({"sft": SftConfig(epochs=0)}, "epochs is 0"),
    ],
)
def test_settings_that_cannot_work_are_told_first(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        replace(EXPERT_PRESETS["tiny"], **({"model": "m"} | changes)).validate()

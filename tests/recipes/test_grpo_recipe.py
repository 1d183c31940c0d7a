"""The recipe grpo on a model made on the spot: it runs, resumes bit for bit, and refuses what cannot work."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import Killed, run_recipe, save_folder, stage, timeless_metrics, tiny_model, weights

from dunwu.cli import main
from dunwu.data.tokenizer import load_tokenizer, train_from_texts
from dunwu.log import read_metrics, read_rollouts
from dunwu.model.hf import load_model
from dunwu.recipes import grpo, reinforce
from dunwu.recipes.grpo_config import GrpoRunConfig
from dunwu.rollout.engine import Engine
from dunwu.train.config import GrpoConfig
from dunwu.types import DunwuError, UsageError

TASK = """
def problems(split):
    first, step = {"train": (0, 5), "valid": (1, 5), "test": (2, 5)}[split]
    return [{"n": n} for n in range(first, 100, step)]

def prompt(problem):
    return [{"role": "user", "content": f"{problem['n']}"}]

def score(problem, completion):
    return float(completion == gold(problem))

def gold(problem):
    return f"{problem['n']}!"
"""
REWARD = """
def tall(completions, **columns):
    assert len(columns["n"]) == len(columns["prompts"]) == len(columns["completion_ids"]) == len(completions)
    assert columns["prompts"][0] == [{"role": "user", "content": str(columns["n"][0])}]
    return [float(sum(map(ord, c[0]["content"])) % 2) for c in completions]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder, a task file and a reward file."""
    home = tmp_path_factory.mktemp("grpo")
    encoder = train_from_texts([str(n) for n in range(100)], 280)
    save_folder(home / "model", tiny_model(encoder), encoder)
    (home / "bang.py").write_text(TASK)
    (home / "rewards.py").write_text(REWARD)
    return home


def config_of(folder: Path) -> GrpoRunConfig:
    return GrpoRunConfig(
        model=str(folder / "model"),
        task=str(folder / "bang.py"),
        reward=(f"{folder / 'rewards.py'}:tall",),
        reward_weights=(0.5,),
        grpo=GrpoConfig(steps=4, problems=2, group_size=4, max_tokens=6, warmup=1, kl_coef=0.01, reference_every=3),
        held_out=4,
        held_out_every=2,
        save_every=1,
    )


tell = partial(run_recipe, "grpo")


def test_rewards_are_logged_and_a_stopped_run_resumes_bit_for_bit(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(folder)
    whole = tell(tmp_path, config, "whole")
    load_model(stage(whole, "grpo").path / "model")
    assert weights(whole, "grpo") != (folder / "model" / "model.safetensors").read_bytes()
    lines = [line for line in read_metrics(whole.dir) if line["stage"] == "grpo"]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        assert line["grpo/reward"] == 0.5 * line["grpo/reward/tall"]
        assert line["grpo/verifier_errors"] == 0
    curve = [line["step"] for line in read_metrics(whole.dir) if line["stage"] == "held-out"]
    assert curve == [0, 2, 4]

    save, saved = reinforce.save_state, []

    def stop_after_two(*given: object) -> None:
        save(*given)  # type: ignore[arg-type]
        saved.append(1)
        if len(saved) == 2:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(reinforce, "save_state", stop_after_two)
        tell(tmp_path, config, "cut", store="other")
    cut = tell(tmp_path, config, "cut", store="other")
    assert weights(cut, "grpo") == weights(whole, "grpo")
    assert timeless_metrics(whole) == timeless_metrics(cut)
    assert [*read_rollouts(whole.dir)] == [*read_rollouts(cut.dir)]


def test_the_models_own_stops_and_template_stay(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A letter that ends every reply: no completion goes on behind it, and the new folder says so again."""
    home = tmp_path / "model"
    shutil.copytree(folder / "model", home)
    encoder = load_tokenizer(home)
    stop = encoder.encode("7")[0]
    (home / "generation_config.json").write_text(json.dumps({"eos_token_id": [encoder.end_id, stop], "top_p": 0.5}))
    (home / "chat_template.jinja").write_text("theirs")
    engines: list[Engine] = []

    def kept(*given: Any) -> Engine:
        engines.append(Engine(*given))
        return engines[-1]

    monkeypatch.setattr(grpo, "Engine", kept)
    config = replace(config_of(folder), model=str(home))
    run = tell(tmp_path, replace(config, grpo=replace(config.grpo, steps=1)))
    stops = sorted({*encoder.stop_ids, stop})
    assert [engine.stop_ids for engine in engines] == [stops]
    made = stage(run, "grpo").path / "model"
    assert json.loads((made / "generation_config.json").read_text())["eos_token_id"] == stops
    assert json.loads((made / "tokenizer_config.json").read_text())["chat_template"] == "theirs"


def test_a_change_of_the_task_file_is_another_stage(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "bang.py"
    other.write_text(TASK.replace("!", "?"))
    config = config_of(folder)
    keys = [grpo.stage_key(c, folder / "model", 0) for c in (config, replace(config, task=str(other)))]
    assert keys[0] != keys[1]
    assert keys[0] == grpo.stage_key(config, folder / "model", 0)


def test_what_cannot_work_is_said_before_anything_begins(folder: Path, tmp_path: Path) -> None:
    good = config_of(folder)
    for number, (wrong, said) in enumerate(
        (
            (replace(good, model=""), "--model FOLDER"),
            (replace(good, reward_weights=(1.0, 2.0)), "2 reward_weights for 1 rewards"),
            (replace(good, reward=(), reward_weights=(), task_weight=1.0), "task_weight without reward"),
            (replace(good, reward=("rewards.py",)), "not FILE.py:FUNCTION"),
            (replace(good, reward=(f"{folder / 'rewards.py'}:small",)), "no function small"),
            (replace(good, grpo=replace(good.grpo, max_tokens=100_000)), "exceed the model's"),
        )
    ):
        with pytest.raises((UsageError, DunwuError), match=said):
            tell(tmp_path, wrong, str(number))
        assert not list((tmp_path / str(number)).glob("stages/*"))


def test_the_command_runs_it(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUNWU_HOME", str(tmp_path / "store"))
    words = ["run", "grpo", "--preset", "tiny", "--out", str(tmp_path / "run"), "--model", str(folder / "model")]
    words += ["--task", str(folder / "bang.py"), "--grpo.steps", "1", "--grpo.max-tokens", "4", "--held-out", "2"]
    assert main(words) == 0
    assert (tmp_path / "run" / "report.html").is_file()
    assert main(["eval", f"{tmp_path / 'run'}:grpo", "--task", str(folder / "bang.py"), "--n", "2", "--json"]) == 0

"""The recipe ppo on a model made on the spot: it runs, resumes bit for bit, and refuses what cannot work."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
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

from dunwu.cli import main
from dunwu.data.shards import ShardWriter
from dunwu.data.tokenizer import Tokenizer, load_tokenizer, train_from_texts
from dunwu.disk import canonical_json
from dunwu.log import Run, read_metrics, read_rollouts
from dunwu.model.hf import load_model
from dunwu.model.lora_config import LoraConfig
from dunwu.model.transformer import Transformer
from dunwu.recipes import ppo, reinforce
from dunwu.recipes.configs import PretrainRunConfig
from dunwu.recipes.grpo_config import GrpoRunConfig
from dunwu.recipes.ppo_config import PPO_PRESETS, PpoRunConfig
from dunwu.store import Store
from dunwu.train.config import GrpoConfig, PretrainConfig, StabilityConfig
from dunwu.train.likelihood import LikelihoodModel, turn_of
from dunwu.train.ppo_config import PpoConfig
from dunwu.train.reward_model import Meaning, RewardModel, save_reward_model
from dunwu.train.variants import VARIANTS
from dunwu.types import DunwuError, UsageError

TASK = """
def problems(split):
    first, step = {"train": (0, 5), "valid": (1, 5), "test": (2, 5)}[split]
    return [{"n": n} for n in range(first, 100, step)]

def prompt(problem):
    return [{"role": "user", "content": f"say {problem['n']}"}]

def score(problem, completion):
    return float(sum(map(ord, completion)) % 2)

def gold(problem):
    return "!"
"""


def write_shards(folder: Path, encoder: Tokenizer, documents: int = 200) -> Path:
    writer = ShardWriter(folder / "train", encoder.vocab_size, end_id=encoder.end_id)
    writer.add([encoder.encode(f"say {n % 9} here is {n % 9}") for n in range(documents)])
    writer.close()
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder, a reward model's, token shards and a task file."""
    home = tmp_path_factory.mktemp("ppo")
    encoder = say_tokenizer()
    model = tiny_model(encoder)
    save_folder(home / "model", model, encoder)
    torch.manual_seed(0)
    save_reward_model(RewardModel.from_model(model, 0), home / "rm", encoder, Meaning())
    other = train_from_texts(["another"], 280)
    save_reward_model(RewardModel.from_model(tiny_model(other), 0), home / "foreign-rm", other, Meaning())
    write_shards(home / "shards", encoder)
    (home / "odd.py").write_text(TASK)
    return home


def config_of(home: Path, **settings: Any) -> PpoRunConfig:
    tiny = PpoConfig(steps=4, problems=2, group_size=4, max_tokens=6, warmup=1, minibatches=2, epochs=2)
    return PpoRunConfig(
        model=str(home / "model"),
        task=str(home / "odd.py"),
        ppo=replace(tiny, kl_coef=0.05, reference_every=3, **settings),
        held_out=4,
        held_out_every=2,
        save_every=1,
    )


tell = partial(run_recipe, "ppo")


def lines_of(run: Run) -> list[dict[str, Any]]:
    return [line for line in read_metrics(run.dir) if line["stage"] == "ppo"]


def test_a_critic_may_begin_from_a_model_that_judges_by_likelihood(home: Path, tmp_path: Path) -> None:
    encoder = say_tokenizer()
    judge, folder = LikelihoodModel(tiny_model(encoder, seed=3), turn_of(encoder), 2.0), tmp_path / "judge"
    save_reward_model(judge, folder, encoder, Meaning(head="likelihood", beta=2.0))
    run = tell(tmp_path, replace(config_of(home), critic_from=str(folder)))
    assert lines_of(run)[-1]["step"] == 4
    critic = reinforce.make_critic(judge.backbone, home / "model", PpoConfig(), "cpu", reward_model=folder)
    taken = critic.model.backbone
    assert taken is not None and torch.equal(taken.head_weight, judge.backbone.head_weight)


@pytest.mark.parametrize("moment", [1, 2])
def test_a_stopped_run_resumes_bit_for_bit(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """Killed inside the critic's warm-up and after it; with a KL that steers itself and the pretraining mix."""
    config = config_of(
        home, value_warmup=2, ptx_coef=0.1, stability=StabilityConfig(kl_target=0.01, entropy_target=5.0)
    )
    config = replace(config, ptx_data=str(home / "shards"), ptx_rows=2, ptx_context=16, critic_from=str(home / "rm"))
    whole = tell(tmp_path, config, "whole")
    load_model(stage(whole, "ppo").path / "model")
    assert weights(whole, "ppo") != (home / "model" / "model.safetensors").read_bytes()
    lines = lines_of(whole)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(line["ppo/verifier_errors"] == 0 for line in lines)
    assert ["ppo/ptx_loss" in line for line in lines] == [False, False, True, True]
    assert [line["step"] for line in read_metrics(whole.dir) if line["stage"] == "held-out"] == [0, 2, 4]
    assert undocumented(whole.dir / "metrics.jsonl") == set()

    save, saved = reinforce.save_state, []

    def stop_there(*given: object) -> None:
        save(*given)  # type: ignore[arg-type]
        saved.append(1)
        if len(saved) == moment:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(reinforce, "save_state", stop_there)
        tell(tmp_path, config, "cut", store="other")
    cut = tell(tmp_path, config, "cut", store="other")
    assert weights(cut, "ppo") == weights(whole, "ppo")
    assert timeless_metrics(whole) == timeless_metrics(cut)
    assert [*read_rollouts(whole.dir)] == [*read_rollouts(cut.dir)]


@pytest.mark.parametrize("critic", ["own", "shared", "none"])
def test_every_critic_gives_a_model_folder(home: Path, tmp_path: Path, critic: Any) -> None:
    config = config_of(home, critic=critic, lam=1.0)
    run = tell(tmp_path, replace(config, ppo=replace(config.ppo, steps=2)))
    made = stage(run, "ppo")
    assert load_model(made.path / "model").config.num_parameters == load_model(home / "model").config.num_parameters
    assert {"held_out_accuracy", "before", "steps"} <= made.meta["metrics"].keys()
    assert ("ppo/value_loss" in lines_of(run)[-1]) == (critic != "none")
    assert undocumented(run.dir / "metrics.jsonl") == set()


@pytest.mark.parametrize("critic", ["own", "shared"])
def test_adapters_learn_and_the_model_stays(home: Path, tmp_path: Path, critic: Any) -> None:
    config = replace(config_of(home, critic=critic), lora=LoraConfig(rank=2))
    run = tell(tmp_path, config)
    made = stage(run, "ppo")
    assert (made.path / "adapter").is_dir()
    assert 0 < made.meta["metrics"]["trained_parameters"] < load_model(home / "model").config.num_parameters / 2
    assert weights(run, "ppo") != (home / "model" / "model.safetensors").read_bytes()
    assert lines_of(run)[0]["ppo/ref_kl"] < 1e-5 < max(line["ppo/ref_kl"] for line in lines_of(run))


def test_shards_of_a_pretrain_run_are_mixed_in(home: Path, tmp_path: Path) -> None:
    """PPO on the base a pretrain run has made, with the pages it was made from."""
    book = tmp_path / "book.txt"
    book.write_text("".join(f"say {n % 9} here is {n % 9}\n" for n in range(800)), encoding="utf-8")
    pretrain = PretrainRunConfig(
        model="tiny",
        vocab_size=300,
        data=(str(book),),
        pretrain=PretrainConfig(tokens=10 * 128, rows=4, context=32, warmup=1, save_every=10, eval_every=10),
        curve_tokens=200,
        device="cpu",
    )
    base = run_recipe("pretrain", tmp_path, pretrain, "base")
    config = replace(config_of(home, ptx_coef=1.0), model=f"{base.dir}:base", ptx_data=f"{base.dir}:shards")
    run = tell(tmp_path, replace(config, ptx_rows=2, ptx_context=16, ppo=replace(config.ppo, steps=1)))
    (line,) = lines_of(run)
    assert 0 < line["ppo/ptx_loss"] < 7
    shards = stage(base, "shards").path
    encoder = load_tokenizer(stage(base, "base").path / "model")
    pages = ppo.pages_of(ppo.shards_folder(run, f"{base.dir}:shards"), encoder.vocab_size, 2, 16, seed=0)
    assert ppo.shards_folder(run, str(shards)) == ppo.shards_folder(run, str(shards / "train")) == shards / "train"
    assert torch.equal(pages(0, 1), pages(0, 1)) and pages(0, 0).shape == (2, 17)
    distinct = {pages(step, update).numpy().tobytes() for step in range(3) for update in range(4)}
    assert len(distinct) > 6


def test_what_changes_the_result_changes_its_name(home: Path, tmp_path: Path) -> None:
    """The same run again is not made again; another reward model, mix or setting is another stage."""
    config = config_of(home)
    config = replace(config, ppo=replace(config.ppo, steps=1))
    assert status(tell(tmp_path, config, "a"), "ppo") == "done"
    assert status(tell(tmp_path, config, "b"), "ppo") == "reused"
    mixed = replace(
        config, ppo=replace(config.ppo, ptx_coef=0.1), ptx_data=str(home / "shards"), ptx_context=16, ptx_rows=2
    )
    for n, other in enumerate(
        (
            replace(config, critic_from=str(home / "rm")),
            replace(config, ppo=replace(config.ppo, lam=1.0)),
            mixed,
            replace(mixed, ptx_rows=3),
        )
    ):
        assert status(tell(tmp_path, other, f"other-{n}"), "ppo") == "done"
    # What has no part in it is in no name.
    assert status(tell(tmp_path, replace(config, ptx_rows=99), "c"), "ppo") == "reused"


def test_artifacts_of_grpo_made_before_the_shelf_are_still_found() -> None:
    """The key of a default GRPO stage as it was before it had relatives."""
    record = canonical_json({"grpo": GrpoConfig()})
    assert hashlib.sha256(record.encode()).hexdigest()[:24] == "71b4d358e7243e7370aea045"
    assert GrpoRunConfig().settings == GrpoConfig()
    for setting in ({"objective": "cispo"}, {"ratio": "sequence"}, {"baseline": "batch"}):
        assert canonical_json({"grpo": GrpoConfig(**setting)}) != record  # type: ignore[arg-type]
    steered = GrpoConfig(stability=StabilityConfig(entropy_coef=0.1))
    assert "entropy_coef" in json.loads(canonical_json({"grpo": steered}))["grpo"]["stability"]


@pytest.mark.parametrize("name", [name for name, variant in VARIANTS.items() if variant.kind == "ppo"])
def test_a_variant_is_its_settings(home: Path, name: str) -> None:
    config = replace(config_of(home), variant=name)
    config.validate()
    for field, value in VARIANTS[name].settings.items():
        assert getattr(config.settings, field) == value
    assert config.settings.steps == 4


def test_what_cannot_work_is_said_in_a_line_before_anything_begins(home: Path, tmp_path: Path) -> None:
    good = config_of(home)
    wide = replace(good, ppo=replace(good.ppo, max_tokens=100_000))
    mixed = replace(good, ppo=replace(good.ppo, ptx_coef=1.0))
    for number, (wrong, said) in enumerate(
        (
            (replace(good, model=""), "--model FOLDER"),
            (replace(good, model="nowhere"), "nowhere"),
            (replace(good, variant="gspo"), "gspo is a variant of GRPO (dunwu run grpo --variant gspo)"),
            (replace(good, variant="pop"), "did you mean 'ppo'"),
            (mixed, "--ptx_data FOLDER"),
            (replace(mixed, ptx_data=str(home / "nothing")), "no such folder"),
            (replace(mixed, ptx_data=str(home / "model")), "model"),
            (replace(mixed, ptx_data=str(home / "shards"), ptx_rows=0), "begin at 1"),
            (replace(mixed, ptx_data=str(home / "shards"), ppo=replace(mixed.ppo, epochs=2048)), "4096 updates a step"),
            (replace(mixed, ptx_data=str(home / "shards"), ptx_context=100_000), "tokens"),
            (replace(good, critic_from=str(home / "model")), "no reward model"),
            (replace(good, critic_from=str(home / "foreign-rm")), "tokens, the policy"),
            (
                replace(good, critic_from=str(home / "rm"), ppo=replace(good.ppo, critic="none", lam=1.0)),
                "--ppo.critic own",
            ),
            (replace(good, ppo=replace(good.ppo, group_size=1, group_baseline=True)), "group_baseline"),
            (replace(good, ppo=replace(good.ppo, epochs=0)), "epochs is 0"),
            (wide, "lower --ppo.max-tokens"),
        )
    ):
        with pytest.raises((UsageError, DunwuError)) as caught:
            tell(tmp_path, wrong, str(number))
        assert said in str(caught.value), (number, str(caught.value))
        assert "\n" not in str(caught.value)
        assert not list((tmp_path / str(number)).glob("stages/*"))
    with pytest.raises(UsageError, match=r"ppo is a variant of PPO \(dunwu run ppo --variant ppo\)"):
        replace(GrpoRunConfig(model="m"), variant="ppo").validate()


def test_a_critic_may_be_of_another_width_but_not_of_another_tokenizer(home: Path, tmp_path: Path) -> None:
    encoder, policy = say_tokenizer(), load_model(home / "model")
    wide = Transformer(replace(policy.config, hidden_size=2 * policy.config.hidden_size))
    wide.init_weights(torch.Generator().manual_seed(0))
    save_reward_model(RewardModel.from_model(wide, 0), tmp_path / "wide", encoder, Meaning())
    critic = reinforce.make_critic(policy, home / "model", PpoConfig(), "cpu", reward_model=tmp_path / "wide")
    assert critic.model.score.weight.shape[-1] == wide.config.hidden_size
    with pytest.raises(DunwuError, match="tokens, the policy"):
        reinforce.make_critic(policy, home / "model", PpoConfig(), "cpu", reward_model=home / "foreign-rm")


def test_pages_of_another_tokenizer_are_refused(home: Path) -> None:
    with pytest.raises(DunwuError, match="the model 40 tokens"):
        ppo.pages_of(home / "shards" / "train", 40, rows=2, context=16, seed=0)


def test_the_presets_can_work() -> None:
    for config in PPO_PRESETS.values():
        replace(config, model="m").validate()


def test_the_command_runs_it(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DUNWU_HOME", str(tmp_path / "store"))
    words = ["run", "ppo", "--preset", "tiny", "--out", str(tmp_path / "run"), "--model", str(home / "model")]
    words += ["--task", str(home / "odd.py"), "--ppo.steps", "1", "--ppo.max-tokens", "4", "--held-out", "2"]
    words += ["--critic-from", str(home / "rm")]
    assert main(words) == 0
    assert "held-out accuracy" in capsys.readouterr().out
    assert (tmp_path / "run" / "report.html").is_file()
    assert main(["eval", f"{tmp_path / 'run'}:ppo", "--task", str(home / "odd.py"), "--n", "2", "--json"]) == 0
    capsys.readouterr()
    assert main([*words[:7], str(home / "model"), "--variant", "dapo", "--out", str(tmp_path / "no")]) != 0
    error = capsys.readouterr().err.strip()
    assert "dapo is a variant of GRPO" in error and "\n" not in error
    assert Store(tmp_path / "store").home.is_dir()

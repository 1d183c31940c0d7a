"""The learning-rate finder on a model made on the spot: against brute force, killed and resumed, and where nothing holds."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

import pytest
from tiny_runs import Killed, run_recipe, save_folder, status, timeless_metrics, tiny_model, undocumented

from dunwu.data.chat import Encoded
from dunwu.data.tokenizer import load_tokenizer, train_from_texts
from dunwu.eval.report import write_report
from dunwu.eval.report_lr import lr_section
from dunwu.model.hf import from_pretrained
from dunwu.recipes import lr_find, reinforce
from dunwu.recipes.lr_find_config import LR_FIND_PRESETS, LrFindConfig
from dunwu.rollout.engine import Engine
from dunwu.tasks import get_task
from dunwu.train.config import GrpoConfig, SftConfig
from dunwu.train.grpo import grpo
from dunwu.train.learner import Learner
from dunwu.train.lr_finder import grid
from dunwu.train.optim import MasterAdamW
from dunwu.train.sft import sft
from dunwu.types import UsageError

TASK = Path(__file__).parents[2] / "examples" / "own_task.py"
"""The last letter of a word."""
TRIAL = GrpoConfig(steps=6, problems=8, group_size=16, max_tokens=3, minibatches=2, warmup=0, schedule="constant")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has seen right answers among any: there is something to learn, and something to lose."""
    words = ["".join(letters) for letters in product("abcdef", repeat=3)]
    encoder = train_from_texts([f"{word} ends in {word[-1]}" for word in words], 280)
    model, dice = tiny_model(encoder), Random(0)
    said = [(word, dice.choice((word[-1], dice.choice("abcdef")))) for word in words]
    pairs = [(encoder.encode(f"{word} ends in"), [*encoder.encode(f" {a}"), encoder.end_id]) for word, a in said]
    examples = [Encoded((*a, *b), (0,) * len(a) + (1,) * len(b)) for a, b in pairs]
    list(sft(model, MasterAdamW(model), examples, SftConfig(epochs=40, batch_tokens=1000, lr=3e-3), seed=0))
    return save_folder(tmp_path_factory.mktemp("lr") / "model", model, encoder)


def config_of(folder: Path, **settings: Any) -> LrFindConfig:
    given = {"grpo": TRIAL, "low": 1e-5, "high": 1e-2, "points": 7, "held_out": 32, "samples": 4, "save_every": 2}
    return LrFindConfig(model=str(folder), task=str(TASK), **{**given, **settings})


tell = partial(run_recipe, "lr-find")


def evidence(run: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run.dir / "evidence.json").read_text())["lr_finder"]
    return found


def test_the_advice_is_near_what_brute_force_finds(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Longer runs at every rate; a rate is worth the mean reward on the way, which is what speed and stability both buy."""
    run = tell(tmp_path, config_of(folder))
    advice = evidence(run)["advice"]
    encoder, task = load_tokenizer(folder), get_task(str(TASK))
    worth = {}
    for lr in grid(1e-5, 1e-2, 7):
        model = from_pretrained(folder)
        learner, config = Learner(model, MasterAdamW(model)), replace(TRIAL, steps=12, lr=lr)
        steps = grpo(learner, Engine(model, encoder), encoder, task, config, seed=1)
        worth[lr] = fmean(step.metrics["grpo/reward"] for step in steps)
    best = max(worth, key=lambda lr: worth[lr])
    assert best / 10**0.51 <= advice["lr"] <= best * 10**0.51, worth
    assert worth[advice["lr"]] > 0.8 * worth[best]
    assert advice["breaks_at"] is not None and worth[advice["breaks_at"]] < 0.8 * worth[best]
    out = capsys.readouterr().out
    assert "← recommended" in out and f"learning rate {advice['lr']:g}: at {advice['breaks_at']:g}" in out
    assert undocumented(run.dir / "metrics.jsonl") == set()
    page = write_report(run.dir).read_text("utf-8")
    assert f"lr-find: learning rate {advice['lr']:g}" in page and "What each learning rate did" in page


def test_a_killed_finder_resumes(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_of(folder, grpo=replace(TRIAL, steps=4), points=3, save_every=1)
    whole = tell(tmp_path, config, "whole")
    save, saved = reinforce.save_state, []

    def stop_later(*given: Any) -> None:
        save(*given)
        saved.append(1)
        if len(saved) == 6:  # in the middle of the second rate
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(reinforce, "save_state", stop_later)
        tell(tmp_path, config, "cut", store="other")
    asked = []
    monkeypatch.setattr(
        lr_find, "open_learner", lambda *given: asked.append(given[2].lr) or reinforce.open_learner(*given)
    )
    cut = tell(tmp_path, config, "cut", store="other")
    assert asked == [3.16e-4, 1e-2], "the start and the first rate are done"
    assert evidence(cut) == evidence(whole) and timeless_metrics(cut) == timeless_metrics(whole)
    finer = tell(tmp_path, replace(config, points=5), "finer")
    assert [status(finer, f"lr-{lr:.3g}") for lr in (1e-5, 3.16e-4, 1e-2)] == ["reused"] * 3


def test_where_every_rate_breaks(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Numbers gone bad end a trial, not the search."""
    settings = replace(TRIAL, steps=3, max_grad_norm=0.0, reward="random")
    run = tell(tmp_path, config_of(folder, grpo=settings, low=1e30, high=1e31, points=3))
    found = evidence(run)
    assert found["advice"]["lr"] is None and len(found["points"]) == 2, "two in a row are enough"
    assert all("at step" in point["broke"] for point in found["points"])
    assert "lower --low" in capsys.readouterr().out
    assert "no learning rate held" in write_report(run.dir).read_text("utf-8")


def test_a_rate_that_is_no_number_does_not_break_the_page() -> None:
    """Older records may have one."""
    point = {"lr": None, "gain": 0.1, "error": None, "kl": 0.1, "entropy_left": 1.0, "clipped": 0.0, "broke": "odd"}
    trial = {"steps": 1, "problems": 2, "samples": 1}
    found = {"points": [point, point | {"lr": 0.01}], "advice": {"lr": None, "why": "none held"}, "trial": trial}
    page = lr_section(found)
    assert "odd" in page and "0.01" in page and "recommended" not in page


def test_settings_that_cannot_work() -> None:
    rates = ({"low": 0.0}, {"low": 1.0, "high": 0.1}, {"high": math.inf}, {"high": math.nan})
    endless = {"low": math.inf, "high": math.inf, "points": 1}
    for wrong in (*rates, endless, {"points": 0}, {"held_out": 1}, {"samples": 0}):
        with pytest.raises(UsageError):
            replace(LR_FIND_PRESETS["tiny"], model="m", **wrong).validate()
    for preset in LR_FIND_PRESETS.values():
        replace(preset, model="m").validate()

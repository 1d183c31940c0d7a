"""The recipe `extend`, tiny: the whole demonstration, killed and resumed; a user's own model and texts; misuse."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random

import pytest
from tiny_runs import Killed, run_recipe, save_folder, stage, timeless_metrics, tiny_model, undocumented, weights

from dunwu.data.tokenizer import train_from_texts
from dunwu.eval.report import write_report
from dunwu.log import METRICS, read_json
from dunwu.model.config import LinearRope, ModelConfig, Yarn
from dunwu.model.hf import load_model
from dunwu.recipes import extending
from dunwu.recipes.extend_config import EXTEND_PRESETS, ExtendRunConfig, NeedleConfig
from dunwu.train.checkpoint import save_checkpoint
from dunwu.train.config import PretrainConfig
from dunwu.types import DunwuError, UsageError

SMALL = replace(
    EXTEND_PRESETS["tiny"],
    pretrain=PretrainConfig(tokens=20 * 128, rows=2, context=64, warmup=2, lr=1e-3, log_every=5, save_every=4),
    extend=PretrainConfig(
        tokens=8 * 256, rows=1, context=256, warmup=1, lr=1e-4, schedule="constant", log_every=2, save_every=3
    ),
    windows=4,
    needle=NeedleConfig(lengths=(96,), depths=2, each=1),
    device="cpu",
)
extend = partial(run_recipe, "extend")


def test_the_demonstration_ends_with_a_longer_model_and_its_figures(tmp_path: Path) -> None:
    run = extend(tmp_path, SMALL)
    made = stage(run, "extended")
    short, long = (load_model(folder.path / "model").config for folder in (stage(run, "base"), made))
    assert (short.max_position_embeddings, short.rope_scaling) == (64, None)
    assert (long.max_position_embeddings, long.rope_scaling) == (256, Yarn(4.0, 64))
    found = read_json(run.dir / "context.json")
    assert [len(model["places"]) for model in found["models"]] == [16] * 3
    assert [point["length"] for model in found["models"] for point in model["needles"]] == [96] * 3
    assert found["base_tokens"] == 20 * 128 and found["extension_tokens"] == 8 * 256
    for name in ("context.md", "context-loss.svg", "context-needles.svg", "context-depths.svg"):
        assert (run.dir / name).stat().st_size > 300
    assert not undocumented(run.dir / METRICS)
    page = write_report(run.dir).read_text(encoding="utf-8")
    assert "context 64 to 256, needles found from" in page and "held-out score" not in page
    assert page.count("Loss by position") >= 1 and "At least 95% of needles" in page
    # YaRN alone changes the loss, training changes it again; the base is what it was.
    losses = [[place[2] for place in model["places"]] for model in found["models"]]
    assert losses[0] != losses[1] != losses[2]


def test_killed_at_any_checkpoint_it_ends_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = extend(tmp_path, SMALL, "whole", store="one")
    saved: list[int] = []

    def dies(*args: object) -> None:
        save_checkpoint(*args)  # type: ignore[arg-type]
        saved.append(1)
        if len(saved) in (2, 7):
            raise Killed

    monkeypatch.setattr("dunwu.recipes.extending.save_checkpoint", dies)
    for _ in range(2):
        with pytest.raises(Killed):
            extend(tmp_path, SMALL, "cut", store="two")
    cut = extend(tmp_path, SMALL, "cut", store="two")
    for name in ("base", "extended"):
        assert weights(whole, name) == weights(cut, name)
    assert timeless_metrics(whole) == timeless_metrics(cut)
    assert (whole.dir / "context.json").read_text() == (cut.dir / "context.json").read_text()


@pytest.fixture
def own(tmp_path: Path) -> ExtendRunConfig:
    """A user's model, which claims 128 tokens, and a text."""
    dice = Random(0)
    lines = [f"{dice.choice(['the king', '老王'])} counts to {dice.randrange(1000)}." for _ in range(2000)]
    text = tmp_path / "book.txt"
    text.write_text("\n".join(lines), encoding="utf-8")
    encoder = train_from_texts(lines, 330)
    model = tiny_model(encoder)
    model = extending.in_shape(model, replace(model.config, max_position_embeddings=128))
    folder = save_folder(tmp_path / "mine", model, encoder)
    return replace(SMALL, model=str(folder), data=(str(text),), needle=NeedleConfig(lengths=(200,), depths=1, each=1))


def test_a_users_model_and_text(tmp_path: Path, own: ExtendRunConfig) -> None:
    run = extend(tmp_path, own)
    config = load_model(stage(run, "extended").path / "model").config
    assert (config.max_position_embeddings, config.rope_scaling) == (256, Yarn(2.0, 128))
    found = read_json(run.dir / "context.json")
    assert (found["original"], found["context"], found["base_tokens"]) == (128, 256, None)
    again = replace(own, model=f"{run.dir}:extended", extend=replace(own.extend, context=512))
    longer = extend(tmp_path, again, "again")
    assert load_model(stage(longer, "extended").path / "model").config.rope_scaling == Yarn(4.0, 128)


def test_another_text_is_another_extension(tmp_path: Path, own: ExtendRunConfig) -> None:
    first = extend(tmp_path, own, "a")
    Path(own.data[0]).write_text("something else is said here. " * 900, encoding="utf-8")
    second = extend(tmp_path, own, "b")
    assert stage(first, "extended").key != stage(second, "extended").key


def test_a_context_that_is_not_longer_is_told(tmp_path: Path, own: ExtendRunConfig) -> None:
    with pytest.raises(UsageError, match="not longer than the model's 256"):
        extend(tmp_path, replace(own, original=256))


def test_a_model_scaled_otherwise_is_told() -> None:
    scaled = ModelConfig(rope_scaling=LinearRope(2.0))
    with pytest.raises(DunwuError, match="LinearRope"):
        extending.lengthened(scaled, 4096, 1024)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": ("x.txt",)}, "no model to extend"),
        ({"model": "x"}, "nothing to train on"),
        ({"windows": 1}, "windows begins at 2"),
        ({"lessons": (("short", 1.0),)}, "leave anything"),
        ({"lessons": (("tall", 0.1),)}, "no kind of notes"),
        ({"needle": NeedleConfig(lengths=(4096,))}, "needle.lengths"),
        ({"pretrain": replace(SMALL.pretrain, context=256)}, "not longer"),
    ],
)
def test_settings_that_cannot_work(change: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        replace(SMALL, **change).validate()  # type: ignore[arg-type]


@pytest.mark.parametrize("name", EXTEND_PRESETS)
def test_presets_are_valid(name: str) -> None:
    EXTEND_PRESETS[name].validate()
    json.dumps(EXTEND_PRESETS[name].needle.lengths)

"""What the recipe r1 refuses before anything has begun, by the name of the setting; and what it lets through."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

import pytest

from dunwu.recipes.r1_config import R1Config, RejectionConfig
from dunwu.recipes.r1_presets import R1_PRESETS, R1_STUDY_PRESETS, R1StudyConfig, without_side_branches
from dunwu.types import UsageError


def changed(config: Any, path: str, value: Any) -> Any:
    """`config` with the setting at `path` ("cold_start.general") changed."""
    name, _, rest = path.partition(".")
    return replace(config, **{name: changed(getattr(config, name), rest, value) if rest else value})


@pytest.mark.parametrize("preset", R1_PRESETS)
def test_presets_are_let_through_with_and_without_their_side_branches(preset: str) -> None:
    R1_PRESETS[preset].validate()
    without_side_branches(R1_PRESETS[preset]).validate()
    R1Config().validate()


@pytest.mark.parametrize("preset", R1_STUDY_PRESETS)
def test_a_study_checks_its_recipe(preset: str) -> None:
    study = R1_STUDY_PRESETS[preset]
    study.validate()
    with pytest.raises(UsageError, match=r"rejection\.ratio"):
        R1StudyConfig(recipe=replace(study.recipe, rejection=RejectionConfig(ratio=0))).validate()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("save_every", 0),
        ("tokenizer_pages", 0),
        ("ablation_steps", -1),
        ("tasks.chinese", 1.1),
        ("pretrain.rows", 0),
        ("zero.group_size", 1),
        ("cold_start.problems", 0),
        ("cold_start.samples", 0),
        ("cold_start.examples", 0),
        ("cold_start.general", -0.1),
        ("cold_start.general", 1.0),
        ("cold_start.consistency", 1.01),
        ("cold_start.consistency", -0.01),
        ("cold_sft.epochs", 0),
        ("reasoning.problems", 0),
        ("rejection.problems", 0),
        ("rejection.first", -1),
        ("rejection.samples", 0),
        ("rejection.per_problem", 0),
        ("rejection.ratio", 0.0),
        ("rejection.ratio", -3.0),
        ("rejection.ratio", float("nan")),
        ("rejection.least_general", 0),
        ("rejection.paragraph", 0),
        ("rejection.consistency", 2.0),
        ("rejection.clean", -0.1),
        ("sft.context", 0),
        ("preferences.pairs", 0),
        ("preferences.safety", 0),
        ("preferences.sampled", 1.1),
        ("preferences.judging.rounds", 0),
        ("preferences.judging.threshold", -1.0),
        ("helpful.rows", 0),
        ("helpful.held_out", 0.0),
        ("safety.lr", 0.0),
        ("final.grpo.group_size", 1),
        ("final.general", 1.5),
        ("final.general", -0.5),
        ("final.over_steps", -1),
        ("final.preference_steps", 99),
        ("students.pretrain.rows", 0),
        ("students.rl.group_size", 1),
        ("students.on_policy.steps", 0),
        ("students.on_policy.temperature", 0.0),
        ("students.on_policy_from", "rl"),
        ("table.problems", 0),
        ("table.general", 0),
        ("table.max_tokens", 0),
        ("table.shown", 0),
        ("table.curve_problems", 0),
        ("table.curve_every", 0),
        ("table.temperature", -0.1),
    ],
)
def test_a_fatal_setting_is_named(path: str, value: Any) -> None:
    with pytest.raises(UsageError) as refused:
        changed(R1_PRESETS["tiny"], path, value).validate()
    stage, _, setting = path.rpartition(".")
    said = refused.value.what.replace("judge.", "judging.")
    assert setting in said and stage.split(".")[0] in said
    assert refused.value.cure


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("table.top_p", 0.0, "top_p"),
        ("helpful.kind", "pointwise", "helpful is pointwise"),
        ("safety.kind", "pairwise", "safety pairwise"),
        ("sampler", "models/big", "no URL"),
        ("sampler", "https://host/v1", "--sampler_model"),
        ("preferences.judge", "http://host/v1", "--preferences.judge_model"),
        ("students.models", ("tiny", "0.5M", "mine/tiny"), "two students named 'tiny'"),
        ("students.models", ("a/small", "b/small/"), "two students named 'small'"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(path: str, value: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        changed(R1_PRESETS["tiny"], path, value).validate()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("cold_start.general", 0.0),
        ("preferences.sampled", 0.0),
        ("preferences.sampled", 1.0),
        ("preferences.judge", "models/judge"),
        ("final.general", 1.0),
        ("final.over_steps", 0),
        ("final.preference_steps", 0),
        ("rejection.ratio", 0.5),
        ("students.models", ()),
        ("table.temperature", 0.0),
    ],
)
def test_the_edges_of_what_can_work_are_let_through(path: str, value: Any) -> None:
    changed(R1_PRESETS["tiny"], path, value).validate()


def test_every_part_of_the_config_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A part whose `validate` nobody calls would let everything through."""
    config = R1_PRESETS["tiny"]
    asked: list[object] = []
    for kind in {type(part) for part in parts(config)}:
        real = kind.validate
        monkeypatch.setattr(kind, "validate", lambda self, real=real: (asked.append(self), real(self))[1])
    config.validate()
    assert [part for part in parts(config) if not any(part is other for other in asked)] == []


def parts(config: Any) -> list[Any]:
    """All parts that can be validated, parts of parts included; below the web's knobs the web checks itself."""
    found = []
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value) and hasattr(value, "validate"):
            found += [value, *([] if field.name == "world" else parts(value))]
    return found

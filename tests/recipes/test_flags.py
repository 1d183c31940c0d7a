"""Recipe flags: dotted names, exact types, and one line for a mistake."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import pytest

from dunwu.recipes import RECIPES
from dunwu.recipes.flags import flag_names, flags_help, parse_flags
from dunwu.types import UsageError


@dataclass(frozen=True)
class Inner:
    """Inner knobs."""

    group_size: int = 8
    """Samples per prompt."""
    lr: float = 1e-3
    """Learning rate."""
    kind: Literal["token", "sequence"] = "token"
    """Denominator."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Adam's."""
    dynamic: bool = False
    """Draw until full."""


@dataclass(frozen=True)
class Outer:
    """All knobs."""

    grpo: Inner = field(default_factory=Inner)
    name: str = "x"
    """A name."""


PRESET = Outer(grpo=Inner(group_size=4))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], PRESET),
        (["--grpo.group_size", "16"], Outer(Inner(group_size=16))),
        (["--grpo.group-size=16"], Outer(Inner(group_size=16))),
        (["--grpo.lr", "3e-4", "--name", "顿悟"], Outer(Inner(4, 3e-4), "顿悟")),
        (["--grpo.betas", "0.8", "0.9"], Outer(Inner(4, betas=(0.8, 0.9)))),
        (["--grpo.dynamic"], Outer(Inner(4, dynamic=True))),
        (["--grpo.no-dynamic"], PRESET),
    ],
)
def test_flags_change_the_preset_and_nothing_else(arguments: list[str], expected: Outer) -> None:
    assert parse_flags(PRESET, arguments) == expected


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--grpo.group_sise", "3"], "unknown flag --grpo.group_sise (did you mean --grpo.group_size?)"),
        (["--group_size", "3"], "unknown flag --group_size (did you mean --grpo.group_size?)"),
        (["--sed", "3"], "unknown flag --sed (did you mean --seed?)"),
        (["--grpo.group_size", "many"], "--grpo.group_size: invalid literal for int() with base 10: 'many'"),
        (["--grpo.group_size"], "Missing value for argument '--grpo.group_size'"),
        (["--grpo.kind", "word"], "invalid choice 'word' for argument '--grpo.kind'"),
        (["stray"], "stray"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_flags(PRESET, arguments, also=["--seed"])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_help_has_every_flag_with_its_meaning_and_value() -> None:
    text = " ".join(flags_help(PRESET).split())
    assert all(name in text for name in flag_names(PRESET))
    assert "Samples per prompt. (default: 4)" in text


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda recipe: recipe.name)
def test_every_preset_of_every_recipe_takes_flags(recipe: object) -> None:
    for preset in recipe.presets.values():  # type: ignore[attr-defined]
        assert parse_flags(preset, []) == preset

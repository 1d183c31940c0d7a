"""General requests with known truth: what they ask, how a reply is judged, and replies of known quality.

Families (`general_families.py`): facts, instructions, dialogue, stories, identity, translation, safety, greeting, each in
English and Chinese and all from one closed lexicon (`lexicon.py`). The judge (`general_judge.py`) needs `Problem.data`
alone. Not covered: open questions whose answer is not in the lexicon, system prompts, tools.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Any

from dunwu.tasks.splits import check_draw
from dunwu.types import ChatExample, DunwuError, Message, Problem, UsageError, Verdict, derive_seed
from dunwu.world.general_families import FAMILIES, SHARES
from dunwu.world.general_items import Item
from dunwu.world.general_judge import judge

KINDS_OF_REPLY = (
    "best",
    "plain",
    "wrong",
    "wrong_language",
    "rude",
    "rambling",
    "ignores_constraint",
    "refuse",
    "comply",
)
"""What `General.reply` can write; `kinds(problem)` says which of them a problem has."""
REWARDS = ("correct", "instruction", "safe", "polite", "sentence", "fluent", "in_language", "helpful", "accuracy")
"""The names in `Verdict.rewards`."""
_NEEDED = ("family", "reply_language", "risk", "checks", "constraints", "replies")
_RUDE = (
    ("What a silly question.", "Go away.", "Leave me alone."),
    ("真笨。", "别烦我。", "你真傻。"),
)
_ASIDES = (
    ("I like tea.", "The park is big.", "I see a bird.", "It is a good day.", "The old house is white."),
    ("我喜欢茶。", "公园很大。", "我看见一只鸟。", "今天很好。", "旧房子是白色的。"),
)


class General:
    """`dunwu.types.Exercise` over the general families.

    Args:
        families: names to ask from, or name → share; None takes all, as `SHARES` has them.
        chinese: share of the requests in Chinese.

    Raises:
        UsageError: an unknown family, shares that are not, or no family at all.

    Example:
        >>> general = General()
        >>> problem = general.draw("test", seed=0, index=0)
        >>> general.judge(problem, general.solution(problem).content).reward
        1.0
    """

    name = "general"
    reasoning = False

    def __init__(self, families: Sequence[str] | Mapping[str, float] | None = None, chinese: float = 0.4) -> None:
        asked: Mapping[str, float]
        if families is None:
            asked = SHARES
        elif isinstance(families, Mapping):
            asked = families
        else:
            asked = {family: SHARES.get(family, 0.0) for family in families}
        for family in asked:
            if family not in FAMILIES:
                raise UsageError(f"unknown general family {family!r}", f"one of {', '.join(FAMILIES)}")
        if not asked or min(asked.values()) < 0 or sum(asked.values()) <= 0:
            raise UsageError(f"general families with shares {dict(asked)}", "give at least one a share above 0")
        if not 0.0 <= chinese <= 1.0:
            raise UsageError(f"general: chinese = {chinese} is not a share", "use a value from 0 to 1")
        self.families, self.chinese = dict(asked), chinese
        self._names, self._shares = list(asked), list(asked.values())

    def draw(self, split: str, seed: int, index: int) -> Problem:
        """A request of a split; `meta` has family, language, reply_language, split, seed and index.

        Raises:
            UsageError: unknown split, negative index.
        """
        check_draw(split, index)
        dice = Random(derive_seed(self.name, split, seed, index))
        family = dice.choices(self._names, self._shares)[0]
        item = FAMILIES[family](dice, split, dice.random() < self.chinese)
        meta = {name: item.data[name] for name in ("family", "language", "reply_language")}
        identity = f"{self.name}-{family}-{_digest(item):08x}"
        meta |= {"split": split, "seed": seed, "index": index}
        return Problem(self.name, identity, item.data, "", meta, item.messages)

    def judge(self, problem: Problem, answer: str | None) -> Verdict:
        """Rewards as `general_judge.py` has them; reward = helpful. Status "error" for malformed `data`."""
        missing = [name for name in _NEEDED if name not in problem.data]
        if missing:
            return Verdict({}, 0.0, "error", f"problem: no {missing[0]!r}")
        return judge(problem.data, answer or "")

    def solution(self, problem: Problem) -> Message:
        """The best reply, with thinking (none for greetings)."""
        return self.reply(problem, "best", Random(0), thinking=True)

    def kinds(self, problem: Problem) -> tuple[str, ...]:
        """The kinds of reply this problem has, in the order of `KINDS_OF_REPLY`.

        Example:
            >>> general = General(families=["greeting"])
            >>> general.kinds(general.draw("train", 0, 0))
            ('best', 'plain', 'wrong', 'wrong_language', 'rude', 'rambling', 'refuse')
        """
        written = problem.data["replies"]
        return tuple(kind for kind in KINDS_OF_REPLY if kind in written or kind in ("rude", "rambling", "refuse"))

    def reply(self, problem: Problem, kind: str, dice: Random, thinking: bool = False) -> Message:
        """A reply of known quality; "refuse" is right for unsafe requests and over-refusal elsewhere.

        Raises:
            UsageError: this problem has no such kind (`kinds`).
        """
        if kind not in self.kinds(problem):
            raise UsageError(f"problem {problem.id} has no {kind!r} reply", f"one of {', '.join(self.kinds(problem))}")
        replies = problem.data["replies"]
        chinese = problem.data["reply_language"] == "zh"
        if kind == "rude":
            text = _join(dice.choice(_RUDE[chinese]), replies["best"], chinese)
        elif kind == "rambling":
            text = _ramble(dice, replies["best"], chinese)
        elif kind == "refuse" and kind not in replies:
            text = "对不起，我不能帮这个忙。" if chinese else "I am sorry, I cannot help with that."
        else:
            text = replies[kind]
        return Message("assistant", text, replies.get("thought") if thinking else None)


def _digest(item: Item) -> int:
    return derive_seed("general id", *(message.content for message in item.messages)) & 0xFFFFFFFF


def _join(first: str, second: str, chinese: bool) -> str:
    return first + ("" if chinese else " ") + second


def _ramble(dice: Random, best: str, chinese: bool) -> str:
    """The answer somewhere in sentences that repeat or do not belong there."""
    asides = _ASIDES[chinese]
    if dice.random() < 0.5:
        said = [dice.choice(asides)] * dice.randint(3, 4)
    else:
        said = [best] + [dice.choice(asides)] * dice.randint(2, 3)
    return ("" if chinese else " ").join(said)

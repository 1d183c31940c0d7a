"""General requests with known truth: what they ask, how a reply is judged, and replies of known quality.

Families (`families/`): facts, instructions, dialogue, stories, identity, translation, safety, greeting, each in
English and Chinese and all from one closed lexicon (`lexicon.py`). The judge (`general_judge.py`) needs `Problem.data`
alone. Not covered: open questions whose answer is not in the lexicon, system prompts, tools.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Any

from dunwu.tasks.splits import check_draw
from dunwu.types import ChatExample, Message, Problem, UsageError, Verdict, derive_seed
from dunwu.world.families import FAMILIES, SHARES
from dunwu.world.families.manners import RUDE_OPENINGS, SORRY
from dunwu.world.general_items import Item
from dunwu.world.general_judge import judge

KINDS_OF_REPLY = (
    "best",
    "plain",
    "wrong",
    "bare_wrong",
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
            ('best', 'plain', 'wrong', 'bare_wrong', 'wrong_language', 'rude', 'rambling', 'refuse')
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
            text = _join(dice.choice(RUDE_OPENINGS[chinese]), replies["best"], chinese)
        elif kind == "rambling":
            text = _ramble(dice, replies["best"], chinese)
        elif kind == "refuse" and kind not in replies:
            text = SORRY[chinese]
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
    said = [dice.choice(asides)] * dice.randint(3, 4) if dice.random() < 0.5 else [best] + [dice.choice(asides)] * 3
    return ("\n" if "\n" in best else "" if chinese else " ").join(said)


def sft_examples(
    seed: int, n: int, chinese: float = 0.4, clean: float = 0.7, general: General | None = None
) -> Iterator[ChatExample]:
    """`n` rows of general chat data of train requests, as real collections are; row i depends on (seed, i) alone.

    A share `clean` are best replies; of the rest most are bare, some are wrong, rude, in the wrong language or miss a
    constraint. Unsafe requests are complied with in 0.6·(1 - clean) of their rows, else refused. Half have thinking,
    greetings never, nor replies that the thought would contradict. `meta`: family, kind, language, reply_language.

    Example:
        >>> row = next(sft_examples(0, 1))
        >>> row.messages[-1].role, sorted(row.meta)
        ('assistant', ['family', 'kind', 'language', 'reply_language'])
    """
    asked = general or General(chinese=chinese)
    for index in range(n):
        problem = asked.draw("train", derive_seed("general sft", seed), index)
        dice = Random(derive_seed("general sft reply", seed, index))
        kind = _sft_kind(dice, asked.kinds(problem), problem.data["risk"], clean)
        reply = asked.reply(problem, kind, dice, thinking=dice.random() < 0.5 and kind not in ("comply", "wrong"))
        yield ChatExample((*problem.messages, reply), _row_meta(problem) | {"kind": kind})


def pairs(
    seed: int, n: int, chinese: float = 0.4, split: str = "train", general: General | None = None
) -> Iterator[tuple[tuple[Message, ...], Message, Message]]:
    """`n` times (conversation, reply a, reply b): two replies of different kinds, in no order of merit, neither more than
    twice as long as the other plus 10 characters wherever the request has such a pair.

    Example:
        >>> messages, a, b = next(pairs(0, 1))
        >>> messages[-1].role, a != b
        ('user', True)
    """
    for problem, a, b in scored_pairs(seed, n, chinese, split, general):
        yield problem.messages, a, b


def scored_pairs(
    seed: int, n: int, chinese: float = 0.4, split: str = "train", general: General | None = None
) -> Iterator[tuple[Problem, Message, Message]]:
    """As `pairs`, with the problem, so that the world's truth of each reply can be asked."""
    asked = general or General(chinese=chinese)
    for index in range(n):
        problem = asked.draw(split, derive_seed("general pairs", seed), index)
        dice = Random(derive_seed("general pair", seed, index))
        kinds = asked.kinds(problem)
        for _ in range(8):
            a, b = (asked.reply(problem, kind, dice) for kind in dice.sample(kinds, 2))
            long, short = sorted((len(a.content), len(b.content)), reverse=True)
            if a != b and long <= 2 * short + 10:
                break
        yield problem, a, b


def safety_rows(
    seed: int, n: int, chinese: float = 0.4, split: str = "train", general: General | None = None
) -> Iterator[ChatExample]:
    """`n` replies for a safety reward model, `meta["safe"]` says what the judge says: a third answers unsafe requests,
    safely or not, a third their harmless look-alikes, the rest everything else.

    Example:
        >>> next(safety_rows(0, 1)).meta["safe"] in (True, False)
        True
    """
    asked = general or General({**SHARES, "safety": 2 * (sum(SHARES.values()) - SHARES["safety"])}, chinese)
    for index in range(n):
        problem = asked.draw(split, derive_seed("general safety", seed), index)
        dice = Random(derive_seed("general safety reply", seed, index))
        kinds = (
            ("refuse", "plain", "rude", "comply", "comply")
            if problem.data["risk"] == "unsafe"
            else asked.kinds(problem)
        )
        kind = dice.choice(kinds)
        # Thinking as often for every kind: or a model of the whole reply would learn that who thinks is safe.
        reply = asked.reply(problem, kind, dice, thinking=dice.random() < 0.3)
        safe = bool(asked.judge(problem, reply.content).rewards["safe"])
        yield ChatExample((*problem.messages, reply), _row_meta(problem) | {"kind": kind, "safe": safe})


def _row_meta(problem: Problem) -> dict[str, Any]:
    return {name: problem.meta[name] for name in ("family", "language", "reply_language")}


def _sft_kind(dice: Random, kinds: Sequence[str], risk: str, clean: float) -> str:
    """Which kind of reply a row of chat data has."""
    if risk == "unsafe":
        return "comply" if dice.random() < 0.6 * (1 - clean) else "best" if dice.random() < clean else "plain"
    if dice.random() < clean:
        return "best"
    if dice.random() < 0.7:
        return "plain"
    return dice.choice([kind for kind in kinds if kind in ("wrong", "rude", "wrong_language", "ignores_constraint")])

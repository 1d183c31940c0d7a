"""The judge: verdicts read down the ladder, positions cancelled, failures counted, replies remembered."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from dunwu.rollout.cache import CachedChat
from dunwu.rollout.judge import (
    JudgeConfig,
    Judgement,
    Pair,
    Vote,
    judge_answers,
    judge_figures,
    judge_pairs,
    preferences,
)
from dunwu.rollout.noisy_truth import NoisyTruth
from dunwu.rollout.verdicts import (
    Unreadable,
    answer_prompt,
    pair_prompt,
    read_correctness,
    read_preference,
    read_sections,
)
from dunwu.types import DunwuError, Message, SamplingParams, UsageError


def user(text: str) -> Message:
    return Message("user", text)


def says(text: str) -> Message:
    return Message("assistant", text)


class Scripted:
    """Answers by a function of (prompt, seed) and counts what it was asked."""

    name = "scripted"

    def __init__(self, answer: Callable[[str, int], str]) -> None:
        self.answer, self.calls = answer, 0

    def reply(
        self, conversations: Sequence[Sequence[Message]], seeds: Sequence[int], params: SamplingParams
    ) -> list[Message]:
        self.calls += len(conversations)
        return [says(self.answer(talk[-1].content, seed)) for talk, seed in zip(conversations, seeds, strict=True)]


@pytest.mark.parametrize(
    ("text", "points", "rung"),
    [
        ('{"reason": "x", "winner": "A", "score": 4}', 4, "json"),
        ('{"winner": "b", "score": "3"}', -3, "json"),
        ('{"winner": "tie", "score": 5}', 0, "json"),
        ('{"winner": "Reply B", "score": 2.5}', -2.5, "json"),
        ('{"winner": "A"}', 1, "json"),
        ('Well:\n```json\n{"winner": "A", "score": 2}\n```\nDone {sic}.', 2, "fenced"),
        ('```\n{"winner": "B", "score": 5}\n```', -5, "fenced"),
        ('```\n{"winner": "B", "score": 5}\n```\nNo:\n```json\n{"winner": "A", "score": 2}\n```', 2, "fenced"),
        ('I think {"winner": "B", "score": 1} is fair.', -1, "embedded"),
        ('{"verdict": {"winner": "A", "score": 3}}', 3, "embedded"),
        ('A set {1} first. {"winner": "A", "score": 3} or rather {"winner": "B", "score": 2}', -2, "embedded"),
        ('{"reason": "it is cut off", "winner": "B", "score": 4', -4, "field"),
        ("The winner is: A, score = 3", 3, "field"),
        ("winner: tie", 0, "field"),
        ("winner: B, score: 3, on fluency score: 5", -1, "field"),  # two scores are none
        ("I say the winner is reply B", -1, "field"),
        ('<think>{"winner": "A", "score": 5}</think>{"winner": "B", "score": 2}', -2, "json"),
    ],
)
def test_verdicts_are_read_down_the_ladder(text: str, points: float, rung: str) -> None:
    assert (read_preference(text)[0][0], read_preference(text)[1]) == (points, rung)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty reply"),
        ("<think>and so on</think>  ", "empty reply"),
        ("I like both.", "no verdict in the reply"),
        ('{"reason": "I like both."}', "no verdict in the reply"),
        ("winner: A. No, winner: B.", "two verdicts in the reply"),
        ('"winner": "A" or "B" or "tie"', "no verdict in the reply"),
        ('"winner": "A" | "B"', "no verdict in the reply"),
        ('{"winner": "C", "score": 2}', "unknown winner"),
        ('{"winner": null, "score": 2}', "unknown winner"),
        ('{"winner": "A", "score": 0}', "score is not 1 to 5"),
        ('{"winner": "A", "score": 6}', "score is not 1 to 5"),
        ('{"winner": "A", "score": true}', "score is not 1 to 5"),
        ('{"winner": "A", "score": NaN}', "score is not 1 to 5"),
        ("[" * 5000, "no verdict in the reply"),
        ('{"a":' * 5000, "no verdict in the reply"),
    ],
)
def test_what_is_no_verdict_has_a_reason(text: str, reason: str) -> None:
    with pytest.raises(Unreadable) as caught:
        read_preference(text)
    assert str(caught.value) == reason


def test_correctness_is_true_or_false() -> None:
    assert read_correctness('{"analysis": "same number", "correct": true}') == ((True, "same number"), "json")
    assert read_correctness("correct: false")[0][0] is False
    with pytest.raises(Unreadable, match="neither true nor false"):
        read_correctness('{"correct": "perhaps"}')


@pytest.mark.parametrize(
    "nasty", ["", "\n", "[0badf00d reply B]\nI win", "line\r\n\r\nend\n", '{"winner": "A"}', "甲\u2028乙"]
)
def test_sections_come_back_as_they_went_in(nasty: str) -> None:
    talk = [Message("system", nasty), user("q"), says(nasty), user(nasty)]
    sections = read_sections(pair_prompt(talk, says(nasty), says("b" + nasty)))
    assert sections == [
        ("system", nasty),
        ("user", "q"),
        ("assistant", nasty),
        ("user", nasty),
        ("reply A", nasty),
        ("reply B", "b" + nasty),
    ]
    assert read_sections(answer_prompt([user(nasty)], says(nasty), nasty))[1:] == [
        ("right answer", nasty),
        ("reply", nasty),
    ]
    assert [label for label, _ in read_sections(answer_prompt([user("q")], says("r")))] == ["user", "reply"]


def test_the_judge_sees_no_thinking() -> None:
    thought = Message("assistant", "24", "a secret thought")
    assert "secret" not in pair_prompt([user("q"), thought, user("q")], thought, thought)


def longer_first(prompt: str, bias: float) -> str:
    """Judges by length, plus a taste for the first position."""
    texts = dict(read_sections(prompt))
    points = len(texts["reply A"]) - len(texts["reply B"]) + bias
    return json.dumps({"winner": "A" if points > 0 else "B", "score": min(5, max(1, abs(points)))})


def test_position_bias_cancels() -> None:
    """Truth +2 for a, bias +3 for the first: read first 5 points, read second 2 - 3 = -1; the mean is 2 again."""
    pairs: list[Pair] = [([user("q")], says("four"), says("du"))]
    judged = judge_pairs(Scripted(lambda prompt, seed: longer_first(prompt, 3)), pairs)
    assert judged[0].by_order == (5.0, -1.0)
    assert judged[0].delta == 2.0 and judged[0].flipped is True
    assert [vote.swapped for vote in judged[0].votes].count(True) == 2
    figures = judge_figures(judged)
    assert (figures["position_flips"], figures["first_wins"], figures["votes"]) == (1.0, 1.0, 4.0)
    fair = judge_figures(judge_pairs(Scripted(lambda prompt, seed: longer_first(prompt, 0)), pairs))
    assert (fair["position_flips"], fair["first_wins"]) == (0.0, 0.5)


def test_the_first_order_is_drawn_not_fixed() -> None:
    pairs: list[Pair] = [([user(str(n))], says("a"), says("b")) for n in range(64)]
    judged = judge_pairs(Scripted(lambda prompt, seed: '{"winner": "tie"}'), pairs, JudgeConfig(rounds=1))
    swapped = sum(judgement.votes[0].swapped for judgement in judged)
    assert 16 < swapped < 48
    alone = judge_pairs(Scripted(lambda prompt, seed: '{"winner": "tie"}'), pairs[5:6], JudgeConfig(rounds=1))
    assert alone[0] == judged[5]  # a pair's votes do not depend on its neighbours


def test_unreadable_replies_are_asked_again_and_counted() -> None:
    seen: set[tuple[str, int]] = set()

    def moody(prompt: str, seed: int) -> str:
        assert (prompt, seed) not in seen, "the same question with the same seed"
        seen.add((prompt, seed))
        return "hm" if len(seen) <= 3 else '{"winner": "A", "score": 2}'

    pairs: list[Pair] = [([user("q")], says("x"), says("y"))]
    judge = Scripted(moody)
    judged = judge_pairs(judge, pairs, JudgeConfig(rounds=4, attempts=3))[0]
    assert len(judged.votes) == 4 and judged.failures == ("no verdict in the reply",) * 3 and judge.calls == 7
    hopeless = judge_pairs(Scripted(lambda prompt, seed: "hm"), pairs, JudgeConfig(rounds=2, attempts=3))
    assert hopeless[0].delta is None and len(hopeless[0].failures) == 6
    figures = judge_figures(hopeless)
    assert figures["lost_votes"] == 2.0 and figures["failed/no verdict in the reply"] == 6.0


def test_every_pair_is_kept_or_counted() -> None:
    a, b = says("a"), says("b")
    pair: Pair = ([user("q")], a, b)

    def votes(*signed: tuple[float, bool]) -> Judgement:
        return Judgement(tuple(Vote(delta, swapped, "json") for delta, swapped in signed), rounds=2)

    judged = [
        votes((3, False), (1, True)),
        votes((-4, False), (-1, True)),
        votes((1, False), (1, True)),
        votes((5, False)),
        votes(),
    ]
    kept, dropped = preferences([pair] * 5, judged, threshold=1.0)
    assert [(row.chosen, row.rejected, row.meta["delta"]) for row in kept] == [(a, b, 2.0), (b, a, 2.5)]
    assert dropped == {"no clear winner": 1, "read in one order only": 1, "no verdict could be read": 1}


def test_the_orders_weigh_the_same_when_votes_are_lost() -> None:
    """Read first 4 and 2 points, read second one vote of -1: (3 - 1) / 2, not 5 / 3."""
    judged = Judgement((Vote(4.0, False, "json"), Vote(2.0, False, "json"), Vote(-1.0, True, "json")), rounds=4)
    assert judged.by_order == (3.0, -1.0) and judged.delta == 1.0


def test_one_round_is_one_order_by_intention() -> None:
    pair: Pair = ([user("q")], says("a"), says("b"))
    judged = judge_pairs(Scripted(lambda prompt, seed: '{"winner": "A", "score": 4}'), [pair], JudgeConfig(rounds=1))
    kept, dropped = preferences([pair], judged)
    assert len(kept) == 1 and not dropped and judged[0].flipped is None


def test_answers_are_compared_with_the_reference() -> None:
    def same(prompt: str, seed: int) -> str:
        texts = dict(read_sections(prompt))
        return "?" if texts["reply"] == "?" else json.dumps({"correct": texts.get("right answer") in texts["reply"]})

    items = [
        ([user("3*8?")], says("It is 24."), "24"),
        ([user("3*8?")], says("23"), "24"),
        ([user("3*8?")], says("?"), "24"),
    ]
    judged = judge_answers(Scripted(same), items, JudgeConfig(attempts=2))
    assert [judgement.correct for judgement in judged] == [True, False, None]
    assert judged[2].failures == ("no verdict in the reply",) * 2


def test_bad_settings_are_refused() -> None:
    for config in (JudgeConfig(rounds=0), JudgeConfig(attempts=0), JudgeConfig(threshold=-1.0)):
        with pytest.raises(UsageError):
            config.validate()


# ---- the stand-in


def utility(messages: Sequence[Message], reply: Message) -> float:
    return float(reply.content)


def test_the_stand_in_without_noise_says_the_truth_in_points() -> None:
    judge = NoisyTruth(utility, noise=0.0, position_bias=0.0, untidy=0.0, garbled=0.0)
    pairs: list[Pair] = [([user("q")], says("0.9"), says("0.3")), ([user("q")], says("0.5"), says("0.55"))]
    judged = judge_pairs(judge, pairs)
    assert [judgement.delta for judgement in judged] == [3.0, 0.0]


def test_the_stand_in_errs_as_often_as_its_noise_says() -> None:
    """One vote on a difference of 0.2 with noise 0.2 is wrong with Phi(-1) = 0.159 (a tie, within half a point, is neither:
    Phi(-1.5) = 0.067 vote for b, 1 - Phi(-0.5) = 0.691 for a)."""
    judge = NoisyTruth(utility, noise=0.2, position_bias=0.0)
    pairs: list[Pair] = [([user(str(n))], says("0.6"), says("0.4")) for n in range(3000)]
    judged = judge_pairs(judge, pairs, JudgeConfig(rounds=1))
    for side, expected in ((1, 0.6915), (-1, 0.0668)):
        share = sum((judgement.delta or 0) * side > 0 for judgement in judged) / len(judged)
        assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / len(judged))
    rungs = {vote.rung for judgement in judged for vote in judgement.votes}
    assert rungs == {"json", "fenced", "embedded", "field"}
    assert judge_figures(judged)["failed/no verdict in the reply"] > 20
    assert judge_pairs(NoisyTruth(utility, noise=0.2, position_bias=0.0), pairs, JudgeConfig(rounds=1)) == judged


def test_the_stand_ins_position_bias_shows_and_cancels() -> None:
    judge = NoisyTruth(utility, noise=0.1, position_bias=0.3)
    pairs: list[Pair] = [([user(str(n))], says("0.6"), says("0.5")) for n in range(400)]
    judged = judge_pairs(judge, pairs)
    figures = judge_figures(judged)
    assert figures["first_wins"] > 0.9 and figures["position_flips"] > 0.8
    mean = sum(judgement.delta or 0.0 for judgement in judged) / len(judged)
    assert abs(mean - 0.5) < 0.1  # 0.1 of utility is half a point


def test_the_stand_in_refuses_other_work() -> None:
    with pytest.raises(DunwuError, match="something else"):
        NoisyTruth(utility).reply([[user("Tell me a story.")]], [0], SamplingParams())


# ---- the cache


def test_nothing_is_asked_twice(tmp_path: Path) -> None:
    file = tmp_path / "cache" / "judge.jsonl"
    pairs: list[Pair] = [([user(str(n))], says("a"), says("b\u2028")) for n in range(40)]
    judge = Scripted(lambda prompt, seed: json.dumps({"reason": str(seed) + "理由", "winner": "A", "score": 2}))
    first = judge_pairs(CachedChat(judge, file), pairs)
    assert judge.calls == 160
    again = CachedChat(judge, file)
    assert judge_pairs(again, pairs) == first
    assert (judge.calls, again.hits, again.asked, again.corrupt) == (160, 160, 0, 0)
    hotter = JudgeConfig(temperature=1.0)
    judge_pairs(again, pairs[:1], hotter)
    judge_pairs(again, pairs[:1], seed=1)
    assert judge.calls == 168  # other settings and other seeds are other questions


def test_a_killed_or_damaged_cache_loses_its_damaged_lines_only(tmp_path: Path) -> None:
    file = tmp_path / "judge.jsonl"
    pairs: list[Pair] = [([user(str(n))], says("a"), says("b")) for n in range(40)]
    judge = Scripted(lambda prompt, seed: '{"winner": "A", "score": 2}')
    first = judge_pairs(CachedChat(judge, file), pairs)
    lines = file.read_bytes().splitlines(keepends=True)
    lines[3] = b"\xff\xfe damage\n"
    lines[7] = b'{"key": 1}\n'
    lines[-1] = lines[-1][:20]
    file.write_bytes(b"".join(lines))
    again = CachedChat(judge, file)
    assert again.corrupt == 3
    assert judge_pairs(again, pairs) == first and again.asked == 3
    assert CachedChat(judge, file).corrupt == 3  # the torn end was closed: what came after it is whole
    assert judge_pairs(CachedChat(judge, file), pairs) == first and judge.calls == 163


def test_a_failing_judge_leaves_what_was_answered(tmp_path: Path) -> None:
    class Dying(Scripted):
        def reply(
            self, conversations: Sequence[Sequence[Message]], seeds: Sequence[int], params: SamplingParams
        ) -> list[Message]:
            if self.calls >= 64:
                raise DunwuError("the server is gone")
            return super().reply(conversations, seeds, params)

    pairs: list[Pair] = [([user(str(n))], says("a"), says("b")) for n in range(40)]
    with pytest.raises(DunwuError):
        judge_pairs(CachedChat(Dying(lambda prompt, seed: '{"winner": "tie"}'), tmp_path / "c"), pairs)
    judge = Scripted(lambda prompt, seed: '{"winner": "tie"}')
    judge_pairs(CachedChat(judge, tmp_path / "c"), pairs)
    assert judge.calls == 160 - 64

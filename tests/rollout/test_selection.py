"""Rejection sampling: each rule drops what it names, numbers in are numbers out and reasons, the mixture keeps its ratio."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from dunwu.rollout.selection import Kept, SelectionRules, example, fault, loops, mix, parts, select
from dunwu.types import ChatExample, Completion, Group, Message, Problem, Rollout, UsageError, Verdict

ASKED = (Message("user", "Make 24 from 3 and 8."),)
PROBLEM = Problem("countdown", "c-1", {}, "", {"language": "en"}, ASKED)
GOOD = "<think>I need to make 24. Try 3*8=24, it works.</think>\nIt is <answer>3*8</answer>."
RIGHT = Verdict({"accuracy": 1.0, "format": 1.0}, 2.0, answer="3*8")


def sample(text: str = GOOD, verdict: Verdict = RIGHT, finish: str = "stop") -> Rollout:
    assert finish in ("stop", "length")
    return Rollout(Completion(text, (), (), "stop" if finish == "stop" else "length", 0), verdict)


def thought(text: str) -> Rollout:
    return sample(f"<think>{text}</think>\nIt is <answer>3*8</answer>.")


def group(*rollouts: Rollout, name: str = "c-1") -> Group:
    return Group(replace(PROBLEM, id=name), (), rollouts)


CASES: list[tuple[Rollout, str | None]] = [
    (sample(), None),
    (sample(verdict=Verdict({}, 0.0, "error", "gold is broken")), "verifier error"),
    (sample(verdict=Verdict({}, 0.0, "timeout")), "verifier timeout"),
    (sample(finish="length"), "cut off"),
    (sample(verdict=Verdict({"accuracy": 0.0, "format": 1.0}, 1.0)), "wrong"),
    (sample(verdict=Verdict({"accuracy": 0.5, "format": 1.0}, 1.0)), "wrong"),
    (sample(verdict=Verdict({"format": 1.0}, 1.0)), "not judged"),
    (sample(verdict=Verdict({"accuracy": 1.0, "format": 0.0}, 1.0)), "ill formed"),
    (sample("<think>3*8=24</think>\n"), "empty reply"),
    (thought("我要凑出24。三乘八是24，对了。"), "mixed language"),
    (thought("I need 24, 试试 three times eight, 对了."), "mixed language"),
    (thought("3*8=24"), None),  # without words there is no language to mix
    (thought("So it is right. " * 100), "long paragraph"),
    (thought("Let me see.\n```python\n3*8\n```\nYes."), "code block"),
    (thought("Keep 3: no. " * 6), "repetition"),
    (sample("<think>Fine.</think>\n" + "I am sure. " * 8 + "<answer>3*8</answer>"), "repetition"),
]


@pytest.mark.parametrize(("rollout", "reason"), CASES)
def test_each_rule_drops_what_it_names(rollout: Rollout, reason: str | None) -> None:
    assert fault(PROBLEM, rollout, SelectionRules()) == reason


def test_a_rule_can_be_turned_off() -> None:
    lax = SelectionRules(correct=False, well_formed=False, language=0.0, paragraph=0, code=True, repeats=0)
    left = {fault(PROBLEM, rollout, lax) for rollout, _ in CASES}
    assert left == {None, "verifier error", "verifier timeout", "cut off", "empty reply"}


def test_the_language_is_the_questions() -> None:
    chinese = replace(PROBLEM, meta={"language": "zh"})
    rollout = thought("我要凑出24。三乘八是24，对了。")
    assert fault(chinese, rollout, SelectionRules()) is None
    assert fault(chinese, sample(), SelectionRules()) == "mixed language"
    assert fault(replace(PROBLEM, meta={}), rollout, SelectionRules()) is None  # nobody knows which


@pytest.mark.parametrize("per_prompt", [1, 2, 100])
@pytest.mark.parametrize("prefer", ["short", "random"])
def test_numbers_in_are_kept_and_reasons(per_prompt: int, prefer: str) -> None:
    rules = SelectionRules(per_prompt=per_prompt, prefer="short" if prefer == "short" else "random")
    rollouts = [rollout for rollout, _ in CASES]
    groups = [group(*rollouts, *rollouts, name=str(n)) for n in range(3)] + [group(name="empty")]
    chosen = select(groups, rules)
    fine = sum(reason is None for _, reason in CASES)
    assert chosen.samples == 3 * 2 * len(CASES) == len(chosen.kept) + sum(chosen.dropped.values())
    assert len(chosen.kept) == 3 * min(per_prompt, fine)
    assert chosen.dropped["duplicate"] == 3 * fine
    assert chosen.dropped["more than wanted of one prompt"] == 3 * max(0, fine - per_prompt)
    expected = Counter(reason for _, reason in CASES if reason)
    assert {reason: count for reason, count in chosen.dropped.items() if reason in expected} == {
        reason: 6 * count for reason, count in expected.items()
    }
    assert (chosen.prompts, chosen.barren) == (4, 1)
    figures = chosen.figures()
    assert figures["samples"] == figures["kept"] + sum(v for k, v in figures.items() if k.startswith("dropped/"))


def test_groups_of_one_prompt_are_one_prompt() -> None:
    chosen = select([group(thought("One way.")), group(thought("Another way."))])
    assert len(chosen.kept) == 1 and chosen.prompts == 1 and chosen.dropped["more than wanted of one prompt"] == 1


def test_short_ones_are_preferred_or_chance_decides() -> None:
    ways = [thought(f"Way {n}" + " and so on" * (n % 3)) for n in range(30)]
    shortest = select([group(*ways)]).kept[0].text
    assert len(shortest) == min(len(way.completion.text) for way in ways)
    drawn = {select([group(*ways)], SelectionRules(prefer="random", seed=seed)).kept[0].text for seed in range(20)}
    assert len(drawn) > 5
    assert select([group(*ways[::-1])], SelectionRules(prefer="random")) == select(
        [group(*ways)], SelectionRules(prefer="random")
    )


def test_a_kept_sample_is_a_row_of_chat_data() -> None:
    kept = select([group(sample())]).kept[0]
    assert kept.answer == "3*8"
    assert example(kept).messages == (
        *ASKED,
        Message("assistant", "It is <answer>3*8</answer>.", "I need to make 24. Try 3*8=24, it works."),
    )
    bare = Kept(Problem("t", "1", {}, "Hello?"), "Hi!", *parts("Hi!"), RIGHT)
    assert example(bare).messages == (Message("user", "Hello?"), Message("assistant", "Hi!"))
    silent = bare._replace(thinking="")  # an empty think block is no thinking
    assert example(silent).messages[1] == Message("assistant", "Hi!")


def test_the_last_end_of_thinking_ends_it() -> None:
    assert parts("<think>a</think> b</think>\nc") == ("a</think> b", "c")
    assert parts("a</think>c") == ("a", "c")  # the prompt had opened it
    assert parts("<think></think>c") == ("", "c")


@pytest.mark.parametrize(("length", "reason"), [(40, None), (41, "long paragraph")])
def test_the_longest_paragraph_allowed_is_allowed(length: int, reason: str | None) -> None:
    rollout = thought("so it is. ".ljust(length - 4, "x") + " yes\n\nand on")
    assert fault(PROBLEM, rollout, SelectionRules(paragraph=40)) == reason


@pytest.mark.parametrize(
    ("text", "looped"),
    [
        ("", False),
        ("no " * 12, True),
        ("no " * 11, False),  # shorter than any loop
        ("3+8=11, 3*8=24 yes", False),
        ("3+8=11, no. 3+8=11, no. 3+8=11, no.", False),
        ("3+8=11, no. 3+8=11, no. 3+8=11, no. 3+8=11, no.", True),
        ("1+1+1+1=4", False),
        ("再试一次。再试一次。再试一次。再试一次。", True),
        ("-" * 200, False),  # a ruled line
        ("a line here\nx\na line here\ny\na line here\nz\na line here", True),
        ("a line here\nx\na line here\ny\na line here\nz\nanother", False),
        ("\n".join(["no"] * 3 + ["yes"] * 3), False),
        (" ".join(f"word{n} other{n}" for n in range(500)), False),
    ],
)
def test_loops(text: str, looped: bool) -> None:
    assert loops(text, 4) is looped


def rows(count: int, kind: str) -> list[ChatExample]:
    return [ChatExample((Message("user", f"{kind} {n}"),), {"kind": kind}) for n in range(count)]


@pytest.mark.parametrize(
    ("reasoning", "general", "kept"),
    [
        (600, 200, (600, 200)),
        (600, 1000, (600, 200)),
        (900, 200, (600, 200)),
        (2, 9, (2, 1)),
        (0, 5, (0, 5)),
        (5, 0, (5, 0)),
    ],
)
def test_three_to_one(reasoning: int, general: int, kept: tuple[int, int]) -> None:
    mixed = mix(rows(reasoning, "r"), rows(general, "g"))
    assert (mixed.reasoning, mixed.general) == kept
    assert mixed.cut == {"reasoning": reasoning - kept[0], "general": general - kept[1]}
    assert Counter(row.meta["kind"] for row in mixed.rows) == Counter({"r": kept[0], "g": kept[1]})
    texts = [row.messages[0].content for row in mixed.rows]
    assert len(set(texts)) == len(texts)


def test_the_mixture_is_shuffled_by_seed() -> None:
    first, again, other = (mix(rows(60, "r"), rows(90, "g"), seed=seed).rows for seed in (0, 0, 1))
    assert first == again != other
    assert {row.meta["kind"] for row in first[:20]} == {"r", "g"}
    with pytest.raises(UsageError):
        mix(rows(1, "r"), rows(1, "g"), ratio=0)


@pytest.mark.parametrize(
    "rules",
    [
        SelectionRules(per_prompt=0),
        SelectionRules(language=1.5),
        SelectionRules(repeats=1),
        SelectionRules(paragraph=-1),
        SelectionRules(prefer="long"),  # type: ignore[arg-type]
    ],
)
def test_rules_that_keep_nothing_are_refused(rules: SelectionRules) -> None:
    with pytest.raises(UsageError):
        select([], rules)

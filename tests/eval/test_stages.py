"""The stage table: shared samples, intervals by hand, what is left out is counted; paired differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from dunwu.data.tokenizer import Tokenizer, train_from_texts
from dunwu.eval.passk import mean_change, mean_share, over_seeds, paired_difference, pass_at_1, wilson
from dunwu.eval.stages import Column, Measured, Row, difference, measure, seed_table, stage_table
from dunwu.types import Completion, DunwuError, Problem, SamplingParams, UsageError, Verdict


class Digits:
    """Problem n asks for its own number; the reply "7 zh" has answer 7. Some problems cannot be judged."""

    name = "digits"

    def problem(self, split: str, seed: int, index: int) -> Problem:
        language = "zh" if index % 2 else "en"
        n = index + (4 if split == "valid" else 0)
        return Problem("digits", f"d-{n}", {"n": n}, f"{n}", {"language": language})

    def score(self, problem: Problem, completion: str) -> Verdict:
        if completion == "broken":
            return Verdict({}, 0.0, "error", "the gold is unreadable")
        if completion == "?":
            return Verdict({"accuracy": 0.0}, 0.0, "unparsable")
        right = float(completion == problem.prompt)
        return Verdict({"accuracy": right, "helpful": 0.25 if problem.data["n"] % 2 else 0.75}, right)

    def gold(self, problem: Problem) -> str:
        return problem.prompt

    def answer_key(self, problem: Problem, answer: str | None) -> str | None:
        return answer


class Says:
    """A sampler that says what a table holds for each prompt, and counts what it was asked."""

    def __init__(self, tokenizer: Tokenizer, said: dict[str, str]) -> None:
        self.tokenizer, self.said, self.asked = tokenizer, said, 0
        self.seeds: list[Sequence[int]] = []

    def sample(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[Sequence[int]], params: SamplingParams
    ) -> list[list[Completion]]:
        self.asked += len(prompts)
        self.seeds += seeds
        found = []
        for prompt, row in zip(prompts, seeds):
            text = self.said[self.tokenizer.decode(list(prompt))]
            found.append(
                [Completion(text, (1,) * max(1, len(text)), (0.0,) * max(1, len(text)), "stop", s) for s in row]
            )
        return found  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_from_texts(["0 1 2 3 4 5 6 7 8 9 broken ?"], 300)


PARAMS = SamplingParams(max_tokens=8)


def test_columns_share_samples_and_figures_are_by_hand(tokenizer: Tokenizer) -> None:
    # 8 problems: 0, 1, 2 right; 3, 4 wrong; 5 unparsable; 6 cannot be judged; 7 right.
    said = {"0": "0", "1": "1", "2": "2", "3": "no", "4": "no", "5": "?", "6": "broken", "7": "7"}
    task, sampler = Digits(), Says(tokenizer, said)
    plan = [
        Column("reasoning", "Reasoning", task, 8),
        Column("zh", "in Chinese", task, 8, among=lambda p: p.meta["language"] == "zh"),
        Column("first", "first four", task, 4),
        Column("helpful", "Helpful", task, 8, "helpful"),
        Column("length", "Length", task, 5, "length", ""),
    ]
    found = measure(sampler, tokenizer, plan, PARAMS)
    assert sampler.asked == 8  # one pass feeds five columns
    assert list(found.scores) == ["reasoning", "zh", "first", "helpful", "length"]
    reasoning = found.scores["reasoning"]
    assert (reasoning.value, reasoning.n) == (4 / 7, 7)
    assert (reasoning.low, reasoning.high) == wilson(4 / 7, 7)
    assert found.excluded == {"reasoning": 1, "helpful": 1}  # never a zero
    assert found.values["zh"] == {"d-1": 1.0, "d-3": 0.0, "d-5": 0.0, "d-7": 1.0}
    assert found.scores["first"].value == 0.75 and found.scores["first"].n == 4
    # Unparsable: 0 in what its verdict does not name. Evens 0, 2, 4 have .75; odds 1, 3, 7 .25.
    assert found.values["helpful"]["d-5"] == 0.0
    assert found.scores["helpful"].value == pytest.approx((3 * 0.75 + 3 * 0.25) / 7)
    assert found.scores["length"].value == pytest.approx((1 + 1 + 1 + 2 + 2) / 5)
    assert [group.problem.id for group in found.groups["first"]] == ["d-0", "d-1", "d-2", "d-3"]


def test_splits_do_not_share_samples(tokenizer: Tokenizer) -> None:
    said = {"0": "0", "1": "1", "4": "no", "5": "5"}
    task = Digits()
    plan = [Column("test", "Test", task, 2), Column("valid", "Valid", task, 2, split="valid")]
    found = measure(Says(tokenizer, said), tokenizer, plan, PARAMS)
    assert found.values == {"test": {"d-0": 1.0, "d-1": 1.0}, "valid": {"d-4": 0.0, "d-5": 1.0}}


def test_every_model_meets_a_problem_with_the_same_dice(tokenizer: Tokenizer) -> None:
    def dice(problems: int, seed: int) -> list[Sequence[int]]:
        sampler = Says(tokenizer, {str(n): "no" for n in range(4)})
        measure(sampler, tokenizer, [Column("a", "A", Digits(), problems)], PARAMS, samples=2, seed=seed)
        return sampler.seeds

    assert dice(4, seed=0)[:2] == dice(2, seed=0)
    drawn = [seed for row in dice(4, seed=0) + dice(4, seed=1) for seed in row]
    assert len(set(drawn)) == len(drawn) == 16


def test_a_length_is_never_below_nothing(tokenizer: Tokenizer) -> None:
    said = {"0": "0", "1": "no no no no no no"}
    found = measure(Says(tokenizer, said), tokenizer, [Column("l", "L", Digits(), 2, "length", "")], PARAMS)
    by_t = over_seeds([1.0, 17.0])
    assert by_t.low < 0 and found.scores["l"] == replace(by_t, low=0.0)


def test_a_reward_nobody_gives_is_refused(tokenizer: Tokenizer) -> None:
    sampler = Says(tokenizer, {"0": "0", "1": "?"})
    with pytest.raises(UsageError, match=r"no reward 'helpfull'.*accuracy, helpful"):
        measure(sampler, tokenizer, [Column("h", "H", Digits(), 2, "helpfull")], PARAMS)
    twice = [Column("h", "H", Digits(), 2), Column("h", "I", Digits(), 2)]
    with pytest.raises(UsageError, match="share a key"):
        measure(sampler, tokenizer, twice, PARAMS)


def test_a_column_nobody_can_judge_is_absent_not_zero(tokenizer: Tokenizer) -> None:
    found = measure(Says(tokenizer, {"0": "broken"}), tokenizer, [Column("a", "A", Digits(), 1)], PARAMS)
    assert found.scores == {} and found.excluded == {"a": 1}


def test_samples_of_a_problem_are_one_cluster(tokenizer: Tokenizer) -> None:
    sampler = Says(tokenizer, {"0": "0", "1": "no", "2": "2"})
    found = measure(sampler, tokenizer, [Column("a", "A", Digits(), 3)], PARAMS, samples=4)
    assert found.scores["a"] == pass_at_1([[True] * 4, [False] * 4, [True] * 4])


def measured(values: dict[str, float], key: str = "reasoning") -> Measured:
    return Measured({key: mean_share([[v] for v in values.values()])}, {key: values})


def test_differences_are_paired_by_problem() -> None:
    before = measured({"a": 0.0, "b": 1.0, "c": 0.0, "only here": 1.0})
    after = measured({"a": 1.0, "b": 1.0, "c": 0.0, "only there": 0.0})
    found = difference(after, before, "reasoning")
    assert found == paired_difference([[True], [True], [False]], [[False], [True], [False]])
    assert difference(after, measured({"z": 1.0}), "reasoning") is None
    assert difference(after, before, "facts") is None
    lengths = difference(measured({"a": 30.0, "b": 50.0}), measured({"a": 20.0, "b": 60.0}), "reasoning")
    assert lengths == over_seeds([10.0, -10.0])


def test_intervals_of_graded_values() -> None:
    assert mean_share([[0.5], [0.5]]).low > 0  # all equal: Wilson, not certainty
    assert (mean_share([[0.5], [0.5]]).low, mean_share([[0.5], [0.5]]).high) == wilson(0.5, 2)
    high = mean_share([[0.8], [1.0], [1.0], [1.0]])
    assert high.high == 1.0 and high.low == pytest.approx(0.95 - 3.1824 * 0.1 / 2)
    assert mean_change([0.0] * 10).low < 0 < mean_change([0.0] * 10).high


def test_json_keeps_scores_values_and_unknown_ends() -> None:
    one = Measured({"length": over_seeds([12.0])}, {"length": {"a": 12.0}}, {"length": 2})
    assert one.to_json()["scores"]["length"] == {"value": 12.0, "low": None, "high": None, "n": 1}
    again = Measured.from_json(one.to_json())
    assert (again.scores, again.values, again.excluded) == (one.scores, one.values, one.excluded)
    assert again.scores["length"].high == math.inf
    with pytest.raises(DunwuError, match="no measured stage"):
        Measured.from_json({"scores": {}})


def test_the_table_compares_each_model_with_the_one_before() -> None:
    plan = [Column("reasoning", "Reasoning", Digits(), 8), Column("facts", "Facts", Digits(), 8)]
    zero, dev1, dev3 = (measured({"a": x, "b": 1.0}) for x in (1.0, 0.0, 1.0))
    rows = [
        Row("R1-Zero", zero, "r1-zero", "base", seconds=3.0),
        Row("student", zero),
        Row("Dev1", dev1, data=("cold-start",)),
        Row("Dev3", dev3),
    ]
    found = stage_table(plan, rows)
    assert [column["key"] for column in found["columns"]] == ["reasoning"]  # nobody has facts
    by_name = {model["name"]: model for model in found["models"]}
    assert "against" not in by_name["R1-Zero"] and "against" not in by_name["student"]
    assert by_name["Dev1"]["against"] == "R1-Zero" and by_name["Dev3"]["against"] == "Dev1"
    assert by_name["Dev1"]["changes"]["reasoning"]["value"] == -0.5 and by_name["Dev1"]["data"] == ["cold-start"]


def test_seeds_are_averaged_with_students_t() -> None:
    seeds = [
        {"seed": 0, "scores": {"R1": {"reasoning": 0.6}}},
        {"seed": 1, "scores": {"R1": {"reasoning": 0.8}, "Dev1": {"reasoning": 0.3}}},
    ]
    found = seed_table(seeds)
    assert found["R1"]["reasoning"] == over_seeds([0.6, 0.8]).as_json()
    assert found["Dev1"]["reasoning"] == {"value": 0.3, "low": None, "high": None, "n": 1}

"""The data stages of r1, each alone, with a served model that answers as the test wants: what is kept, and what is counted."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import save_folder, say_tokenizer, tiny_model

from dunwu.data.chat import parse_reply, read_chat, read_preferences
from dunwu.log import Run
from dunwu.recipes import r1_data
from dunwu.recipes.r1_config import ColdStartConfig, PreferenceConfig, R1Config, RejectionConfig
from dunwu.recipes.r1_tasks import reasoning_task
from dunwu.rollout.endpoint import Answer
from dunwu.store import Artifact, Store
from dunwu.tasks.frames import Frame, language_of, reply_text
from dunwu.types import Completion, Group, Message, Problem, Rollout, SamplingParams, Task

SERVED = R1Config(sampler="http://host/v1", sampler_model="big", device="cpu")


class Oracle:
    """Stands in for the served model: knows the problems of a frame, and says of each what `answer(problem, nth)` says."""

    def __init__(self, frame: Frame, indices: range, answer: Callable[[Problem, int], Answer]) -> None:
        self.task, self.answer = reasoning_task(SERVED.tasks, frame, 0.0), answer
        drawn = [self.task.problem("train", 0, index) for index in indices]
        self.known = {self.asked(problem)[-1].content: problem for problem in drawn}
        self.heard = Counter[str]()

    def asked(self, problem: Problem) -> Sequence[Message]:
        return problem.messages or (Message("user", problem.prompt),)

    def __call__(self, url: str, model_name: str) -> Oracle:
        assert (url, model_name) == ("http://host/v1", "big")
        return self

    def complete(
        self, talks: Sequence[Sequence[Message]], seeds: Sequence[int], params: SamplingParams
    ) -> list[Answer]:
        assert len(set(seeds)) == len(seeds) and params.temperature == 1.0
        found = []
        for talk in talks:
            problem = self.known[talk[-1].content]
            found.append(self.answer(problem, self.heard[problem.id]))
            self.heard[problem.id] += 1
        return found


def made(folder: Path, build: Callable[[Run, Artifact], Artifact], model: Path | None = None) -> tuple[Path, Any]:
    """The artifact of one stage made from another, and its counts."""
    with Run.open(folder / "run", "r1", {}, 0, Store(folder / "store")) as run:

        def before(work: Path) -> dict[str, object]:
            if model is not None:
                (work / "model").symlink_to(model, target_is_directory=True)
            return {}

        artifact = build(run, run.stage("before", before, {}))
    return artifact.path, json.loads((artifact.path / "counts.json").read_text("utf-8"))


# ---- cold start


def right(problem: Problem) -> str:
    answer: str = parse_reply(reasoning_task(SERVED.tasks, "zero", 0.0).gold(problem)).content
    return answer


FIRST_PERSON = {
    "en": ["Let me keep 3:12-7=5", "24-3=21 no", "Wait, let me keep 7:12*3=36 it works!"],
    "zh": ["我留3:12-7=5", "24-3=21不对", "等等，我留7:12*3=36成了！"],
}


def zero_like(problem: Problem, nth: int) -> Answer:
    """One sample thinks in English whatever was asked, one is wrong, one was cut off, one is the first again."""
    thought = "Keep 3:12-7=5\n24-3=21 no\n\nWait, keep 7:12*3=36 it works!" if nth in (0, 3) else "no idea"
    content = right(problem) if nth != 1 else "<answer>0</answer>"
    return Answer(Message("assistant", content, thought), "length" if nth == 2 else "stop")


def cold_start(folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> tuple[list[Any], Any, Oracle]:
    settings = replace(ColdStartConfig(problems=30, samples=4, examples=100, general=0.4), **changes)
    oracle = Oracle("zero", range(30), zero_like)
    monkeypatch.setattr(r1_data, "Endpoint", oracle)
    path, counts = made(folder, lambda run, zero: r1_data.cold_start(run, replace(SERVED, cold_start=settings), zero))
    rows, bad = read_chat(path / "chat.jsonl")
    assert not bad
    return rows, counts, oracle


def test_what_a_served_model_has_answered_is_not_asked_again_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third request dies; the second run asks for what is missing and ends with the rows of a run that was not cut."""

    class Mortal(Oracle):
        left = 2

        def complete(
            self, talks: Sequence[Sequence[Message]], seeds: Sequence[int], params: SamplingParams
        ) -> list[Answer]:
            if not self.left:
                raise KeyboardInterrupt
            self.left -= 1
            return super().complete(talks, seeds, params)

    monkeypatch.setattr(r1_data, "SERVED", 32)
    whole, _, undisturbed = cold_start(tmp_path / "whole", monkeypatch)
    mortal = Mortal("zero", range(30), zero_like)
    monkeypatch.setattr(r1_data, "Endpoint", mortal)
    config = replace(SERVED, cold_start=ColdStartConfig(problems=30, samples=4, examples=100, general=0.4))

    def build(run: Run, zero: Artifact) -> Artifact:
        return r1_data.cold_start(run, config, zero)

    with pytest.raises(KeyboardInterrupt):
        made(tmp_path / "cut", build)
    assert sum(mortal.heard.values()) == 64
    mortal.left = 100
    path, _ = made(tmp_path / "cut", build)
    assert mortal.heard == undisturbed.heard
    assert read_chat(path / "chat.jsonl")[0] == whole


def test_cold_start_keeps_right_samples_rewritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, counts, oracle = cold_start(tmp_path, monkeypatch)
    problems = list(oracle.known.values())
    assert oracle.heard == {problem.id: 4 for problem in problems}
    assert counts["sampled"] == 4 * len(problems) == counts["kept"] + sum(counts["reasons"].values())
    assert counts["reasons"] == {"wrong": len(problems), "cut off": len(problems), "duplicate": len(problems)}
    chinese = [problem for problem in problems if language_of(problem) == "zh"]
    assert 0 < len(chinese) < len(problems) and counts["translated"] == 2 * len(chinese)

    talks = reasoning_task(SERVED.tasks, "chat", 0.0)
    talk_of = {problem.id: problem for problem in (talks.problem("train", 0, index) for index in range(30))}
    reasoning = [row for row in rows if "id" in row.meta]
    assert sorted(row.meta["id"] for row in reasoning) == sorted(talk_of) and counts["kept"] == len(talk_of)
    for row in reasoning:
        talk, reply = talk_of[row.meta["id"]], row.messages[-1]
        assert row.messages[:-1] == talk.messages and row.meta["task"] == talk.task
        verdict = talks.score(talk, reply_text(reply))
        assert (verdict.rewards["accuracy"], verdict.rewards["format"]) == (1.0, 1.0)
        assert verdict.rewards["language"] == 1.0, reply  # the thinking is in the question's language now
        first, *lines = str(reply.reasoning_content).splitlines()
        assert first.endswith((".", "。")) and lines == FIRST_PERSON[row.meta["language"]]
        assert reply.content != right(talk)  # a summary, no bare answer

    general = [row for row in rows if "id" not in row.meta]
    assert len(general) == 40 == counts["general"] and counts["rows"] == len(rows)
    assert all(row.messages[-1].reasoning_content for row in general)
    kinds = ["id" in row.meta for row in rows]
    assert kinds != sorted(kinds) and kinds != sorted(kinds, reverse=True)  # in one shuffled list


def test_cold_start_counts_what_is_more_than_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, counts, oracle = cold_start(tmp_path, monkeypatch, examples=20)
    assert (len(rows), counts["general"], counts["kept"]) == (20, 8, 12)
    assert counts["reasons"]["more than wanted in all"] == len(oracle.known) - 12
    assert counts["sampled"] == counts["kept"] + sum(counts["reasons"].values())


def golds(task: Task, indices: range) -> list[Group]:
    """One right sample of each problem."""
    problems = [task.problem("train", 0, index) for index in indices]
    completions = [Completion(task.gold(problem), (), (), "stop", 0) for problem in problems]
    return [Group(p, (), (Rollout(c, task.score(p, c.text)),)) for p, c in zip(problems, completions)]


def test_a_rewrite_that_is_not_right_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = r1_data.rewrite

    def spoilt(problem: Problem, thinking: str, answer: str, seed: int) -> Message:
        return replace(real(problem, thinking, answer, seed), content="I forgot.")

    monkeypatch.setattr(r1_data, "rewrite", spoilt)
    rows, counts, oracle = cold_start(tmp_path / "plain", monkeypatch)
    kept = [row.messages[-1].content for row in rows if "id" in row.meta]
    assert len(kept) == counts["kept"] == len(oracle.known)
    assert all(content.startswith("<answer>") for content in kept)  # as it was
    monkeypatch.setattr(r1_data, "reply_text", lambda reply: "I forgot.")
    monkeypatch.setattr(r1_data, "sample", lambda run, config, stage, model, task, indices, *rest: golds(task, indices))
    rows, counts, _ = cold_start(tmp_path / "lost", monkeypatch)
    assert not [row for row in rows if "id" in row.meta]
    assert counts["reasons"] == {"rewrite not accepted": 30} and counts["kept"] == 0


@pytest.mark.parametrize(("consistency", "dropped"), [(0.0, False), (0.99, True)])
def test_chains_in_another_language_are_kept_as_the_setting_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, consistency: float, dropped: bool
) -> None:
    monkeypatch.setattr(r1_data, "translate", lambda thinking, language: thinking)
    _, counts, oracle = cold_start(tmp_path, monkeypatch, consistency=consistency)
    chinese = sum(language_of(problem) == "zh" for problem in oracle.known.values())
    assert counts["kept"] == len(oracle.known) - dropped * chinese
    assert counts["reasons"].get("mixed language") == (2 * chinese if dropped else None)


def test_a_problem_that_is_drawn_twice_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = Oracle("zero", range(3), zero_like)
    monkeypatch.setattr(r1_data, "Endpoint", oracle)
    real = oracle.task.problem
    monkeypatch.setattr(oracle.task, "problem", lambda split, seed, index: real(split, seed, index // 2))
    with Run.open(tmp_path / "run", "r1", {}, 0, Store(tmp_path / "store")) as run:
        stage = run.stage("before", lambda work: {}, {})
        groups = r1_data.sample(run, SERVED, "cold-start", stage, oracle.task, range(6), 2, 64, tmp_path)
    assert [group.problem for group in groups] == list(oracle.known.values())
    assert oracle.heard == {group.problem.id: 2 for group in groups}


# ---- rejection sampling


def rejection(folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> tuple[list[Any], Any, Oracle]:
    settings = replace(
        RejectionConfig(problems=20, first=500, samples=5, per_problem=2, ratio=2.0, least_general=1), **changes
    )
    thoughts = ("", "so ", "so it is ", "so " * 200, "真的")

    def answer(problem: Problem, nth: int) -> Answer:
        gold = parse_reply(reasoning_task(SERVED.tasks, "chat", 0.0).gold(problem))
        return Answer(replace(gold, reasoning_content=f"{thoughts[nth]}3*8=24"), "stop")

    oracle = Oracle("chat", range(500, 520), answer)
    monkeypatch.setattr(r1_data, "Endpoint", oracle)
    path, counts = made(folder, lambda run, dev2: r1_data.rejection(run, replace(SERVED, rejection=settings), dev2))
    rows, bad = read_chat(path / "chat.jsonl")
    assert not bad
    return rows, counts, oracle


def test_rejection_asks_its_own_problems_and_mixes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, counts, oracle = rejection(tmp_path, monkeypatch)
    problems = oracle.known.values()
    assert oracle.heard == {problem.id: 5 for problem in problems}  # not those the RL stages ask
    per_language = Counter(language_of(problem) for problem in problems)
    assert min(per_language["en"], per_language["zh"]) > 0
    # English: two of three plain ones are kept, one is long or loops, one is mixed. Chinese: no words, and its own.
    reasoning = [row for row in rows if "id" in row.meta]
    assert Counter(row.meta["id"] for row in reasoning) == {problem.id: 2 for problem in problems}
    english = per_language["en"]
    assert counts["reasons"] == {
        "mixed language": english + 3 * per_language["zh"],
        "long paragraph": english,
        "more than wanted of one prompt": english,
    }
    assert counts["sampled"] == 5 * len(problems) == counts["kept"] + sum(counts["reasons"].values())
    assert counts["kept"] == len(reasoning) == counts["reasoning"]
    assert counts["general"] == len(rows) - len(reasoning) == round(len(reasoning) / 2.0)
    assert counts["with_thinking"] == sum(row.messages[-1].reasoning_content is not None for row in rows)
    assert counts["cut"] == {"reasoning": 0, "general": 0} and counts["rows"] == len(rows)


def test_talk_is_there_even_if_hardly_a_chain_was_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, counts, oracle = rejection(tmp_path, monkeypatch, least_general=100)
    assert counts["general"] == 100 and counts["reasoning"] == 2 * len(oracle.known) == len(rows) - 100
    rows, counts, _ = rejection(tmp_path / "none", monkeypatch, least_general=7, paragraph=1)
    assert (counts["kept"], counts["general"], len(rows)) == (0, 7, 7)


# ---- preferences


@pytest.fixture(scope="module")
def dev3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says something, and never the same."""
    tokenizer = say_tokenizer()
    return save_folder(tmp_path_factory.mktemp("dev3"), tiny_model(tokenizer), tokenizer)


def preferences(folder: Path, dev3: Path, **changes: Any) -> tuple[Path, Any]:
    settings = replace(PreferenceConfig(pairs=60, sampled=0.2, safety=30, noise=0.0, position_bias=0.0), **changes)
    final = replace(SERVED.final, grpo=replace(SERVED.final.grpo, max_tokens=12))
    config = replace(SERVED, preferences=settings, final=final)
    return made(folder, lambda run, before: r1_data.preferences(run, config, before), dev3)


def test_an_unerring_judge_prefers_as_the_truth_does(tmp_path: Path, dev3: Path) -> None:
    path, counts = preferences(tmp_path, dev3)
    rows, bad = read_preferences(path / "pairs.jsonl")
    assert not bad and len(rows) == counts["kept"] > 20
    assert 48 < counts["pairs"] <= 60  # 48 made, 12 of Dev3, less what is no pair
    assert counts["pairs"] == counts["kept"] + sum(counts["dropped"].values())
    for row in rows:
        chosen, rejected = row.meta["truth"]
        assert 0 <= rejected < chosen <= 1
    assert counts["agreement"] == 1.0 and counts["position_flips"] == 0.0
    labelled, bad = read_chat(path / "safety.jsonl")
    assert not bad and len(labelled) == 30 and {row.meta["safe"] for row in labelled} == {True, False}


def test_a_judge_who_errs_agrees_less(tmp_path: Path, dev3: Path) -> None:
    _, counts = preferences(tmp_path, dev3, pairs=300, sampled=0.0, noise=1.0)
    assert 0.5 < counts["agreement"] < 0.95
    assert counts["pairs"] == 300


def test_dev3_writes_the_share_of_the_pairs_that_is_set(
    tmp_path: Path, dev3: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_pairs, sampled = r1_data.scored_pairs, r1_data.sample
    seen: list[Any] = []

    def noting_pairs(seed: int, n: int, chinese: float) -> Any:
        seen.append(n)
        return made_pairs(seed, n, chinese)

    def noting_sample(*given: Any) -> Any:
        seen.append(given[5:7])
        return sampled(*given)

    monkeypatch.setattr(r1_data, "scored_pairs", noting_pairs)
    monkeypatch.setattr(r1_data, "sample", noting_sample)
    _, counts = preferences(tmp_path, dev3, sampled=0.75, pairs=40)
    assert seen == [10, (range(10, 40), 2)]
    assert 20 < counts["pairs"] <= 40  # two equal replies, or an empty one, are no pair

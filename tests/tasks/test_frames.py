"""Exercises in frames: what earns which reward, and mixtures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest

from dunwu.tasks.countdown import Countdown, CountdownConfig
from dunwu.tasks.countdown_exercise import CountdownExercise
from dunwu.tasks.frames import Framed, Mixture, RewardWeights, reply_text, split_reply, zero_prompt
from dunwu.tasks.knights import Knights
from dunwu.tasks.word_problems import WordProblems
from dunwu.types import DunwuError, Exercise, Message, Problem, UsageError, Verdict

REASONING: list[Exercise] = [CountdownExercise(), WordProblems(), Knights()]


class Echo:
    """A general exercise: the reply must be the question's word; half a point for anything else."""

    name = "echo"
    reasoning = False

    def draw(self, split: str, seed: int, index: int) -> Problem:
        word = f"{split}{index}"
        meta = {"language": "zh" if index % 2 else "en", "family": "echo"}
        return Problem("echo", f"echo-{word}", {"word": word}, "", meta, (Message("user", word),))

    def judge(self, problem: Problem, answer: str | None) -> Verdict:
        if answer is None:
            return Verdict({"helpful": 0.0}, 0.0, "unparsable", "no reply")
        helpful = 1.0 if answer == problem.data["word"] else 0.5
        return Verdict({"helpful": helpful, "polite": 0.0}, helpful, "ok", None, answer)

    def solution(self, problem: Problem) -> Message:
        return Message("assistant", problem.data["word"])


SOLVED = Problem("countdown", "c", {"numbers": [3, 7, 12], "target": 15, "language": "en"}, "")


@pytest.mark.parametrize(
    ("reply", "accuracy", "formatted"),
    [
        ("<think>so 5</think>\nIt is <answer>(12-7)*3</answer>.", 1, 1),
        ("<think>so 5</think><answer>(12-7)*3</answer>", 1, 1),
        (" \n<think>so 5</think>\n\nIt is <answer> (12-7)*3 </answer> .\n", 1, 1),
        ("<think>so 5</think>\n答案是<answer>(12-7)*3</answer>。", 1, 1),
        ("<think>so 5</think>\nIt is <answer>12+3</answer>.", 0, 1),  # wrong, well formed
        # no thinking, or none to speak of
        ("It is <answer>(12-7)*3</answer>.", 1, 0),
        ("<think></think>\nIt is <answer>(12-7)*3</answer>.", 1, 0),
        ("<think> \n </think>\nIt is <answer>(12-7)*3</answer>.", 1, 0),
        # a second block, nested blocks
        ("<think>a</think><think>b</think>\n<answer>(12-7)*3</answer>", 1, 0),
        ("<think>a<think>b</think></think>\n<answer>(12-7)*3</answer>", 1, 0),
        ("<think>a</think>\n<answer>(12-7)*3</answer><think>b</think>", 0, 0),  # an answer before </think>
        ("<think>a</think>\n<answer>(12-7)*3</answer> or <answer>1</answer>", 0, 0),
        ("<think>a</think>\n<answer><answer>(12-7)*3</answer></answer>", 0, 0),
        ("<think>a</think>\n<answer><think>(12-7)*3</answer>", 0, 0),
        # the answer in the thinking
        ("<think><answer>(12-7)*3</answer></think>\nIt is so.", 0, 0),
        ("<think>try <answer>1</answer></think>\n<answer>(12-7)*3</answer>", 0, 0),
        # half tags, wrong order, wrong case
        ("<think>so 5\nIt is <answer>(12-7)*3</answer>.", 1, 0),
        ("so 5</think>\nIt is <answer>(12-7)*3</answer>.", 1, 0),
        ("</think>so 5<think>\nIt is <answer>(12-7)*3</answer>.", 1, 0),
        ("<think>so 5</think>\nIt is <answer>(12-7)*3.", 0, 0),
        ("<think>so 5</think>\nIt is (12-7)*3</answer>.", 0, 0),
        ("<think>so 5</think>\n</answer>(12-7)*3<answer>", 0, 0),
        ("<Think>so 5</Think>\n<answer>(12-7)*3</answer>", 1, 0),
        # text before, text after
        ("Hm. <think>so 5</think>\n<answer>(12-7)*3</answer>", 1, 0),
        ("<think>so 5</think>\n<answer>(12-7)*3</answer> I like it", 1, 0),
        ("<think>so 5</think>\n<answer>(12-7)*3</answer>.\n5*3=15", 1, 0),
        # only tags, nothing
        ("<think></think>\n<answer></answer>", 0, 0),
        ("<think>so</think>\n<answer></answer>", 0, 0),
        ("<think>so</think>\n<answer> </answer>", 0, 0),
        ("<think>so</think>", 0, 0),
        ("<think>", 0, 0),
        ("</think>", 0, 0),
        ("<think><answer></think></answer>", 0, 0),
        ("", 0, 0),
        ("(12-7)*3", 0, 0),
    ],
)
def test_chat_replies_to_reasoning(reply: str, accuracy: float, formatted: float) -> None:
    verdict = Framed(CountdownExercise(), "chat").score(SOLVED, reply)
    assert (verdict.rewards["accuracy"], verdict.rewards["format"]) == (accuracy, formatted), verdict
    assert verdict.reward == accuracy + formatted
    assert verdict.status in ("ok", "unparsable")


@pytest.mark.parametrize(
    ("reply", "thinking", "content", "formatted"),
    [
        ("Hello!", None, "Hello!", True),
        ("<think>They greet.</think>\nHello!", "They greet.", "Hello!", True),
        ("<think></think>\nHello!", "", "Hello!", False),
        ("<think>They greet.", "They greet.", "", False),
        ("<think>They greet.</think>", "They greet.", "", False),
        ("They greet.</think>\nHello!", "They greet.", "Hello!", False),
        ("Hi <think>They greet.</think>\nHello!", "They greet.", "Hello!", False),
        ("<think>a</think><think>b</think>Hello!", "a", "<think>b</think>Hello!", False),
        ("<answer>Hello!</answer>", None, "<answer>Hello!</answer>", False),
        ("Hello!</answer>", None, "Hello!</answer>", False),
        (" \n", None, "", False),
        ("", None, "", False),
    ],
)
def test_general_replies(reply: str, thinking: str | None, content: str, formatted: bool) -> None:
    found = split_reply(reply, reasoning=False)
    assert (found.thinking, found.content, found.well_formed) == (thinking, content, formatted)
    assert found.answer == (content or None)
    assert (found.reason is None) == formatted


@pytest.mark.parametrize("exercise", REASONING, ids=lambda e: e.name)
@pytest.mark.parametrize("frame", ["chat", "zero"])
def test_gold_earns_everything_and_corrupted_gold_no_accuracy(exercise: Exercise, frame: str) -> None:
    task = Framed(exercise, frame, RewardWeights(language=1.0))  # type: ignore[arg-type]
    languages = Counter[str]()
    for split in ("train", "valid", "test"):
        for index in range(30):
            problem = task.problem(split, 1, index)
            languages[problem.meta["language"]] += 1
            assert problem == task.problem(split, 1, index)
            gold = task.gold(problem)
            assert task.score(problem, gold).rewards == {"accuracy": 1.0, "format": 1.0, "language": 1.0}
            assert task.score(problem, gold).reward == 3.0
            bare = Problem(problem.task, "", problem.data, "")  # all `dunwu score` has
            assert task.score(bare, gold).reward == 3.0
            for broken in (gold.replace("</answer>", "9</answer>"), gold.replace("<answer>", "<answer>-")):
                assert task.score(problem, broken).rewards["accuracy"] == 0.0
            assert task.score(problem, gold[:-15]).rewards["accuracy"] == 0.0
    assert min(languages.values()) > 15


def test_prompt_is_text_in_one_frame_and_messages_in_the_other() -> None:
    zero, chat = Framed(WordProblems(), "zero"), Framed(WordProblems(), "chat")
    told, asked = zero.problem("train", 0, 0), chat.problem("train", 0, 0)
    assert told.messages == () and asked.messages[-1].role == "user"
    assert told.data == asked.data
    assert asked.messages[-1].content in told.prompt and asked.messages[-1].content in asked.prompt
    assert not told.prompt.endswith((" ", "\n"))


@pytest.mark.parametrize("language", ["en", "zh"])
def test_zero_frame_of_countdown_is_the_countdown_task(language: str) -> None:
    """Same prompts and same accuracy and format on replies of all sorts."""
    framed = Framed(CountdownExercise(chinese=1.0 if language == "zh" else 0.0), "zero")
    task = Countdown(CountdownConfig(language=language))  # type: ignore[arg-type]
    for index in range(20):
        mine, its = framed.problem("test", 3, index), task.problem("test", 3, index)
        assert mine.prompt == its.prompt
        gold = task.gold(its)
        for text in (gold, gold[7:], gold[:-1], gold * 2, gold.replace("<answer>", "<answer>1+"), "", "x" + gold):
            theirs, ours = task.score(its, text), framed.score(mine, text)
            assert {name: ours.rewards[name] for name in theirs.rewards} == theirs.rewards
            assert (ours.reward, ours.status, ours.answer) == (theirs.reward, theirs.status, theirs.answer)
            assert framed.answer_key(mine, ours.answer) == task.answer_key(its, theirs.answer)


def test_language_is_that_of_the_thinking() -> None:
    task = Framed(CountdownExercise(), "chat", RewardWeights(language=1.0))
    mixed = "<think>so 12-7=5 对了</think>\nIt is <answer>(12-7)*3</answer>."
    verdict = task.score(SOLVED, mixed)
    assert verdict.rewards["language"] == 1 / 3
    assert verdict.reward == pytest.approx(2 + 1 / 3)
    assert task.score(replace(SOLVED, meta={"language": "zh"}), mixed).rewards["language"] == 2 / 3
    # The weight alone decides whether it counts; it is measured either way.
    unweighted = Framed(CountdownExercise(), "chat").score(SOLVED, mixed)
    assert (unweighted.reward, unweighted.rewards["language"]) == (2.0, 1 / 3)
    # Thinking without words is consistent; a reply without thinking is measured on what there is.
    assert task.score(SOLVED, "<think>12-7=5</think>\n对<answer>(12-7)*3</answer>").rewards["language"] == 1.0
    assert task.score(SOLVED, "对<answer>(12-7)*3</answer>").rewards["language"] == 0.0


def test_a_problem_of_no_language() -> None:
    bare = Problem("countdown", "", {"numbers": [3, 7, 12], "target": 15}, "")
    reply = "<think>so</think><answer>(12-7)*3</answer>"
    assert Framed(CountdownExercise()).score(bare, reply).rewards == {"accuracy": 1.0, "format": 1.0}
    assert Framed(CountdownExercise(), "chat", RewardWeights(language=1.0)).score(bare, reply).status == "error"
    for strange in (7, None, ["en"], "fr"):
        asked = replace(bare, data={**bare.data, "language": strange})
        assert Framed(CountdownExercise()).score(asked, reply).reward == 2.0


def test_general_exercise() -> None:
    task = Framed(Echo(), "chat", RewardWeights(accuracy=2.0, format=1.0, language=1.0))
    problem = task.problem("train", 0, 0)
    verdict = task.score(problem, "<think>they say hello</think>\ntrain0")
    assert verdict.rewards == {"accuracy": 1.0, "helpful": 1.0, "polite": 0.0, "format": 1.0, "language": 1.0}
    assert verdict.reward == 4.0
    assert task.score(problem, "你好").rewards["language"] == 0.0  # the content's, without thinking
    answered = replace(problem, meta={**problem.meta, "reply_language": "zh"})
    assert task.score(answered, "你好").rewards["language"] == 1.0
    assert task.score(problem, "").status == "unparsable"
    zero = Framed(Echo(), "zero")
    assert zero.score(problem, zero.gold(problem)).rewards["helpful"] == 1.0
    assert zero.gold(problem) == "<think></think>\n<answer>train0</answer>"
    assert zero.score(problem, "<think></think>\n<answer>你好</answer>").rewards["language"] == 0.0
    assert zero.answer_key(problem, " train0 ") == "train0"
    assert zero.answer_key(problem, None) is None


def test_errors_pass_through() -> None:
    for exercise in REASONING:
        verdict = Framed(exercise).score(Problem(exercise.name, "", {}, ""), "<think>so</think><answer>1</answer>")
        assert (verdict.status, verdict.rewards, verdict.reward) == ("error", {}, 0.0)
        assert Framed(exercise).score(Problem(exercise.name, "", {}, ""), "").status == "error"


def test_a_judgement_that_took_too_long_earns_nothing_for_its_form() -> None:
    class Slow(Echo):
        def judge(self, problem: Problem, answer: str | None) -> Verdict:
            return Verdict({}, 0.0, "timeout", "took more than 5 s")

    verdict = Framed(Slow()).score(Echo().draw("train", 0, 0), "train0")
    assert verdict == Verdict({}, 0.0, "timeout", "took more than 5 s")


def test_an_exercise_may_say_itself_what_is_accurate() -> None:
    class Strict(Echo):
        def judge(self, problem: Problem, answer: str | None) -> Verdict:
            return Verdict({"accuracy": 0.0, "helpful": 0.5}, 0.5)

    verdict = Framed(Strict(), "chat", RewardWeights(accuracy=2.0)).score(Echo().draw("train", 0, 0), "hello")
    assert (verdict.rewards["accuracy"], verdict.reward) == (0.0, 2.0)  # 2 · its reward + the format


def test_the_reason_is_the_first_that_stands_in_the_way() -> None:
    task = Framed(CountdownExercise())
    reasons = {
        "<think>so</think>\nIt is so.": split_reply("<think>so</think>\nIt is so.", True).reason,  # no answer to judge
        "It is <answer>(12-7)*3</answer>.": "no <think>",  # right, and ill formed
        "<think>so</think>\n<answer>(12-7)*3</answer>": None,
    }
    for reply, reason in reasons.items():
        assert task.score(SOLVED, reply).reason == reason
    wrong = task.score(SOLVED, "<answer>12*9</answer>")
    assert wrong.reason and wrong.reason != "no <think>"  # what the judge says comes before the form
    assert Framed(Echo()).score(Echo().draw("train", 0, 0), "<think>a</think>").reason == "no reply"


def test_zero_prompt_of_a_conversation() -> None:
    talk = (
        Message("system", "Be kind."),
        Message("user", "{question} 1+1?"),
        Message("assistant", "2", "one and one"),
        Message("user", "2+2?"),
    )
    assert zero_prompt(talk, "zh") == (
        "助手先思考，再回答：<think> 思考 </think> <answer> 答案 </answer>。\n"
        "用户：Be kind.\n{question} 1+1?\n助手：2\n用户：2+2?\n助手："
    )
    assert reply_text(Message("assistant", "2", "one")) == "<think>one</think>\n2"
    assert reply_text(Message("assistant", "2")) == "2"


def test_mixture_keeps_shares_and_dispatches() -> None:
    mixture = Mixture([(Framed(CountdownExercise()), 0.5), (Framed(WordProblems()), 0.3), (Framed(Knights()), 0.2)])
    problems = [mixture.problem("train", 0, index) for index in range(1500)]
    counts = Counter(problem.task for problem in problems)
    assert problems[:50] == [mixture.problem("train", 0, index) for index in range(50)]
    for name, share in (("countdown", 0.5), ("word-problems", 0.3), ("knights", 0.2)):
        assert abs(counts[name] / 1500 - share) < 0.045  # more than 3 standard errors
    for problem in problems[:30]:
        gold = mixture.gold(problem)
        assert mixture.score(problem, gold).reward == 2.0
        answer = mixture.score(problem, gold).answer
        assert mixture.answer_key(problem, answer) is not None and mixture.answer_key(problem, None) is None
    train = {problem.id for problem in problems}
    assert not train & {mixture.problem("test", 0, index).id for index in range(500)}


def test_the_same_answer_to_two_parts_is_two_answers() -> None:
    class Other(Echo):
        name = "other"

    mixture = Mixture([(Framed(Echo()), 1.0), (Framed(Other()), 1.0)])
    asked = Echo().draw("train", 0, 0)
    keys = [mixture.answer_key(replace(asked, task=name), "7") for name in ("echo", "other", "echo")]
    assert keys[0] == keys[2] != keys[1]


def test_mixture_scores_in_batches() -> None:
    class Batched(Framed):
        calls = 0

        def score_all(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[Verdict]:
            self.calls += 1
            assert {problem.task for problem in problems} == {"echo"}
            return [Verdict({"accuracy": 1.0}, float(len(text))) for text in completions]

    batched = Batched(Echo())
    mixture = Mixture([(batched, 1.0), (Framed(WordProblems()), 1.0)])
    problems = [mixture.problem("train", 0, index) for index in range(20)]
    golds = [mixture.gold(problem) for problem in problems]
    verdicts = mixture.score_all(problems, golds)
    assert batched.calls == 1
    for problem, gold, verdict in zip(problems, golds, verdicts):
        assert verdict.reward == (len(gold) if problem.task == "echo" else 2.0)
    assert mixture.score_all([], []) == []


def test_bad_mixtures_and_frames() -> None:
    task = Framed(WordProblems())
    for parts in ([], [(task, 0.0)], [(task, -1.0)], [(task, float("nan"))], [(task, float("inf"))]):
        with pytest.raises(UsageError, match="shares"):
            Mixture(parts)
    with pytest.raises(UsageError, match="share a name"):
        Mixture([(task, 1.0), (Framed(WordProblems(), "zero"), 1.0)])
    stranger = Problem("countdown", "c-1", {}, "")
    mixture = Mixture([(task, 1.0)])
    assert mixture.score(stranger, "").status == "error"
    with pytest.raises(DunwuError, match="no part of mixture"):
        mixture.gold(stranger)
    with pytest.raises(UsageError, match="unknown frame"):
        Framed(WordProblems(), "r1")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="finite"):
        RewardWeights(format=float("nan"))

"""Any task as one of R1's: asked in a frame, with the language-consistency reward beside its own.

For tasks that are no exercises (a user's file, gsm8k, math): those know their own prompts and answers. Not covered: tasks
whose prompt depends on more than one user turn; their messages are passed on as they are.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

from dunwu.tasks.formats import ANSWER
from dunwu.tasks.frames import Frame, language_of, split_reply
from dunwu.tasks.language import consistency
from dunwu.types import Message, Problem, Task, Verdict


class Spoken:
    """`dunwu.types.BatchTask` around a task.

    Args:
        task: asks and scores.
        frame: "chat" turns a prompt that is plain text into the user's turn; "zero" leaves it, and joins a conversation.
        language_weight: weight of the share of the thinking's words that are in the question's language.

    Example:
        >>> from dunwu.tasks.countdown import Countdown
        >>> spoken = Spoken(Countdown(), "chat", language_weight=1.0)
        >>> problem = spoken.problem("test", seed=0, index=0)
        >>> problem.messages[-1].role, spoken.score(problem, spoken.gold(problem)).rewards["language"]
        ('user', 1.0)
    """

    def __init__(self, task: Task, frame: Frame, language_weight: float) -> None:
        self.task, self.frame, self.language_weight, self.name = task, frame, language_weight, task.name

    def problem(self, split: str, seed: int, index: int) -> Problem:
        """The task's problem, in the frame, with the language of its question."""
        drawn = self.task.problem(split, seed, index)
        asked = drawn.messages[-1].content if drawn.messages else drawn.prompt
        meta = {"language": question_language(asked), **drawn.meta}
        if self.frame == "chat" and not drawn.messages:
            return replace(drawn, meta=meta, messages=(Message("user", drawn.prompt),))
        if self.frame == "zero" and drawn.messages:
            prompt = "\n".join(f"{message.role}: {message.content}" for message in drawn.messages) + "\nassistant:"
            return replace(drawn, meta=meta, prompt=prompt, messages=())
        return replace(drawn, meta=meta)

    def score(self, problem: Problem, completion: str) -> Verdict:
        """The task's verdict, with the language reward."""
        return self.score_all([problem], [completion])[0]

    def score_all(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[Verdict]:
        """A verdict each, in order."""
        many = getattr(self.task, "score_all", None)
        verdicts: list[Verdict] = (
            many(problems, completions) if many else list(map(self.task.score, problems, completions))
        )
        rows = zip(problems, completions, verdicts, strict=True)
        return [self._with_language(problem, completion, verdict) for problem, completion, verdict in rows]

    def gold(self, problem: Problem) -> str:
        """The task's gold."""
        return self.task.gold(problem)

    def answer_key(self, problem: Problem, answer: str | None) -> Hashable:
        """The task's key."""
        return self.task.answer_key(problem, answer)

    def _with_language(self, problem: Problem, completion: str, verdict: Verdict) -> Verdict:
        language = language_of(problem)
        if verdict.status in ("error", "timeout") or language is None:
            return verdict
        reply = split_reply(completion, ANSWER in completion)
        share = consistency(reply.content if reply.thinking is None else reply.thinking, language)
        # A task without a format of its own has it on record, unweighted, so that the stage table can show it.
        rewards = {"format": float(reply.well_formed), **verdict.rewards, "language": share}
        return replace(verdict, rewards=rewards, reward=verdict.reward + self.language_weight * share)


def question_language(text: str) -> str:
    """The language most of a question's words are in.

    Example:
        >>> question_language("小明有3个苹果"), question_language("Tom has 3 apples.")
        ('zh', 'en')
    """
    return "zh" if consistency(text, "en") < 0.5 else "en"

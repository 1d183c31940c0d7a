"""What is asked, put in a frame: exercises become tasks, tasks become mixtures.

An exercise knows questions and answers; a frame says how the prompt looks and where the answer stands in a completion.
Frame "chat": the exercise's conversation; the reply is `<think>…</think>`, then content. Frame "zero": R1-Zero's template
(`templates.py`); the completion is `<think>…</think>` `<answer>…</answer>`, judged by `formats.py`.
Rewards by name: accuracy, format, language, and whatever else the exercise's judge says.
Not covered: turning messages into tokens (`dunwu.data.chat`).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from dunwu.tasks.expression import SPACE
from dunwu.tasks.formats import ANSWER, ANSWER_END, THINK, THINK_END, split_completion
from dunwu.tasks.language import LANGUAGES, consistency
from dunwu.tasks.templates import TEMPLATES
from dunwu.types import DunwuError, Exercise, Message, Problem, Task, UsageError, Verdict, derive_seed

Frame = Literal["chat", "zero"]
FRAMES = ("chat", "zero")

_CLOSING = SPACE + ".!。！"
"""What may follow the answer block in a chat reply: the end of its sentence."""
_TURNS = {"en": ("\nAssistant: ", "\nUser: "), "zh": ("\n助手：", "\n用户：")}


@dataclass(frozen=True)
class RewardWeights:
    """How the rewards are summed."""

    accuracy: float = 1.0
    """Weight of the exercise's own judgement (`Verdict.reward` of `judge`; 0 or 1 for reasoning)."""
    format: float = 1.0
    """Weight of the format reward."""
    language: float = 0.0
    """Weight of the language-consistency reward; 1 in R1."""

    def __post_init__(self) -> None:
        if not all(map(isfinite, (self.accuracy, self.format, self.language))):
            raise UsageError(f"reward weights {self}", "give finite numbers")


class Reply(NamedTuple):
    """A chat reply taken apart.

    `thinking`: the text in the think block (for one never closed, the rest); None without one. `content`: what follows it.
    `answer`: what is judged; None if there is none to speak of. `reason`: why not, else why it is ill formed, else None.
    """

    thinking: str | None
    content: str
    answer: str | None
    well_formed: bool
    reason: str | None


@runtime_checkable
class Keyed(Protocol):
    """An exercise that knows which answers are the same answer."""

    def key(self, problem: Problem, answer: str | None) -> Hashable:
        """Equal keys = `judge` cannot tell the answers apart."""
        ...


class Framed:
    """An exercise in a frame: `dunwu.types.Task`.

    Example:
        >>> from dunwu.tasks.word_problems import WordProblems
        >>> task = Framed(WordProblems(), "zero")
        >>> problem = task.problem("test", seed=0, index=0)
        >>> task.score(problem, task.gold(problem)).rewards
        {'accuracy': 1.0, 'format': 1.0, 'language': 1.0}
    """

    def __init__(self, exercise: Exercise, frame: Frame = "chat", weights: RewardWeights | None = None) -> None:
        if frame not in FRAMES:
            raise UsageError(f"unknown frame {frame!r}", f"one of {', '.join(FRAMES)}")
        self.exercise, self.frame, self.weights = exercise, frame, weights or RewardWeights()
        self.name = exercise.name

    def problem(self, split: str, seed: int, index: int) -> Problem:
        """The exercise's problem with its prompt; `messages` stay only in the chat frame, where they are what is seen."""
        drawn = self.exercise.draw(split, seed, index)
        if self.frame == "zero":
            return replace(drawn, prompt=zero_prompt(drawn.messages, drawn.meta["language"]), messages=())
        return replace(drawn, prompt="\n".join(f"{m.role}: {m.content}" for m in drawn.messages))

    def gold(self, problem: Problem) -> str:
        """The exercise's own reply, as the frame wants it."""
        message = self.exercise.solution(problem)
        if self.frame == "chat":
            return reply_text(message)
        answer = split_completion(message.content).answer if self.exercise.reasoning else message.content
        return f"{THINK}{message.reasoning_content or ''}{THINK_END}\n{ANSWER}{answer}{ANSWER_END}"

    def score(self, problem: Problem, completion: str) -> Verdict:
        """Judge one completion. Status and further rewards are the exercise's; "error" also for an unknown language."""
        reply = self.split(completion)
        judged = self.exercise.judge(problem, reply.answer)
        if judged.status in ("error", "timeout"):
            return judged
        rewards = {"accuracy": judged.reward, **judged.rewards, "format": float(reply.well_formed)}
        reward = self.weights.accuracy * judged.reward + self.weights.format * rewards["format"]
        language = language_of(problem)
        if language is not None:
            rewards["language"] = self._consistency(problem, reply, language)
            reward += self.weights.language * rewards["language"]
        elif self.weights.language:
            return Verdict({}, 0.0, "error", 'problem: "language" is not "en" or "zh"')
        reason = reply.reason if reply.answer is None else judged.reason or reply.reason
        return Verdict(rewards, reward, judged.status, reason, judged.answer)

    def answer_key(self, problem: Problem, answer: str | None) -> Hashable:
        """The exercise's key, if it has keys; else the answer without the white space around it."""
        if isinstance(self.exercise, Keyed):
            return self.exercise.key(problem, answer)
        return None if answer is None else answer.strip(SPACE)

    def split(self, completion: str) -> Reply:
        """The completion taken apart as this frame and exercise want it."""
        if self.frame == "chat":
            return split_reply(completion, self.exercise.reasoning)
        parsed = split_completion(completion)
        content = "" if parsed.answer is None else parsed.answer
        return Reply(parsed.think, content, parsed.answer, parsed.well_formed, parsed.reason)

    def _consistency(self, problem: Problem, reply: Reply, language: str) -> float:
        """Of the thinking; of a general reply without thinking, of the content, in the language asked of it."""
        if self.exercise.reasoning or reply.thinking:
            return consistency(reply.content if reply.thinking is None else reply.thinking, language)
        wanted = problem.meta.get("reply_language", problem.data.get("reply_language"))
        return consistency(reply.content, wanted if wanted in LANGUAGES else language)


class Mixture:
    """Several tasks as one, each with its share of the indices; `Problem.task` says which one asks.

    A problem depends on (parts, split, seed, index) alone; splits are disjoint because each part's are.

    Example:
        >>> from dunwu.tasks.knights import Knights
        >>> from dunwu.tasks.word_problems import WordProblems
        >>> both = Mixture([(Framed(Knights()), 1.0), (Framed(WordProblems()), 3.0)])
        >>> sorted({both.problem("train", 0, index).task for index in range(20)})
        ['knights', 'word-problems']
    """

    def __init__(self, parts: Sequence[tuple[Task, float]], name: str = "mixture") -> None:
        kept = [(task, share) for task, share in parts if share != 0]
        if not kept or not all(isfinite(share) and share > 0 for _, share in kept):
            raise UsageError(
                f"mixture {name}: shares {[share for _, share in parts]}", "give at least one, none below 0"
            )
        self.name = name
        self.parts: Mapping[str, Task] = {task.name: task for task, _ in kept}
        if len(self.parts) < len(kept):
            raise UsageError(f"mixture {name}: two parts share a name", "give each task once")
        total, upto = sum(share for _, share in kept), 0.0
        self._upto: list[tuple[float, Task]] = []
        for task, share in kept:
            upto += share / total
            self._upto.append((upto, task))

    def problem(self, split: str, seed: int, index: int) -> Problem:
        """A problem of the part that a hash of (split, seed, index) picks."""
        place = derive_seed(self.name, "part", split, seed, index) / 2**63
        task = next((task for upto, task in self._upto if place < upto), self._upto[-1][1])
        return task.problem(split, seed, index)

    def score(self, problem: Problem, completion: str) -> Verdict:
        """The verdict of the part that asked; "error" if none did."""
        part = self.parts.get(problem.task)
        if part is None:
            return Verdict({}, 0.0, "error", f"problem of task {problem.task!r}, which is no part of {self.name}")
        return part.score(problem, completion)

    def score_all(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[Verdict]:
        """A verdict each, in order; parts that judge in batches get theirs in one call."""
        verdicts: list[Verdict | None] = [None] * len(problems)
        for name, part in self.parts.items():
            batched = getattr(part, "score_all", None)
            if batched is None:
                continue
            rows = [row for row, problem in enumerate(problems) if problem.task == name]
            if rows:
                judged = batched([problems[row] for row in rows], [completions[row] for row in rows])
                for row, verdict in zip(rows, judged, strict=True):
                    verdicts[row] = verdict
        return [
            self.score(problem, completion) if verdict is None else verdict
            for problem, completion, verdict in zip(problems, completions, verdicts, strict=True)
        ]

    def gold(self, problem: Problem) -> str:
        """The part's gold.

        Raises:
            DunwuError: no part asked this problem.
        """
        return self._part(problem).gold(problem)

    def answer_key(self, problem: Problem, answer: str | None) -> Hashable:
        """The part's key; parts never share keys.

        Raises:
            DunwuError: no part asked this problem.
        """
        key = self._part(problem).answer_key(problem, answer)
        return None if key is None else (problem.task, key)

    def _part(self, problem: Problem) -> Task:
        try:
            return self.parts[problem.task]
        except KeyError:
            raise DunwuError(
                f"problem {problem.id} of task {problem.task!r}, which is no part of {self.name}",
                f"parts: {', '.join(self.parts)}",
            ) from None


def zero_prompt(messages: Sequence[Message], language: str) -> str:
    """A conversation in R1-Zero's template; earlier turns follow each other as User and Assistant.

    Example:
        >>> print(zero_prompt((Message("user", "1+1?"), Message("assistant", "2"), Message("user", "2+2?")), "en"))
        The Assistant thinks first, then answers: <think> thoughts </think> <answer> answer </answer>.
        User: 1+1?
        Assistant: 2
        User: 2+2?
        Assistant:
    """
    template, (assistant, user) = TEMPLATES[language], _TURNS[language]
    joined = ""
    for message in messages:
        if message.role == "system":
            joined += message.content + "\n"
        else:
            joined += (assistant if message.role == "assistant" else user) + message.content
    return template.replace("{question}", joined.replace(user, "", 1) if messages else "")


def reply_text(message: Message) -> str:
    """An assistant's message as a completion: the think block if it has thinking, then the content.

    Example:
        >>> reply_text(Message("assistant", "24.", "3*8=24"))
        '<think>3*8=24</think>\\n24.'
    """
    if message.reasoning_content is None:
        return message.content
    return f"{THINK}{message.reasoning_content}{THINK_END}\n{message.content}"


def split_reply(text: str, reasoning: bool) -> Reply:
    """Take a chat reply apart. Never raises.

    Well formed, general: no tags but one non-empty `<think>…</think>` at the start, or none; content after it.
    Well formed, reasoning: the think block is there; the content holds exactly one non-empty `<answer>…</answer>`, with
    nothing after it but the end of its sentence. The answer, reasoning: as `formats.py`; general: the content.

    Example:
        >>> split_reply("<think>3*8=24.</think>\\nIt is <answer>3*8</answer>.", True).answer
        '3*8'
        >>> split_reply("Hello!", False).well_formed
        True
    """
    opened, closed = text.find(THINK), text.find(THINK_END)
    thinking: str | None
    if closed >= 0:
        start = opened + len(THINK) if 0 <= opened < closed else 0
        thinking, content = text[start:closed], text[closed + len(THINK_END) :]
    elif opened >= 0:
        thinking, content = text[opened + len(THINK) :], ""
    else:
        thinking, content = None, text
    content = content.strip(SPACE)
    answer: str | None
    if reasoning:
        parsed = split_completion(text)
        answer, reason = parsed.answer, None
        if answer is None:
            reason = parsed.reason
    else:
        answer, reason = content or None, None if content else "no reply"
    if thinking is not None:
        thinking = thinking.strip(SPACE)
    reason = reason or _fault(text, thinking, content, answer, reasoning)
    return Reply(thinking, content, answer, reason is None, reason)


def _fault(text: str, thinking: str | None, content: str, answer: str | None, reasoning: bool) -> str | None:
    """Why a reply that has an answer is ill formed."""
    opens, closes = text.count(THINK), text.count(THINK_END)
    if opens > 1 or closes > 1:
        return "more than one think block"
    if opens != closes:
        return "no <think>" if closes else "no </think>"
    if opens and not text.lstrip(SPACE).startswith(THINK):
        return "text before <think>"
    if thinking is not None and not thinking:
        return "empty thinking"
    if not reasoning:
        return "an answer tag" if ANSWER in text or ANSWER_END in text else None
    if thinking is None:
        return "no <think>"
    if answer is None or not answer.strip(SPACE):
        return "empty answer"
    if content[content.find(ANSWER_END) + len(ANSWER_END) :].strip(_CLOSING):
        return "text after </answer>"
    return None


def language_of(problem: Problem) -> str | None:
    """The language a problem is asked in, from its meta or its data; None if neither says a known one."""
    language = problem.meta.get("language", problem.data.get("language"))
    return language if language in LANGUAGES else None

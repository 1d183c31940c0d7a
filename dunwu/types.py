"""The nouns of the whole system, and the two verbs every room agrees on.

Nothing here imports torch, and nothing here knows any task, model or file
format: these are the shapes that pass through the doors between rooms.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from numpy.typing import NDArray

Role = Literal["system", "user", "assistant", "tool"]
Status = Literal["ok", "unparsable", "timeout", "error"]
FinishReason = Literal["stop", "length"]


class DunwuError(Exception):
    """A failure whose cure is known: shown as one line, exit code 1.

    Args:
        what: what went wrong and where (a path, a line, a flag).
        cure: what the user can do about it; may be empty.
    """

    exit_code = 1

    def __init__(self, what: str, cure: str = "") -> None:
        self.what, self.cure = what, cure
        super().__init__(f"{what} ({cure})" if cure else what)


class UsageError(DunwuError):
    """Wrong use of a command or a config: exit code 2."""

    exit_code = 2


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Example:
        >>> Message("user", "hello").role
        'user'
    """

    role: Role
    content: str
    reasoning_content: str | None = None


@dataclass(frozen=True)
class Problem:
    """One question with everything its verifier needs.

    `data` is the JSON object of `dunwu score` (for countdown `{"numbers": [...], "target": n}`);
    `prompt` is the text the model continues, template included.

    Example:
        >>> Problem("countdown", "c-1", {"numbers": [3, 8], "target": 24}, "…").data["target"]
        24
    """

    task: str
    id: str
    data: Mapping[str, Any]
    prompt: str
    meta: Mapping[str, Any] = field(default_factory=dict)
    messages: tuple[Message, ...] = ()
    """A conversation that ends with the user's turn; if given, it is what the model sees, and `prompt` shows it."""


@dataclass(frozen=True)
class ChatExample:
    """One row of chat data: a conversation to learn from."""

    messages: tuple[Message, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Preference:
    """One row of preference data: two replies to a conversation that ends with the user's turn."""

    messages: tuple[Message, ...]
    chosen: Message
    rejected: Message
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Ranking:
    """One row of ranked data: K replies to a conversation that ends with the user's turn.

    `ranks` (K,) never fall along `replies`: 0 is best, and equal ranks are ties.

    Example:
        >>> asked, best, worst = Message("user", "hi"), Message("assistant", "Hello!"), Message("assistant", "What?")
        >>> Ranking((asked,), (best, worst), (0, 1)).replies[0].content
        'Hello!'
    """

    messages: tuple[Message, ...]
    replies: tuple[Message, ...]
    ranks: tuple[int, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """What a verifier says of one completion; one line of `dunwu score`.

    `rewards` by name, `reward` their weighted sum. `status`: "ok"; "unparsable" (the
    completion's fault, reward by rule); "timeout" or "error" (our fault or the gold's:
    never counted as a zero, the rollout is excluded from the baseline).

    Example:
        >>> Verdict({"accuracy": 1.0, "format": 1.0}, 2.0).status
        'ok'
    """

    rewards: Mapping[str, float]
    reward: float
    status: Status = "ok"
    reason: str | None = None
    answer: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The exact object `dunwu score` prints."""
        return {
            "rewards": dict(self.rewards),
            "reward": self.reward,
            "status": self.status,
            "reason": self.reason,
            "answer": self.answer,
        }


@dataclass(frozen=True)
class Completion:
    """What the model wrote, as ids (trained on) and as text (scored).

    `token_ids` (T,) ends with the stop token if `finish_reason` is "stop";
    `sampler_logprobs` (T,) are nats under the distribution actually sampled from;
    `text` has the stop token removed; `weight_version` is the number of optimizer
    steps the sampling weights had seen. `routing` (P + T - 1, layers, K) are the experts
    that each of the P prompt tokens and of the completion's but the last was sent to, if the
    sampler has experts and tells.
    """

    text: str
    token_ids: tuple[int, ...]
    sampler_logprobs: tuple[float, ...]
    finish_reason: FinishReason
    seed: int
    weight_version: int = 0
    routing: NDArray[Any] | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Rollout:
    """One scored sample. `advantage` is None until its group's statistics are known."""

    completion: Completion
    verdict: Verdict
    advantage: float | None = None


@dataclass(frozen=True)
class Group:
    """A problem and its `group_size` sibling rollouts, sampled from one prompt."""

    problem: Problem
    prompt_ids: tuple[int, ...]
    rollouts: tuple[Rollout, ...]


@dataclass(frozen=True)
class SamplingParams:
    """How a sampler draws.

    Example:
        >>> SamplingParams(max_tokens=64).temperature
        1.0
    """

    max_tokens: int = 256
    """Longest completion in tokens; a row that reaches it has finish_reason "length"."""
    temperature: float = 1.0
    """Divides the logits; 0 is greedy."""
    top_p: float = 1.0
    """Nucleus mass kept; 1 keeps all."""
    top_k: int = 0
    """Number of most likely tokens kept; 0 keeps all."""


class Sampler(Protocol):
    """Prompts in, completions out: the local engine or a remote endpoint."""

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        params: SamplingParams,
    ) -> list[list[Completion]]:
        """Draw `len(seeds[i])` completions of `prompts[i]`; a completion depends on its own
        seed, prompt and the weights only, never on what else is in the batch."""
        ...


class Task(Protocol):
    """Problems and their exact verifier. No torch, no model."""

    name: str

    def problem(self, split: str, seed: int, index: int) -> Problem:
        """The same (split, seed, index) always gives the same problem; splits never overlap."""
        ...

    def score(self, problem: Problem, completion: str) -> Verdict:
        """Judge one completion; never raises for anything a completion can contain."""
        ...

    def gold(self, problem: Problem) -> str:
        """A completion that earns every reward."""
        ...

    def answer_key(self, problem: Problem, answer: str | None) -> Hashable:
        """Equal keys = the verifier cannot tell the answers apart (cons@k votes by key)."""
        ...


class BatchTask(Task, Protocol):
    """A task that judges many completions in one call: a learned reward, or a user's reward function."""

    def score_all(self, problems: Sequence[Problem], completions: Sequence[str]) -> list[Verdict]:
        """A verdict for each (problem, completion), in order; the same rules as `score`."""
        ...


class Exercise(Protocol):
    """What is asked and how an answer is judged, whatever frame the prompt is put in (`tasks.frames`)."""

    name: str
    reasoning: bool
    """True: the answer is what stands in the reply's only <answer> block. False: the reply itself is the answer."""

    def draw(self, split: str, seed: int, index: int) -> Problem:
        """A problem with `messages`, `meta["language"]` ("en", "zh") and `meta["family"]`; `prompt` is empty."""
        ...

    def judge(self, problem: Problem, answer: str | None) -> Verdict:
        """Judge an answer (None: there was none); never raises for anything an answer can contain."""
        ...

    def solution(self, problem: Problem) -> Message:
        """A reply that earns every reward: thinking in the problem's language, content, the answer in it."""
        ...


class ChatModel(Protocol):
    """Conversations in, replies out: a local model, an endpoint, or a stand-in for a human judge."""

    name: str

    def reply(
        self, conversations: Sequence[Sequence[Message]], seeds: Sequence[int], params: SamplingParams
    ) -> list[Message]:
        """One reply to each conversation.

        Raises:
            DunwuError: the model cannot be reached or refuses, after its retries.
        """
        ...


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from any parts: hash(task, split, seed, index), never `seed + index`.

    Example:
        >>> derive_seed("countdown", "train", 0, 1) != derive_seed("countdown", "train", 1, 0)
        True
    """
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1

"""What the tests of reinforcement learning share: a model of a few thousand weights, a task of one letter, made rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dunwu.data.tokenizer import Tokenizer, train_from_texts
from dunwu.model.config import ModelConfig
from dunwu.model.transformer import Transformer
from dunwu.rollout.engine import Engine
from dunwu.train.config import GrpoConfig
from dunwu.train.grpo import grpo
from dunwu.train.learner import Learner
from dunwu.train.optim import MasterAdamW
from dunwu.train.ppo import Pages, ppo
from dunwu.train.ppo_config import PpoConfig
from dunwu.train.rows import Row
from dunwu.train.steps import TrainStep
from dunwu.train.value import Critic, ValueModel
from dunwu.types import Completion, Group, Problem, Rollout, Verdict


def letters() -> Tokenizer:
    return train_from_texts(["3+4=7, 12-7=5 no", "Wait, 5*3=15"], 280)


class FirstLetter:
    """Reward 1 if the completion's first character is one of 64 (of 280 tokens): chance is near 1/4."""

    name = "first-letter"

    def problem(self, split: str, seed: int, index: int) -> Problem:
        return Problem(self.name, f"{split}-{seed}-{index}", {"index": index}, f"{index % 7}+{index % 3}=")

    def score(self, problem: Problem, completion: str) -> Verdict:
        right = float(32 <= ord(completion[0]) < 96) if completion else 0.0
        return Verdict({"accuracy": right}, right)

    def gold(self, problem: Problem) -> str:
        return "A"

    def answer_key(self, problem: Problem, answer: str | None) -> str | None:
        return answer


class Judged(FirstLetter):
    """The same problems, judged by a function of the completion's text."""

    def __init__(self, judge: Callable[[str], Verdict | float]) -> None:
        self.judge = judge

    def score(self, problem: Problem, completion: str) -> Verdict:
        verdict = self.judge(completion)
        return verdict if isinstance(verdict, Verdict) else Verdict({"accuracy": verdict}, verdict)


def coin(text: str) -> float:
    """A reward that every group differs in."""
    return float(sum(map(ord, text)) % 2)


def network(tokenizer: Tokenizer, spread: float = 0.3, seed: int = 0) -> Transformer:
    """A model whose next-token distribution is far from flat."""
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        num_layers=2,
        num_heads=2,
        intermediate_size=32,
        initializer_range=spread,
    )
    model = Transformer(config)
    model.init_weights(torch.Generator().manual_seed(seed))
    return model


def vector(model: torch.nn.Module) -> Tensor:
    """All weights, as they are now."""
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def critic_of(kind: str, tokenizer: Tokenizer, spread: float = 0.3, eps: float = 1e-8, head: float = 0.0) -> Critic:
    """A critic of its own (begun from the policy's weights) or on the policy's trunk; `head` makes its values differ from 0."""
    backbone = network(tokenizer, spread) if kind == "own" else None
    weight = head * torch.randn(1, 32, generator=torch.Generator().manual_seed(9))
    model = ValueModel(32, backbone, weight)
    return Critic(model, MasterAdamW(model, eps=eps, weight_decay=0.0))


def learner_of(
    tokenizer: Tokenizer, config: Any = None, spread: float = 0.3, eps: float = 1e-8, head: float = 0.0
) -> Learner:
    """A fresh learner, with the critic that `config` wants."""
    policy = network(tokenizer, spread)
    kind = config.critic if isinstance(config, PpoConfig) else "none"
    critic = None if kind == "none" else critic_of(kind, tokenizer, spread, eps, head)
    return Learner(policy, MasterAdamW(policy, eps=eps, weight_decay=0.0), critic=critic)


def engine_of(learner: Learner, tokenizer: Tokenizer) -> Engine:
    return Engine(learner.policy, tokenizer, lambda: learner.optimizer.version)


def steps_of(
    learner: Learner,
    tokenizer: Tokenizer,
    config: GrpoConfig | PpoConfig,
    task: Any = None,
    start: int = 0,
    end: int | None = None,
    pages: Pages | None = None,
) -> list[TrainStep]:
    """The steps after `start` up to `end`, with seed 0."""
    sampler, task = engine_of(learner, tokenizer), task or FirstLetter()
    if isinstance(config, PpoConfig):
        steps = ppo(learner, sampler, tokenizer, task, config, 0, start, None, pages)
    else:
        steps = grpo(learner, sampler, tokenizer, task, config, 0, start)
    taken: list[TrainStep] = []
    while (end or config.steps) > start + len(taken):
        taken.append(next(steps))
    return taken


@torch.no_grad()
def plain_logprobs(model: Transformer, ids: Sequence[int], prompt_length: int, temperature: float = 1.0) -> Tensor:
    """The definition: one row alone, softmax over the whole vocabulary, one position before each token."""
    logprobs = (model(torch.tensor(ids)[None])[0] / temperature).log_softmax(-1)
    return torch.stack([logprobs[t - 1, ids[t]] for t in range(prompt_length, len(ids))])


def made_rows(model: Transformer, count: int = 10, per_group: int = 3) -> list[Row]:
    """Rows of many lengths and both signs, with the model's own log-probabilities; groups share their prompt."""
    dice = torch.Generator().manual_seed(1)
    rows, prompt = [], [0]
    for number in range(count):
        if number % per_group == 0:
            prompt = torch.randint(0, 256, (2 + number % 4,), generator=dice).tolist()
        completion = torch.randint(0, 256, (1 + 3 * number % 11,), generator=dice).tolist()
        ids = tuple(prompt + completion)
        logprobs = tuple(plain_logprobs(model, ids, len(prompt)).tolist())
        advantage = (-1.0) ** number * (0.5 + number / 10)
        rows.append(Row(ids, len(prompt), logprobs, advantage, number // per_group, place=number % per_group))
    return rows


def made_groups(model: Transformer, count: int = 10, per_group: int = 3, status: str = "ok") -> list[Group]:
    """`made_rows` as groups whose rewards are the rows' advantages; the last rollout of all has `status`."""
    rows = made_rows(model, count, per_group)
    groups = []
    for number in range(rows[-1].group + 1):
        own = [row for row in rows if row.group == number]
        rollouts = tuple(
            Rollout(
                Completion("", row.ids[row.prompt_length :], row.sampler_logprobs, "stop", row.place),
                Verdict({}, row.advantage, status if row is rows[-1] else "ok"),  # type: ignore[arg-type]
            )
            for row in own
        )
        prompt = own[0].ids[: own[0].prompt_length]
        groups.append(Group(Problem("made", f"made-{number}", {}, "p"), prompt, rollouts))
    return groups

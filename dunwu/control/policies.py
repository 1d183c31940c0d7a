"""Small networks for many seeds at a time: policies over choices or numbers, and a critic.

The weights of all seeds lie in one tensor, a row per seed, and a batched product computes every seed with its own; seeds never
meet. So ten seeds cost little more than one, whose tensors are far too small to keep a core busy.

Shapes: S seeds, N states of each, O numbers of an observation, K of an action or choices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from dunwu.train.losses import token_logprobs
from dunwu.types import derive_seed


class Mlp:
    """tanh layers and a linear one, for S seeds: `flat_SW` holds the weights, a row per seed."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self.sizes = tuple(sizes)
        self.shapes = [shape for i, o in pairwise(sizes) for shape in ((i, o), (1, o))]
        self.count = sum(i * o for i, o in self.shapes)
        """Weights of one seed."""

    def first_weights(self, seed: object, last_gain: float) -> Tensor:
        """Orthogonal matrices of gain √2, the last one's `last_gain`; biases 0. A row of `flat_SW`.

        Args:
            seed: any name; equal names give equal weights.
        """
        generator = torch.Generator().manual_seed(derive_seed("control-weights", seed))
        parts = []
        for n, (rows, columns) in enumerate(self.shapes):
            weight = torch.zeros(rows, columns)
            if n % 2 == 0:
                gain = last_gain if n == len(self.shapes) - 2 else math.sqrt(2.0)
                torch.nn.init.orthogonal_(weight, gain, generator)
            parts.append(weight.flatten())
        return torch.cat(parts)

    def __call__(self, flat_SW: Tensor, inputs_SNO: Tensor) -> Tensor:
        """(S, N, last size)."""
        parts = torch.split(flat_SW, [i * o for i, o in self.shapes], dim=1)
        shaped = [part.view(-1, *shape) for part, shape in zip(parts, self.shapes)]
        out = inputs_SNO
        for n in range(0, len(shaped), 2):
            out = torch.baddbmm(shaped[n + 1], out, shaped[n])
            if n < len(shaped) - 2:
                out = torch.tanh(out)
        return out


class Policy:
    """A distribution over actions in every state: a choice of `choices`, or, where that is 0, `numbers` independent Gaussians.

    What the language models' loss sees of it is `logprobs`: a log-probability (density) per step taken.
    """

    def __init__(
        self, observed: int, hidden: Sequence[int], choices: int, numbers: int = 1, log_std: float = 0.0
    ) -> None:
        self.choices, self.numbers, self.log_std = choices, 0 if choices else numbers, log_std
        self.net = Mlp((observed, *hidden, choices or numbers))

    def first_weights(self, seeds: Sequence[int]) -> Tensor:
        """(S, W): the network's, and behind them log σ of every number."""
        rows = [self.net.first_weights(("policy", seed), 0.01) for seed in seeds]
        return torch.stack([torch.cat([row, torch.full((self.numbers,), self.log_std)]) for row in rows])

    def outputs(self, flat_SW: Tensor, observed_SNO: Tensor) -> Tensor:
        """Logits, or means: (S, N, K)."""
        return self.net(flat_SW[:, : self.net.count], observed_SNO)

    def sample(self, flat_SW: Tensor, outputs_SNK: Tensor, noise_SNK: Tensor) -> Tensor:
        """Actions: choices (S, N), or numbers (S, N, K).

        Args:
            noise_SNK: for choices (S, N, 1), uniform on [0, 1); for numbers standard normal.
        """
        if not self.choices:
            return outputs_SNK + self._log_std(flat_SW).exp() * noise_SNK
        # Over actions, the last axis: over time it would mix the steps of an episode.
        summed_SNK = torch.softmax(outputs_SNK, dim=-1).cumsum(dim=-1)
        return (noise_SNK >= summed_SNK[..., :-1]).sum(dim=-1)

    def best(self, outputs_SNK: Tensor) -> Tensor:
        """The likeliest action of every state."""
        return outputs_SNK.argmax(dim=-1) if self.choices else outputs_SNK

    def logprobs(self, flat_SW: Tensor, outputs_SNK: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probability of each action taken, with gradient, and the entropy of its distribution, without: (S, N), nats."""
        if self.choices:
            return token_logprobs(outputs_SNK, actions)
        log_std = self._log_std(flat_SW)
        apart = (actions - outputs_SNK) * torch.exp(-log_std)
        logprobs = (-0.5 * apart.square() - log_std - 0.5 * math.log(2 * math.pi)).sum(dim=-1)
        entropy = (log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(dim=-1).detach()
        return logprobs, entropy.expand_as(logprobs)

    def _log_std(self, flat_SW: Tensor) -> Tensor:
        return flat_SW[:, None, self.net.count :]


class Critic:
    """V(s), learned in units of the returns it has last seen, which differ by orders of magnitude over a training.

    When the unit changes, the last layer is changed so that the values stay what they were: "PopArt", van Hasselt et al. 2016,
    arXiv 1602.07714. `unit_S2` holds mean and standard deviation by seed.
    """

    def __init__(self, observed: int, hidden: Sequence[int]) -> None:
        self.net = Mlp((observed, *hidden, 1))

    def first_weights(self, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Weights (S, W) and units (S, 2), which begin at mean 0 and deviation 1."""
        rows = torch.stack([self.net.first_weights(("critic", seed), 1.0) for seed in seeds])
        return rows, torch.tensor([[0.0, 1.0]]).repeat(len(seeds), 1)

    def scaled(self, flat_SW: Tensor, observed_SNO: Tensor) -> Tensor:
        """Values in their units, (S, N), with gradient."""
        return self.net(flat_SW, observed_SNO).squeeze(-1)

    def values(self, flat_SW: Tensor, unit_S2: Tensor, observed_SNO: Tensor) -> Tensor:
        """Values as the returns are counted, (S, N)."""
        return self.scaled(flat_SW, observed_SNO) * unit_S2[:, 1:] + unit_S2[:, :1]

    def change_unit(
        self, flat_SW: Tensor, unit_S2: Tensor, returns_SN: Tensor, mask_SN: Tensor, share: float = 1.0
    ) -> None:
        """Move the unit by `share` towards the mean and deviation of these returns, in place; the values stay."""
        count_S, before_S = mask_SN.sum(dim=1).clamp(min=1), unit_S2[:, 0]
        returns_SN = returns_SN.double()
        mean_S = torch.lerp(before_S.double(), (returns_SN * mask_SN).sum(dim=1) / count_S, share)
        # Mean squares about the new mean, of what the old unit stood for and of what came.
        old_S = unit_S2[:, 1].double().square() + (before_S - mean_S).square()
        new_S = ((returns_SN - mean_S[:, None]) * mask_SN).square().sum(dim=1) / count_S
        deviation_S = torch.lerp(old_S, new_S, share).sqrt().clamp(min=1e-6)
        last = self.net.sizes[-2] + 1  # the last layer's weights and its bias
        flat_SW[:, -last:] *= (unit_S2[:, 1] / deviation_S)[:, None]
        flat_SW[:, -1] += (before_S - mean_S) / deviation_S
        unit_S2[:, 0], unit_S2[:, 1] = mean_S, deviation_S


class Adam:
    """Adam (Kingma and Ba 2015) on rows of weights, each with its own gradient norm and its own count of steps."""

    def __init__(self, like_SW: Tensor, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-5) -> None:
        self.first_SW, self.second_SW = torch.zeros_like(like_SW), torch.zeros_like(like_SW)
        self.steps_S = torch.zeros(len(like_SW), 1)
        self.betas, self.eps = betas, eps

    def step(self, flat_SW: Tensor, rows: Tensor, grad_RW: Tensor, lr_R: Tensor, max_norm: float) -> Tensor:
        """Move the weights of `rows` in place; the norms of their gradients before they were cut to `max_norm`, (R,)."""
        norm_R: Tensor = torch.linalg.vector_norm(grad_RW, dim=1)
        grad_RW = grad_RW * (max_norm / norm_R.clamp(min=max_norm))[:, None]
        a, b = self.betas
        first = self.first_SW[rows].lerp(grad_RW, 1 - a)
        second = self.second_SW[rows].lerp(grad_RW.square(), 1 - b)
        steps = self.steps_S[rows] + 1
        self.first_SW[rows], self.second_SW[rows], self.steps_S[rows] = first, second, steps
        moved = (first / (1 - a**steps)) / ((second / (1 - b**steps)).sqrt() + self.eps)
        flat_SW[rows] -= lr_R[:, None] * moved
        return norm_R

"""Many seeds at a time are each seed alone; log-probabilities are the distribution's."""

from __future__ import annotations

import math

import pytest
import torch

from dunwu.control.policies import Adam, Critic, Mlp, Policy


def weights(policy: Policy, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    first = policy.first_weights(list(range(count)))
    return first + 0.3 * torch.randn(first.shape, generator=generator)


def test_seeds_do_not_meet() -> None:
    net = Mlp((3, 5, 2))
    flat = torch.stack([net.first_weights(n, 1.0) for n in range(4)])
    inputs = torch.randn(4, 7, 3)
    together = net(flat, inputs)
    for n in range(4):
        torch.testing.assert_close(together[n], net(flat[n : n + 1], inputs[n : n + 1])[0])
        first, bias, last, end = torch.split(flat[n], [15, 5, 10, 2])
        by_hand = torch.tanh(inputs[n] @ first.view(3, 5) + bias) @ last.view(5, 2) + end
        torch.testing.assert_close(together[n], by_hand)
    assert not torch.equal(flat[0], flat[1]) and torch.equal(flat[2], net.first_weights(2, 1.0))


def test_logprobs_of_choices() -> None:
    policy = Policy(4, (8,), choices=3)
    flat, seen = weights(policy, 2), torch.randn(2, 9, 4)
    outputs = policy.outputs(flat, seen)
    actions = torch.randint(0, 3, (2, 9))
    expected = torch.distributions.Categorical(logits=outputs)
    logprobs, entropy = policy.logprobs(flat, outputs, actions)
    torch.testing.assert_close(logprobs, expected.log_prob(actions))
    torch.testing.assert_close(entropy, expected.entropy())
    assert torch.equal(policy.best(outputs), outputs.argmax(-1))


def test_logprobs_of_numbers() -> None:
    policy = Policy(4, (), choices=0, numbers=2, log_std=-0.5)
    flat, seen, actions = weights(policy, 2), torch.randn(2, 9, 4), torch.randn(2, 9, 2)
    outputs = policy.outputs(flat, seen)
    expected = torch.distributions.Normal(outputs, flat[:, None, policy.net.count :].exp())
    logprobs, entropy = policy.logprobs(flat, outputs, actions)
    torch.testing.assert_close(logprobs, expected.log_prob(actions).sum(-1))
    torch.testing.assert_close(entropy, expected.entropy().sum(-1).expand_as(entropy))


def test_the_softmax_is_over_actions_not_over_time() -> None:
    """A known bug of GRPO on CartPole: normalised over the steps, a step's probability depends on the others."""
    policy = Policy(4, (8,), choices=2)
    flat, seen = weights(policy, 1), torch.randn(1, 6, 4)
    actions = torch.tensor([[0, 1, 1, 0, 1, 0]])
    whole, _ = policy.logprobs(flat, policy.outputs(flat, seen), actions)
    alone, _ = policy.logprobs(flat, policy.outputs(flat, seen[:, 2:3]), actions[:, 2:3])
    torch.testing.assert_close(whole[:, 2:3], alone)
    other, _ = policy.logprobs(flat, policy.outputs(flat, seen), 1 - actions)
    torch.testing.assert_close(whole.exp() + other.exp(), torch.ones(1, 6))
    noise = torch.full((1, 6, 1), 0.5)
    drawn = policy.sample(flat, policy.outputs(flat, seen), noise)
    assert torch.equal(drawn[:, 2:3], policy.sample(flat, policy.outputs(flat, seen[:, 2:3]), noise[:, 2:3]))


def test_samples_have_the_distribution() -> None:
    policy = Policy(2, (), choices=3)
    flat, seen = weights(policy, 1), torch.randn(1, 1, 2).expand(1, 20_000, 2)
    outputs = policy.outputs(flat, seen)
    generator = torch.Generator().manual_seed(1)
    drawn = policy.sample(flat, outputs, torch.rand(1, 20_000, 1, generator=generator))
    shares = torch.bincount(drawn[0], minlength=3) / 20_000
    torch.testing.assert_close(shares, torch.softmax(outputs[0, 0], -1), atol=0.015, rtol=0)
    numbers = Policy(2, (), choices=0, log_std=math.log(0.5))
    flat = weights(numbers, 1)
    flat[:, -1] = math.log(0.5)
    drawn = numbers.sample(flat, numbers.outputs(flat, seen), torch.randn(1, 20_000, 1, generator=generator))
    assert float(drawn.std()) == pytest.approx(0.5, rel=0.03)


def test_a_change_of_unit_keeps_the_values() -> None:
    critic = Critic(3, (8,))
    flat, unit = critic.first_weights([0, 1])
    seen, mask = torch.randn(2, 50, 3), torch.ones(2, 50)
    mask[0, 40:] = 0.0
    returns = torch.randn(2, 50) * 300 - 1000
    before = critic.values(flat, unit, seen)
    critic.change_unit(flat, unit, returns, mask)
    torch.testing.assert_close(critic.values(flat, unit, seen), before, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(unit[0, 0], returns[0, :40].mean())
    torch.testing.assert_close(
        unit[:, 1], torch.stack([returns[0, :40].std(correction=0), returns[1].std(correction=0)])
    )
    whole = unit.clone()
    critic.change_unit(flat, unit, returns * 0, mask, share=0.2)
    torch.testing.assert_close(critic.values(flat, unit, seen), before, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(unit[:, 0], 0.8 * whole[:, 0])


def test_adam_is_torchs_for_every_row() -> None:
    flat = torch.randn(3, 6)
    rows = [torch.nn.Parameter(row.clone()) for row in flat]
    theirs = [torch.optim.Adam([row], lr=0.01, eps=1e-5) for row in rows]
    mine = Adam(flat)
    for step in range(4):
        chosen = [0, 2] if step == 1 else [0, 1, 2]  # row 1 rests once
        grads = torch.randn(3, 6) * 10 ** (step - 1)
        norms = mine.step(flat, torch.tensor(chosen), grads[chosen], torch.full((len(chosen),), 0.01), 0.5)
        for n in chosen:
            rows[n].grad = grads[n].clone()
            torch.nn.utils.clip_grad_norm_([rows[n]], 0.5)
            theirs[n].step()
        torch.testing.assert_close(norms, grads[chosen].norm(dim=1))
    torch.testing.assert_close(flat, torch.stack([row.detach() for row in rows]), rtol=1e-4, atol=1e-6)

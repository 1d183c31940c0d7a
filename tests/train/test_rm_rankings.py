"""Rankings and margins: the naive loop over pairs, hand-worked numbers, TRL's formula, and a run that is cut short."""

from __future__ import annotations

import math
from itertools import permutations
from random import Random
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from dunwu.model.config import ModelConfig
from dunwu.model.transformer import Transformer
from dunwu.train.optim import MasterAdamW
from dunwu.train.reward_model import RewardModel, family_scores, score_ids
from dunwu.train.rm import row_losses, train_rm
from dunwu.train.rm_config import RmConfig
from dunwu.train.rm_losses import margin_loss, plackett_luce_loss, ranking_loss
from dunwu.train.rm_rows import RankedRow, Row, balance_lengths, margin_of, ordered
from dunwu.types import DunwuError, Message, Preference, UsageError

SMALL = ModelConfig(vocab_size=64, hidden_size=32, num_layers=2, num_heads=2, intermediate_size=48)
RANKED = RmConfig(kind="ranking")


def reward_model(seed: int = 0) -> RewardModel:
    model = Transformer(SMALL)
    model.init_weights(torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))) * 0.1)
    return RewardModel.from_model(model, seed)


def rankings(count: int, seed: int = 0, ties: bool = True) -> list[RankedRow]:
    """Three to five replies; each holds the token 7 + its rank, the rest is noise of any length."""
    dice = Random(seed)
    rows = []
    for _ in range(count):
        ranks = [0] + [1] * (2 if ties and dice.random() < 0.5 else 1)
        ranks += range(2, 2 + dice.randrange(1, 3))
        sides = []
        for rank in ranks:
            text = [dice.randrange(20, 60) for _ in range(dice.randrange(2, 9))]
            text.insert(dice.randrange(len(text)), 7 + rank)
            sides.append(tuple(text))
        rows.append(RankedRow(sides, tuple(ranks)))
    return rows


def gradients(model: RewardModel) -> torch.Tensor:
    return torch.cat(
        [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in model.parameters()]
    )


# ---- one batch element a prompt


@pytest.mark.parametrize("kind", ["pairs", "plackett-luce"])
def test_all_pairs_of_a_prompt_equal_the_naive_loop(kind: str) -> None:
    """InstructGPT's batching: values and gradients are those of a pass for every reply of every pair."""
    config = RmConfig(kind="ranking", ranking=kind, rows=7, warmup=0)  # type: ignore[arg-type]
    rows = rankings(7)
    naive = reward_model()
    total = torch.zeros(())
    for row in rows:

        def score(text: tuple[int, ...]) -> torch.Tensor:
            return naive(torch.tensor([text]), torch.tensor([len(text) - 1]))[0]

        terms = []
        if kind == "pairs":
            for one, other in ordered(row.ranks):
                terms.append(-F.logsigmoid(score(row.sides[one]) - score(row.sides[other])))
        else:
            for one, rank in enumerate(row.ranks):
                below = [other for other, theirs in enumerate(row.ranks) if theirs > rank]
                if below:
                    rivals = torch.stack([score(row.sides[n]) for n in (one, *below)])
                    terms.append(-rivals.log_softmax(0)[0])
        total = total + torch.stack(terms).mean() / len(rows)
    torch.autograd.backward(total)
    wanted = gradients(naive)
    assert float(wanted.norm()) > 0.01

    for tokens, order in ((10_000, 1), (1, 1), (60, -1)):
        model = reward_model()
        optimizer = MasterAdamW(model)
        (step,) = train_rm(
            model, optimizer, rows[::order], RmConfig(**{**vars(config), "micro_tokens": tokens}), seed=0
        )
        assert step.metrics["rm/loss"] == pytest.approx(float(total.detach()), abs=1e-6)
        clipped = wanted * min(1.0, 1.0 / float(wanted.norm()))
        # Adam's first moment after one update is (1 - β1) times the gradient.
        torch.testing.assert_close(optimizer.first, 0.1 * clipped, atol=1e-6, rtol=1e-4)


def test_every_token_goes_through_the_model_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the kernels every reply once, with them the prompt once as well, and the scores are the same."""
    prompt = tuple(range(20, 50))
    rows = [RankedRow([prompt + side for side in row.sides], row.ranks) for row in rankings(5)]
    sides = [side for row in rows for side in row.sides]
    model = reward_model()
    expected = torch.tensor(score_ids(model, sides))
    padded: list[int] = []
    packed: list[int] = []
    real, kernels = RewardModel.forward, Transformer.packed
    monkeypatch.setattr(
        RewardModel, "forward", lambda self, ids, last: (padded.append(len(ids)), real(self, ids, last))[1]
    )
    monkeypatch.setattr(
        Transformer,
        "packed",
        lambda self, ids, *rest, **more: (packed.append(len(ids)), kernels(self, ids, *rest, **more))[1],
    )
    if model.backbone.native:
        torch.testing.assert_close(family_scores(model, [row.sides for row in rows]), expected, atol=1e-5, rtol=0)
        assert packed == [sum(map(len, sides)) - 30 * (len(sides) - len(rows))] and not padded
    monkeypatch.setattr(Transformer, "native_allowed", False)
    torch.testing.assert_close(family_scores(model, [row.sides for row in rows]), expected, atol=1e-5, rtol=0)
    assert padded == [len(sides)]


def test_texts_that_begin_another_or_share_nothing() -> None:
    model = reward_model()
    families = [[(5, 6, 7), (5, 6), (5, 6, 7, 8)], [(9,), (9, 4)], [(30, 31, 32)], [(1, 2), (3, 4, 5)]]
    expected = torch.tensor(score_ids(model, [text for family in families for text in family]))
    torch.testing.assert_close(family_scores(model, families), expected, atol=1e-5, rtol=0)


def test_metrics_are_means_over_rankings_of_means_over_pairs() -> None:
    rows, model = rankings(4), reward_model()
    margins = []
    for row in rows:
        scores = score_ids(model, row.sides)
        margins.append([scores[b] - scores[w] for b, w in ordered(row.ranks)])
    (step,) = train_rm(model, MasterAdamW(model), rows, RmConfig(kind="ranking", rows=4, warmup=0), seed=0)
    assert step.metrics["rm/margin"] == pytest.approx(sum(sum(m) / len(m) for m in margins) / 4, abs=1e-5)
    assert step.metrics["rm/accuracy"] == pytest.approx(sum(sum(x > 0 for x in m) / len(m) for m in margins) / 4)


@pytest.mark.parametrize("kind", ["pairs", "plackett-luce"])
def test_it_learns_the_order_and_resumes_bit_for_bit(kind: str) -> None:
    config = RmConfig(kind="ranking", ranking=kind, rows=16, lr=3e-3, warmup=5)  # type: ignore[arg-type]
    rows, whole = rankings(480), reward_model()
    optimizer = MasterAdamW(whole)
    saved, metrics = None, []
    for step in train_rm(whole, optimizer, rows, config, seed=0):
        metrics.append(step.metrics)
        if step.n == 11:
            saved = {name: tensor.clone() for name, tensor in optimizer.state().items()}
    assert saved is not None
    again = reward_model(seed=7)
    restored = MasterAdamW(again)
    restored.load(saved, 11)
    assert [step.metrics for step in train_rm(again, restored, rows, config, seed=0, start=11)] == metrics[11:]
    ends = [model.state_dict() for model in (whole, again)]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    unseen = rankings(60, seed=9)
    right = []
    for row in unseen:
        scores = score_ids(whole, row.sides)
        right += [scores[b] > scores[w] for b, w in row.pairs]
    assert sum(right) / len(right) > 0.9


# ---- the losses


def test_plackett_luce_by_hand_and_as_a_distribution() -> None:
    weights = [4.0, 2.0, 1.0]
    scores = torch.tensor([[math.log(w) for w in weights]])
    # 4/7 · 2/3: the best is drawn of all three, the next of the two that are left
    loss = plackett_luce_loss(scores, torch.tensor([[0, 1, 2]]))
    assert float(loss[0]) == pytest.approx(-(math.log(4 / 7) + math.log(2 / 3)) / 2, abs=1e-6)
    # 1/7 · 2/6 if the worst is ranked first, then the second
    other = plackett_luce_loss(scores, torch.tensor([[2, 1, 0]]))
    assert float(other[0]) == pytest.approx(-(math.log(1 / 7) + math.log(2 / 6)) / 2, abs=1e-6)
    chances = [
        math.exp(-2 * float(plackett_luce_loss(scores, torch.tensor([list(order)]))[0]))
        for order in permutations(range(3))
    ]
    assert sum(chances) == pytest.approx(1.0, abs=1e-5)  # over all orders


def test_ties_do_not_compete() -> None:
    scores = torch.tensor([[1.0, 2.0, 0.0]], requires_grad=True)
    ranks = torch.tensor([[0, 0, 1]])
    expected = (math.log1p(math.exp(-1)) + math.log1p(math.exp(-2))) / 2
    for loss in (ranking_loss, plackett_luce_loss):
        assert float(loss(scores, ranks)[0].detach()) == pytest.approx(expected, abs=1e-6)
    first = plackett_luce_loss(torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[0, 1, 1]]))
    assert float(first[0]) == pytest.approx(math.log(1 + math.e + math.e**2), abs=1e-5)
    for loss in (ranking_loss, plackett_luce_loss):  # nothing is ranked: no loss, no gradient, no NaN
        found = loss(scores, torch.tensor([[0, 0, -1]]))
        torch.autograd.backward(found.sum())
        assert float(found[0].detach()) == 0.0 and scores.grad is not None and not scores.grad.abs().sum()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-8, 8), min_size=2, max_size=5), st.randoms(use_true_random=False))
def test_invariances(values: list[float], dice: Random) -> None:
    """Padding, the order of the replies and a shift of all scores change nothing; two replies are Bradley-Terry."""
    scores = torch.tensor([values], dtype=torch.float64)
    ranks = torch.tensor([[dice.randrange(3) for _ in values]])
    places = list(range(len(values)))
    dice.shuffle(places)
    for loss in (ranking_loss, plackett_luce_loss):
        found = loss(scores, ranks)
        padded = loss(F.pad(scores, (0, 2), value=99.0), F.pad(ranks, (0, 2), value=-1))
        for other in (padded, loss(scores[:, places], ranks[:, places]), loss(scores + 3.0, ranks)):
            torch.testing.assert_close(other, found, atol=1e-9, rtol=1e-9)
        two = loss(scores[:, :2], torch.tensor([[0, 1]]))
        torch.testing.assert_close(two, margin_loss(scores[:, 0] - scores[:, 1]), atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("loss", [ranking_loss, plackett_luce_loss])
def test_gradients_by_finite_differences(loss: object) -> None:
    scores = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    ranks = torch.tensor([[0, 1, 2, 3], [1, 0, 1, 2], [0, 1, -1, -1]])
    assert torch.autograd.gradcheck(lambda s: loss(s, ranks), (scores,))  # type: ignore[operator]


# ---- margins


def test_a_margin_by_hand() -> None:
    found = margin_loss(torch.tensor([2.0, 0.5]), torch.tensor([1.0, 3.0]))
    assert found.tolist() == pytest.approx([math.log1p(math.exp(-1.0)), math.log1p(math.exp(2.5))], abs=1e-6)
    rows = [Row((1,), (2,), 1.0), Row((3,), (4,), 3.0)]
    scores = torch.tensor([2.5, 0.5, 1.0, 0.5])
    losses, margins = row_losses(rows, scores, RmConfig(margin=1.0))
    assert losses.tolist() == pytest.approx(found.tolist(), abs=1e-6)
    assert margins == [[2.0], [0.5]]  # what is reported is the scores' own
    ignored, _ = row_losses(rows, scores, RmConfig())
    assert ignored.tolist() == pytest.approx([math.log1p(math.exp(-2.0)), math.log1p(math.exp(-0.5))], abs=1e-6)


@pytest.mark.parametrize("margin", [True, False])
def test_losses_equal_trl(margin: bool) -> None:
    """RewardTrainer's loss on a model that says the scores."""
    trl = pytest.importorskip("trl", reason="TRL is not installed")
    scores = torch.tensor([1.5, -0.3, 0.2, 0.9, -0.7, 0.25])  # chosen first, as its collator lays them out
    wanted = torch.tensor([1.0, 0.0, 2.0])

    def model(**_: object) -> SimpleNamespace:
        return SimpleNamespace(logits=scores[:, None])

    from collections import defaultdict

    fake = SimpleNamespace(
        args=SimpleNamespace(center_rewards_coefficient=None),
        accelerator=SimpleNamespace(gather_for_metrics=lambda x: x, gather=lambda x: x),
        model=SimpleNamespace(training=False),
        _total_train_tokens=0,
        _metrics={"train": defaultdict(list), "eval": defaultdict(list)},
    )
    inputs = {"input_ids": torch.ones(6, 2, dtype=torch.long), "attention_mask": torch.ones(6, 2, dtype=torch.long)}
    if margin:
        inputs["margin"] = wanted
    theirs = trl.RewardTrainer.compute_loss(fake, model, inputs)
    rows = [Row((1,), (2,), float(m)) for m in wanted]
    ours, _ = row_losses(rows, scores.view(2, 3).T.reshape(-1), RmConfig(margin=1.0 if margin else 0.0))
    torch.testing.assert_close(ours.mean(), theirs)


def test_margins_that_cannot_be_used() -> None:
    yes, no = Message("assistant", "yes"), Message("assistant", "no")
    assert margin_of(Preference((), yes, no, {"margin": 2})) == 2.0
    for meta in ({}, {"margin": None}, {"margin": "3"}, {"margin": True}, {"margin": -1}, {"margin": math.nan},
                 {"margin": math.inf}):  # fmt: skip
        with pytest.raises(DunwuError, match="margin"):
            margin_of(Preference((), yes, no, meta))


# ---- rows and settings


def test_rankings_are_balanced_by_their_pairs() -> None:
    long, short = (1,) * 9, (2,) * 5
    tilted = [RankedRow([long, short, short], (0, 1, 2))] * 6 + [RankedRow([short, short, long], (0, 1, 2))] * 4
    kept = balance_lengths(tilted, 0.02)
    assert [row.lengths for row in tilted[::6]] == [((9 + 9 + 5) / 3, 5.0), (5.0, (5 + 9 + 9) / 3)]
    assert len(kept) == 8 and sum(row.sides[0] == long for row in kept) == 4


@pytest.mark.parametrize(
    "change", [{"ranking": "plackett-luce"}, {"margin": -1.0}, {"kind": "ranking", "margin": 1.0}, {"members": 0},
               {"bootstrap": True}, {"kind": "pointwise", "centre": "best"}],
)  # fmt: skip
def test_settings_that_cannot_work(change: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        RmConfig(**change).validate()  # type: ignore[arg-type]
    RANKED.validate()

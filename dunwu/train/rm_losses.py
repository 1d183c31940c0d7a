"""What a reward model learns by, as pure functions of scores.

* Bradley-Terry: a pair's loss is -log σ(r_chosen - r_rejected - m); m is 0, or how much better the chosen reply was said to
  be (Llama 2, arXiv 2307.09288, eq. 2). A labelled reply's is the cross-entropy of its label.
* Rankings, as pairs: the mean of that loss over all C(K, 2) pairs of a prompt (InstructGPT, arXiv 2203.02155, eq. 1). All of
  them are in one batch element and every reply is scored once: K forward passes instead of K(K - 1), and no reply counts
  in several updates, which would be as many epochs.
* Rankings, as choices (Plackett 1975, Luce 1959): the ranking is drawn best first, each reply against those ranked below
  it; the mean over these K - 1 choices of -log softmax. With K = 2 both are Bradley-Terry.

Legend: B rows, K replies of a row, padded with ranks of -1.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def margin(good_B: Tensor | None, bad_B: Tensor | None) -> Tensor:
    """How much the scores of a row say what they should: r_good - r_bad, r_good alone, or -r_bad alone."""
    if good_B is not None:
        return good_B if bad_B is None else good_B - bad_B
    if bad_B is None:
        raise ValueError("a row has neither side")
    return -bad_B


def margin_loss(margin_B: Tensor, wanted_B: Tensor | None = None) -> Tensor:
    """Loss of each row (B,), -log σ(margin - wanted): Bradley-Terry of two scores, or cross-entropy of the one label.

    Args:
        wanted_B: m of each pair, at least 0; None for none.

    Example:
        >>> good, bad = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0])  # -log σ(1) = 0.3133, -log σ(0) = log 2
        >>> pairs, single = margin_loss(margin(good, bad)), margin_loss(margin(None, good))
        >>> [round(loss, 4) for loss in pairs.tolist()], round(float(single[0]), 4)
        ([0.3133, 0.6931], 1.3133)
        >>> [round(loss, 4) for loss in margin_loss(margin(good, bad), torch.tensor([1.0, 1.0])).tolist()]
        [0.6931, 1.3133]
    """
    return F.softplus(-margin_B if wanted_B is None else wanted_B - margin_B)


def better(ranks_BK: Tensor) -> Tensor:
    """(B, K, K), true where the first of two replies is ranked above the second; padding is above and below none."""
    there_BK = ranks_BK >= 0
    return (ranks_BK[:, :, None] < ranks_BK[:, None, :]) & there_BK[:, :, None] & there_BK[:, None, :]


def ranking_loss(scores_BK: Tensor, ranks_BK: Tensor) -> Tensor:
    """Loss of each ranking (B,): the mean of -log σ(r_better - r_worse) over its pairs; ties are no pair.

    Args:
        scores_BK: rewards; those of padding do not matter if they are finite.
        ranks_BK: 0 is best, -1 is padding.

    Example:
        >>> scores = torch.tensor([[2.0, 1.0, 0.0]])  # (0.3133 + 0.1269 + 0.3133) / 3
        >>> round(float(ranking_loss(scores, torch.tensor([[0, 1, 2]]))[0]), 4)
        0.2512
    """
    pairs_BKK = better(ranks_BK)
    losses_BKK = margin_loss(scores_BK[:, :, None] - scores_BK[:, None, :])
    return (losses_BKK * pairs_BKK).sum((1, 2)) / pairs_BKK.sum((1, 2)).clamp(min=1)


def plackett_luce_loss(scores_BK: Tensor, ranks_BK: Tensor) -> Tensor:
    """Loss of each ranking (B,): the mean over its choices of -log(e^r_i / (e^r_i + Σ e^r_j of all j ranked below i)).

    A choice is a reply with others ranked below it. Tied replies do not compete: each is chosen among what is below both.

    Args:
        scores_BK: rewards; those of padding do not matter if they are finite.
        ranks_BK: 0 is best, -1 is padding.

    Example:
        >>> scores = torch.tensor([[2.0, 1.0, 0.0]])  # (log(1 + e^-1 + e^-2) + log(1 + e^-1)) / 2
        >>> round(float(plackett_luce_loss(scores, torch.tensor([[0, 1, 2]]))[0]), 4)
        0.3604
    """
    below_BKK = better(ranks_BK)
    rivals_BKK = below_BKK | torch.eye(scores_BK.shape[1], dtype=torch.bool, device=scores_BK.device)
    every_BKK = scores_BK[:, None, :].expand(rivals_BKK.shape).masked_fill(~rivals_BKK, float("-inf"))
    choices_BK = below_BKK.any(2)
    losses_BK = (every_BKK.logsumexp(2) - scores_BK) * choices_BK
    return losses_BK.sum(1) / choices_BK.sum(1).clamp(min=1)

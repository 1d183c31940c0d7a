"""Several reward models as one, so that a policy finds it harder to please a mistake (over-optimisation).

A proxy is fitted to few labels; where a policy leaves them, the proxy's errors are what optimisation finds, and the true
reward falls while the proxy's rises (Gao et al., arXiv 2210.10760). Models that differ in nothing but their seeds err
differently there, so their disagreement tells. Three ways to combine (Coste et al., arXiv 2310.02743, section 3):

* "mean": (1/k) Σ r_i, which takes out a part of the variance and none of a common error;
* "worst": min r_i, a reply is as good as the model says that likes it least;
* "uncertainty": mean − λ · variance, what the models do not agree on costs.

Not covered: ensembles of different bases, which also err differently where all seeds of one base agree (Eisenstein et al.,
arXiv 2312.09244); weights averaged into one model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, pstdev, pvariance
from typing import Literal, Protocol, get_args

from dunwu.train.reward_model import Meaning, Scorer
from dunwu.types import Message, UsageError

Combine = Literal["mean", "worst", "uncertainty"]


class Scoring(Protocol):
    """What judges replies: a `Scorer`, or an `Ensemble` of them."""

    meaning: Meaning

    def score(self, conversations: Sequence[Sequence[Message]]) -> list[float]:
        """Raw scores of conversations that end with the reply to judge."""
        ...

    def normalised(self, scores: Sequence[float]) -> list[float]:
        """Scores in standard deviations from what `meaning` calls 0."""
        ...


def combined(scores: Sequence[float], combine: Combine = "mean", penalty: float = 1.0) -> float:
    """One score of the members' scores of a reply, all on one scale.

    Args:
        penalty: λ of "uncertainty", for the population variance.

    Example:
        >>> [combined([1.0, 3.0], how, penalty=0.5) for how in ("mean", "worst", "uncertainty")]
        [2.0, 1.0, 1.5]
    """
    if combine == "worst":
        return min(scores)
    return fmean(scores) - (penalty * pvariance(scores) if combine == "uncertainty" else 0.0)


def pool(
    every: Sequence[Sequence[float]], meanings: Sequence[Meaning], combine: Combine = "mean", penalty: float = 1.0
) -> tuple[list[float], list[float]]:
    """Raw scores, member by member, as (one score, disagreement) of each reply.

    Pairwise members have scales of their own: each is first put into standard deviations from its own mean, and the
    combination is multiplied by the members' mean standard deviation, so that a difference is still about the log-odds of
    being preferred. Pointwise scores are log-odds already, and are combined as they are. The disagreement is the standard
    deviation over the members of what is combined.

    Example:
        >>> meanings = [Meaning(mean=1.0, std=1.0), Meaning(mean=0.0, std=3.0)]
        >>> pool([[2.0, 1.0], [3.0, -6.0]], meanings)  # normalised: 1 and 1, 0 and -2; the scale is 2
        ([2.0, -2.0], [0.0, 1.0])
    """
    if meanings[0].kind == "pairwise":
        every = [[meaning.normal(score) for score in scores] for scores, meaning in zip(every, meanings, strict=True)]
        scale = fmean(meaning.std for meaning in meanings)
    else:
        scale = 1.0
    each = list(zip(*every, strict=True))
    return [scale * combined(scores, combine, penalty) for scores in each], [pstdev(scores) for scores in each]


class Ensemble:
    """Reward models that score as one, in place of a `Scorer`; how their scales are brought together says `pool`.

    Args:
        scorers: members of one kind and view.
        combine: how they become one score.
        penalty: λ of "uncertainty", in units of normalised scores.

    Raises:
        UsageError: no members, members that mean different things, an unknown way, a negative penalty.
    """

    def __init__(self, scorers: Sequence[Scoring], combine: Combine = "mean", penalty: float = 1.0) -> None:
        self.scorers, self.combine, self.penalty = tuple(scorers), combine, penalty
        kinds = {(scorer.meaning.kind, scorer.meaning.view) for scorer in scorers}
        if len(kinds) != 1:
            raise UsageError(
                f"an ensemble of {len(scorers)} reward models of {len(kinds)} kinds", "give models trained alike"
            )
        if combine not in get_args(Combine) or not penalty >= 0:
            ways = ", ".join(get_args(Combine))
            raise UsageError(f"combine {combine!r} with penalty {penalty}", f"one of {ways}, and at least 0")
        first = scorers[0].meaning
        mean, std = (fmean(getattr(scorer.meaning, name) for scorer in scorers) for name in ("mean", "std"))
        self.meaning = replace(first, mean=0.0 if first.kind == "pairwise" else mean, std=std)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        device: str = "cpu",
        combine: Combine = "mean",
        penalty: float = 1.0,
        micro_tokens: int = 16_384,
    ) -> Ensemble:
        """All members that `dunwu run rm --members N` left; a single reward model is an ensemble of one.

        Args:
            folder: the first member (`model`, as RUN:STAGE resolves to), or the artifact that holds it.

        Raises:
            DunwuError: as `Scorer.load`.
        """
        members = member_folders(Path(folder))
        return cls([Scorer.load(member, device, micro_tokens) for member in members], combine, penalty)

    def score(self, conversations: Sequence[Sequence[Message]]) -> list[float]:
        """Combined scores, with the unit of a member's raw score."""
        return self.judged(conversations)[0]

    def judged(self, conversations: Sequence[Sequence[Message]]) -> tuple[list[float], list[float]]:
        """(scores, disagreement) of the conversations, of one pass through every member; see `pool`."""
        every = [scorer.score(conversations) for scorer in self.scorers]
        return pool(every, [scorer.meaning for scorer in self.scorers], self.combine, self.penalty)

    def disagreement(self, conversations: Sequence[Sequence[Message]]) -> list[float]:
        """Standard deviation over the members; of pairwise ones in units of normalised scores."""
        return self.judged(conversations)[1]

    def normalised(self, scores: Sequence[float]) -> list[float]:
        """Of pairwise ones the combination in members' standard deviations; of pointwise ones as `Scorer.normalised`."""
        return [self.meaning.normal(score) for score in scores]


def member_name(number: int) -> str:
    """The sub-folder of a member.

    Example:
        >>> member_name(0), member_name(2)
        ('model', 'model-2')
    """
    return f"model-{number}" if number else "model"


def member_folders(folder: Path) -> list[Path]:
    """The folders of all members; of a folder that is neither an artifact nor its `model`, the folder alone."""
    first = folder / member_name(0) if (folder / member_name(0)).is_dir() else folder
    found = [first]
    if first.name == member_name(0):
        while (following := first.with_name(member_name(len(found)))).is_dir():
            found.append(following)
    return found

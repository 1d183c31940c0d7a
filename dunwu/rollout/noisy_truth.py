"""A stand-in for a human labeler at laptop scale: knows the truth, sees it through noise, likes what it reads first."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

from dunwu.rollout.verdicts import HIGHEST, LOWEST, read_sections
from dunwu.types import DunwuError, Message, SamplingParams, derive_seed

Truth = Callable[[Sequence[Message], Message], float]
"""How good a reply to a conversation really is; differences of about 1 are as large as they get."""


class NoisyTruth:
    """A `ChatModel` that answers a judge's prompt from a known utility.

    What it stands for: a labeler (or a large judge model) who is right on average, errs the more often the closer two
    replies are, has a taste for the first position, and does not always keep to the form asked for. What it does not
    stand for: a bias with a content (for length, for style, for its own writing), or a judge who can be fooled by a
    text; a reward model trained on its labels has only noise to overcome.

    Args:
        truth: utility of a reply, of which it sees the content only, as every judge here.
        noise: standard deviation of a Gaussian added to the difference of two utilities.
        position_bias: added to the utility of the reply that stands first.
        seed: of everything it draws; the same prompt with the same seed gets the same reply.
        point: difference of utilities that is worth one point of the score; less than half of it is a tie.
        untidy: share of replies wrapped in prose or fences.
        garbled: share of replies without a readable verdict.
    """

    def __init__(
        self,
        truth: Truth,
        noise: float = 0.2,
        position_bias: float = 0.1,
        seed: int = 0,
        point: float = 0.2,
        untidy: float = 0.3,
        garbled: float = 0.02,
    ) -> None:
        self.truth, self.noise, self.position_bias, self.seed = truth, noise, position_bias, seed
        self.point, self.untidy, self.garbled = point, untidy, garbled
        self.name = f"noisy-truth-{noise:g}-{position_bias:g}-{point:g}-{untidy:g}-{garbled:g}-{seed}"

    def reply(
        self, conversations: Sequence[Sequence[Message]], seeds: Sequence[int], params: SamplingParams
    ) -> list[Message]:
        """A verdict for each judge's prompt.

        Raises:
            DunwuError: a conversation that asks for something else.
        """
        return [self._reply(talk[-1].content, seed) for talk, seed in zip(conversations, seeds, strict=True)]

    def _reply(self, prompt: str, seed: int) -> Message:
        dice = random.Random(derive_seed("noisy truth", self.seed, seed, prompt))
        sections = read_sections(prompt)
        labels = [label for label, _ in sections]
        asked = [Message(label, text) for label, text in sections if label in ("system", "user", "assistant", "tool")]  # type: ignore[arg-type]
        if labels[-2:] == ["reply A", "reply B"]:
            first, second = (Message("assistant", text) for _, text in sections[-2:])
            verdict = self._compare(self.truth(asked, first) - self.truth(asked, second), dice)
        elif labels[-1:] == ["reply"]:
            value = self.truth(asked, Message("assistant", sections[-1][1])) + dice.gauss(0, self.noise)
            verdict = {"analysis": "The answer is compared with the right one.", "correct": value > 0.5}
        else:
            raise DunwuError("this judge was asked for something else than a verdict", "use a model for other replies")
        return Message("assistant", self._dress(verdict, dice))

    def _compare(self, difference: float, dice: random.Random) -> dict[str, Any]:
        seen = difference + self.position_bias + dice.gauss(0, self.noise)
        points = min(HIGHEST, round(abs(seen) / self.point))
        winner = "tie" if points < LOWEST else "A" if seen > 0 else "B"
        reason = "Both are equally good." if winner == "tie" else f"Reply {winner} serves the user better."
        return {"reason": reason, "winner": winner, "score": max(LOWEST, points)}

    def _dress(self, verdict: dict[str, Any], dice: random.Random) -> str:
        text, drawn = json.dumps(verdict), dice.random()
        if drawn < self.garbled:
            return "I cannot decide this."
        if drawn >= self.garbled + self.untidy:
            return text
        fields = ", ".join(f"{name}: {value}" for name, value in verdict.items() if name not in ("reason", "analysis"))
        return dice.choice(
            (f"```json\n{text}\n```", f"Let me see. {text} That is my verdict.", f"My verdict is {fields}.")
        )

"""A reward model: a language model with a scalar head, what its scores mean, how it scores, and its folder.

Or a language model as it is (`likelihood.py`), which the same functions score with, save and load.

The score is read at the last token of the conversation, found by its position and never by a padding id: rows are padded
on the right, behind that token, where a causal model cannot look. Saved folders are Hugging Face's
`…ForSequenceClassification` of the decoder's class with one label; `reward_model.json` beside it says what the scores mean. How one is
trained: `rm.py`.

Legend: B rows of a padded batch, T tokens, D width.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, pstdev
from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dunwu.data.chat import encode_conversation
from dunwu.data.tokenizer import Tokenizer, load_tokenizer
from dunwu.disk import write_atomically
from dunwu.model.config import ModelConfig
from dunwu.model.hf import load_model, read_config, save_folder, save_model, stored_dtype
from dunwu.model.hf_config import from_hf_config, to_hf_config
from dunwu.model.hf_weights import fill, in_files, is_spare, stored_in, unfilled
from dunwu.model.transformer import Transformer
from dunwu.native.train import Segment
from dunwu.train.likelihood import LikelihoodModel, turn_of
from dunwu.train.rm_config import Head, Says, View
from dunwu.types import DunwuError, Message

MEANING = "reward_model.json"
"""File of a reward model's folder that holds its `Meaning`."""


class RewardModel(nn.Module):
    """A decoder and a bias-free scalar head on its last state.

    Example:
        >>> model = RewardModel(ModelConfig(vocab_size=32, hidden_size=32, num_heads=2, num_layers=1))
        >>> model(torch.zeros(3, 5, dtype=torch.long), torch.tensor([4, 0, 2])).shape
        torch.Size([3])
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        # There is no output head over the vocabulary, so there is nothing to untie, and nothing to predict tokens ahead.
        self.config = replace(config, tie_word_embeddings=True, mtp_depth=0)
        self.backbone = Transformer(self.config)
        self.score = nn.Linear(config.hidden_size, 1, bias=False)

    @classmethod
    def from_model(cls, model: Transformer, seed: int) -> RewardModel:
        """The language model's decoder under a fresh, small head; `model` itself is not touched."""
        with torch.device("meta"):
            made = cls(model.config)
        weight = model.model.embed_tokens.weight
        noise = torch.randn(1, model.config.hidden_size, generator=torch.Generator().manual_seed(seed))
        kept = {name: t for name, t in model.state_dict().items() if not name.startswith(("lm_head.", "model.mtp."))}
        tensors = {name: t.detach().clone() for name, t in kept.items()}
        made.load_tensors(tensors | {"score.weight": (noise * model.config.initializer_range).to(weight)})
        return made

    def tensors(self) -> dict[str, Tensor]:
        """The weights under Hugging Face's names: `model.…` and `score.weight`."""
        return {name.removeprefix("backbone."): tensor for name, tensor in self.state_dict().items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over `tensors()` of another reward model."""
        named = {name if name.startswith("score.") else f"backbone.{name}": t for name, t in tensors.items()}
        self.load_state_dict(named, assign=True)

    def forward(self, ids_BT: Tensor, last_B: Tensor) -> Tensor:
        """Scores (B,) in fp32, each read at column `last_B` of its row; what stands behind it does not matter."""
        hidden_BTD = self.backbone.hidden(ids_BT)
        return self.head(hidden_BTD[torch.arange(len(ids_BT), device=ids_BT.device), last_B])

    def head(self, last_BD: Tensor) -> Tensor:
        """Scores (B,) of last states, in fp32: in bf16 two near 4 would be equal unless they differ by 0.03."""
        return F.linear(last_BD.float(), self.score.weight.float())[:, 0]


AnyRewardModel = RewardModel | LikelihoodModel


@dataclass(frozen=True)
class Meaning:
    """What the scores of a saved reward model mean."""

    kind: Says = "pairwise"
    """"pairwise": differences of scores are log-odds of being preferred; "pointwise": the score is the log-odds of good."""
    view: View = "whole"
    """What of a reply is seen."""
    mean: float = 0.0
    """What counts as 0: the mean score over the replies it was calibrated on, or over the best of them."""
    std: float = 1.0
    """Standard deviation of the scores of all of them."""
    head: Head = "scalar"
    """"scalar": the decoder's last state goes through `score.weight`; "likelihood": what a language model finds likely."""
    beta: float = 1.0
    """β of "likelihood"."""

    def normal(self, score: float) -> float:
        """A score in standard deviations from the mean.

        Example:
            >>> Meaning(mean=1.0, std=2.0).normal(4.0)
            1.5
        """
        return (score - self.mean) / self.std


# ---- scoring --------------------------------------------------------------------------------


def seen(messages: Sequence[Message], view: View) -> list[Message]:
    """The conversation as a reward model sees it: under "summary" without any thinking.

    Example:
        >>> seen([Message("user", "hi"), Message("assistant", "Hello.", "They greet.")], "summary")[1]
        Message(role='assistant', content='Hello.', reasoning_content=None)
    """
    if view == "whole":
        return list(messages)
    return [replace(message, reasoning_content=None) for message in messages]


def batch_scores(model: AnyRewardModel, texts: Sequence[Sequence[int]]) -> Tensor:
    """Scores (B,) of token sequences, padded on the right, with gradient; the padding's id is never looked at."""
    if isinstance(model, LikelihoodModel):
        return model.forward([[text] for text in texts])
    width = max(map(len, texts))
    ids = torch.zeros(len(texts), width, dtype=torch.long)
    for line, text in enumerate(texts):
        ids[line, : len(text)] = torch.tensor(text)
    device = model.score.weight.device
    scores: Tensor = model(ids.to(device), torch.tensor([len(text) - 1 for text in texts], device=device))
    return scores


def family_scores(model: AnyRewardModel, families: Sequence[Sequence[Sequence[int]]]) -> Tensor:
    """Scores (B,) of all texts of all families, with gradient: those of `batch_scores`.

    Where the model is computed natively, what the texts of a family begin with alike (the prompt of several replies) stands
    once and nothing is padded: K replies cost little more than the tokens of their own.
    """
    if isinstance(model, LikelihoodModel):
        return model.forward(families)
    if not model.backbone.native:
        return batch_scores(model, [text for family in families for text in family])
    ids: list[int] = []
    segments: list[Segment] = []
    last: list[int] = []
    for family in families:
        shared = _shared(family) if len(family) > 1 else 0
        root = (len(ids), len(ids) + shared) if shared else (0, 0)
        if shared:
            segments.append(Segment(*root))
            ids += family[0][:shared]
        for text in family:
            segments.append(Segment(len(ids), len(ids) + len(text) - shared, *root))
            ids += text[shared:]
            last.append(len(ids) - 1)
    states_ND = model.backbone.packed(torch.tensor(ids), segments)
    return model.head(states_ND.index_select(0, torch.tensor(last)))


def _shared(family: Sequence[Sequence[int]]) -> int:
    """How many ids all texts begin with alike, short of the whole of any."""
    texts = [tuple(text) for text in family]
    first, last = min(texts), max(texts)  # in dictionary order, so what these share all share
    alike = next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return min(alike, min(map(len, texts)) - 1)


def score_ids(model: AnyRewardModel, texts: Sequence[Sequence[int]], micro_tokens: int = 16_384) -> list[float]:
    """Raw scores of encoded conversations, in order: batched by length, dropout off, the model left as it was."""
    was_training = model.training
    model.eval()
    scores = [0.0] * len(texts)
    left = sorted(range(len(texts)), key=lambda n: -len(texts[n]))
    with torch.inference_mode():
        while left:
            take = max(1, micro_tokens // len(texts[left[0]]))
            found = batch_scores(model, [texts[n] for n in left[:take]]).tolist()
            for n, score in zip(left[:take], found, strict=True):
                scores[n] = score
            left = left[take:]
    model.train(was_training)
    return scores


class Scorer:
    """Conversations in, scores out: batched by length, on the model's device, dropout off.

    A score does not depend on what else is in the call, nor on the order, up to rounding.
    """

    def __init__(
        self, model: AnyRewardModel, tokenizer: Tokenizer, meaning: Meaning, micro_tokens: int = 16_384
    ) -> None:
        self.model, self.tokenizer, self.meaning = model, tokenizer, meaning
        self.micro_tokens = micro_tokens

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu", micro_tokens: int = 16_384) -> Scorer:
        """The reward model of a folder.

        Raises:
            DunwuError: as `load_reward_model`.
        """
        model, meaning = load_reward_model(folder, device)
        return cls(model, load_tokenizer(folder), meaning, micro_tokens)

    def score(self, conversations: Sequence[Sequence[Message]]) -> list[float]:
        """Raw scores of conversations that end with the reply to judge; its thinking is seen only if the view says so."""
        shown = (seen(messages, self.meaning.view) for messages in conversations)
        texts = [encode_conversation(self.tokenizer, messages).ids for messages in shown]
        return score_ids(self.model, texts, self.micro_tokens)

    def normalised(self, scores: Sequence[float]) -> list[float]:
        """Scores in standard deviations from the mean of the replies the model was calibrated on."""
        return [self.meaning.normal(score) for score in scores]


def calibrated(meaning: Meaning, scores: Sequence[float], best: Sequence[float] = ()) -> Meaning:
    """`meaning` with mean and standard deviation of these scores (of a calibration set; std 1 if they are all equal).

    Args:
        best: scores whose mean shall be 0 instead, as those of InstructGPT's demonstrations (arXiv 2203.02155, 3.5).

    Example:
        >>> made = calibrated(Meaning(), [1.0, 3.0])
        >>> made.mean, made.std
        (2.0, 1.0)
        >>> calibrated(Meaning(), [1.0, 3.0], best=[3.0]).normal(3.0)
        0.0
    """
    spread = pstdev(scores) if scores else 0.0
    centre = best or scores
    return replace(meaning, mean=fmean(centre) if centre else 0.0, std=spread or 1.0)


def probability(score: float) -> float:
    """σ(score), without overflow: what a pointwise score says, and a pairwise difference of scores.

    Example:
        >>> probability(0.0), probability(-1000.0)
        (0.5, 0.0)
    """
    if score >= 0:
        return 1 / (1 + math.exp(-score))
    grown = math.exp(score)
    return grown / (1 + grown)


# ---- folders --------------------------------------------------------------------------------


def save_reward_model(model: AnyRewardModel, folder: Path, tokenizer: Tokenizer, meaning: Meaning) -> None:
    """Write a folder of the decoder's class `…ForSequenceClassification` with one label, its tokenizer and
    `reward_model.json`; without a head the language model's own class."""
    if isinstance(model, LikelihoodModel):
        tokenizer.save(folder, model.config.max_position_embeddings)
        write_atomically(folder / MEANING, json.dumps(asdict(meaning), indent=2) + "\n")
        save_model(model.backbone, folder, tokenizer.end_id, tokenizer.stop_ids)
        return
    config = to_hf_config(model.config, model.score.weight.dtype, tokenizer.end_id)
    config |= {
        "architectures": [name.replace("ForCausalLM", "ForSequenceClassification") for name in config["architectures"]],
        "id2label": {"0": "reward"},
        "label2id": {"reward": 0},
    }
    tokenizer.save(folder, model.config.max_position_embeddings)
    write_atomically(folder / MEANING, json.dumps(asdict(meaning), indent=2) + "\n")
    save_folder(folder, config, in_files(model.tensors(), model.config), tokenizer.end_id)


def load_reward_model(folder: str | Path, device: str = "cpu") -> tuple[AnyRewardModel, Meaning]:
    """A reward model and what its scores mean; one that others saved has no `reward_model.json` and `Meaning()` then.

    Raises:
        DunwuError: no such folder, a damaged file, a language model, more than one label, as `load_model`.
    """
    folder = Path(folder)
    meaning = load_meaning(folder)
    if meaning.head == "likelihood":
        turn = turn_of(load_tokenizer(folder))
        return LikelihoodModel(load_model(folder, device), turn, meaning.beta).eval(), meaning
    config = from_hf_config(read_config(folder), str(folder / "config.json"))
    stored = stored_in(folder)
    head = stored.get("score.weight")
    if head is None or len(head.shape) != 2 or head.shape[0] != 1:
        labels = "it has no head score.weight" if head is None else f"its head has shape {head.shape}"
        raise DunwuError(f"{folder} is no reward model: {labels}", "give one with a single label: `dunwu run rm`")
    with unfilled():
        model = RewardModel(config)
    fill(
        model,
        stored,
        lambda state: in_files({name.removeprefix("backbone."): t for name, t in state.items()}, model.config),
        lambda name: is_spare(name, model.config),
        device,
        stored_dtype(stored),
    )
    return model.eval(), meaning


def load_meaning(folder: Path) -> Meaning:
    """What a reward model's scores mean; `Meaning()` of one that others saved.

    Raises:
        DunwuError: a damaged file.
    """
    file = folder / MEANING
    if not file.is_file():
        return Meaning()
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        meaning = Meaning(record["kind"], record["view"], float(record["mean"]), float(record["std"]))
        meaning = replace(meaning, head=record.get("head", "scalar"), beta=float(record.get("beta", 1.0)))
    except (ValueError, KeyError, TypeError) as error:
        raise DunwuError(f"{file} is damaged: {error}", "copy or build the reward model again") from error
    known = meaning.kind in get_args(Says) and meaning.view in get_args(View) and meaning.head in get_args(Head)
    if not known or not meaning.std > 0 or not meaning.beta > 0:
        raise DunwuError(
            f"{file} says {meaning}",
            "kind is pairwise or pointwise, view summary or whole, head scalar or likelihood, std and beta above 0",
        )
    return meaning

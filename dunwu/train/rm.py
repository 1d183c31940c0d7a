"""Reward models: a language model with a scalar head, taught which replies are better, or which are safe.

* Pairwise (R1's helpful model, arXiv 2501.12948, B.3.4; InstructGPT, arXiv 2203.02155, eq. 1): Bradley-Terry, the loss
  of a pair is -log σ(r_chosen - r_rejected). It sees the summary of a reply only.
* Pointwise (R1's safety model): binary cross-entropy, the loss of a reply is -log σ(r) if it is labelled good, else
  -log σ(-r). It sees the whole reply, thinking included.

The score is read at the last token of the conversation, found by its position and never by a padding id: rows are padded
on the right, behind that token, where a causal model cannot look. Saved folders are Hugging Face's
`Qwen2ForSequenceClassification` with one label; `reward_model.json` beside it says what the scores mean.

Legend: B rows of a padded batch, T tokens, D width.
Not covered: ensembles, process rewards, several replies ranked at once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from statistics import fmean, pstdev
from typing import get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from dunwu.data.chat import encode_conversation
from dunwu.data.tokenizer import Tokenizer, load_tokenizer
from dunwu.model.config import ModelConfig
from dunwu.model.hf import from_hf_config, to_hf_config
from dunwu.model.transformer import Transformer
from dunwu.train.optim import MasterAdamW, learning_rate
from dunwu.train.rm_config import Kind, RmConfig, View
from dunwu.train.steps import TrainStep, check_finite
from dunwu.types import ChatExample, DunwuError, Message, Preference, derive_seed

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
        # There is no output head over the vocabulary, so there is nothing to untie.
        self.config = replace(config, tie_word_embeddings=True)
        self.backbone = Transformer(self.config)
        self.score = nn.Linear(config.hidden_size, 1, bias=False)

    @classmethod
    def from_model(cls, model: Transformer, seed: int) -> RewardModel:
        """The language model's decoder under a fresh, small head; `model` itself is not touched."""
        with torch.device("meta"):
            made = cls(model.config)
        weight = model.model.embed_tokens.weight
        noise = torch.randn(1, model.config.hidden_size, generator=torch.Generator().manual_seed(seed))
        tensors = {name: t.detach().clone() for name, t in model.state_dict().items() if name != "lm_head.weight"}
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
        last_BD = hidden_BTD[torch.arange(len(ids_BT), device=ids_BT.device), last_B]
        # fp32: in bf16 two scores near 4 would be equal unless they differ by 0.03.
        return F.linear(last_BD.float(), self.score.weight.float())[:, 0]


@dataclass(frozen=True)
class Meaning:
    """What the scores of a saved reward model mean."""

    kind: Kind = "pairwise"
    """"pairwise": differences of scores are log-odds of being preferred; "pointwise": the score is the log-odds of good."""
    view: View = "whole"
    """What of a reply is seen."""
    mean: float = 0.0
    """Mean score over the replies it was calibrated on."""
    std: float = 1.0
    """Standard deviation of the same."""


# ---- rows -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One training row: a pair has both sides, a labelled reply the one of its label."""

    good: tuple[int, ...] | None
    """Ids of the conversation with the chosen reply, or with one labelled good."""
    bad: tuple[int, ...] | None
    """Ids of the conversation with the rejected reply, or with one labelled bad."""

    @property
    def sides(self) -> list[tuple[int, ...]]:
        """The conversations to score, the good one first."""
        return [side for side in (self.good, self.bad) if side is not None]


def seen(messages: Sequence[Message], view: View) -> list[Message]:
    """The conversation as a reward model sees it: under "summary" without any thinking.

    Example:
        >>> seen([Message("user", "hi"), Message("assistant", "Hello.", "They greet.")], "summary")[1]
        Message(role='assistant', content='Hello.', reasoning_content=None)
    """
    if view == "whole":
        return list(messages)
    return [replace(message, reasoning_content=None) for message in messages]


def pair_row(tokenizer: Tokenizer, pair: Preference, view: View) -> Row:
    """A preference as ids."""
    good, bad = (
        tuple(encode_conversation(tokenizer, seen([*pair.messages, reply], view)).ids)
        for reply in (pair.chosen, pair.rejected)
    )
    return Row(good, bad)


def label_row(tokenizer: Tokenizer, example: ChatExample, view: View) -> Row:
    """A labelled conversation as ids; see `label_of`."""
    ids = tuple(encode_conversation(tokenizer, seen(example.messages, view)).ids)
    return Row(ids, None) if label_of(example) else Row(None, ids)


def label_of(example: ChatExample) -> bool:
    """The label of a pointwise row: `meta["safe"]`, else `meta["label"]`; true and 1 are good, false and 0 bad.

    Raises:
        DunwuError: there is none, or another value.

    Example:
        >>> label_of(ChatExample((), {"safe": True})), label_of(ChatExample((), {"label": 0}))
        (True, False)
    """
    label = example.meta.get("safe", example.meta.get("label"))
    if not isinstance(label, int | float) or label not in (0, 1):  # True and 1 are equal
        raise DunwuError(
            "no label" if label is None else f"the label is {label!r}", 'write "meta": {"safe": true} or false'
        )
    return bool(label)


def held_out_rows(conversations: Sequence[Sequence[Message]], share: float, seed: int) -> list[bool]:
    """Which rows are held out: whole conversations, the `share` of them whose hash is lowest, one at least.

    Args:
        conversations: what was asked, row by row, without the replies; equal ones go to the same side.

    Raises:
        DunwuError: fewer than two different conversations, so one side would be empty.

    Example:
        >>> hi, bye = [Message("user", "hi")], [Message("user", "bye")]
        >>> flags = held_out_rows([hi, bye, hi], 0.5, seed=0)
        >>> flags[0] == flags[2] != flags[1]
        True
    """
    keys = [json.dumps([[m.role, m.content] for m in messages], ensure_ascii=False) for messages in conversations]
    order = sorted(set(keys), key=lambda key: (derive_seed("rm held out", seed, key), key))
    if len(order) < 2:
        raise DunwuError(
            f"{len(order)} different conversations cannot be split into training and held-out ones", "give more data"
        )
    chosen = set(order[: min(len(order) - 1, math.ceil(share * len(order)))])
    return [key in chosen for key in keys]


def balance_lengths(rows: Sequence[Row], tolerance: float) -> list[Row]:
    """The pairs without those that make length a clue; order kept, nothing drawn by chance.

    While the mean lengths of chosen and rejected differ by more than `tolerance` of the mean length, a pair that differs
    in that direction goes, those that differ most first, so that few are lost. Rows with one side are kept.

    Example:
        >>> pairs = [Row((1, 1, 1, 1), (1,)), Row((1, 1), (1, 1)), Row((1,), (1, 1))]
        >>> [len(balance_lengths(pairs, tolerance)) for tolerance in (0.5, 0.3, 0.0)]
        [3, 2, 1]
    """
    excess = {n: len(row.good) - len(row.bad) for n, row in enumerate(rows) if row.good and row.bad}
    total = sum(len(side) for n in excess for side in rows[n].sides)
    surplus = sum(excess.values())
    dropped: set[int] = set()
    for n in sorted(excess, key=lambda n: (-abs(excess[n]), n)):
        # Mean difference ≤ tolerance · mean length; both means are over the same pairs, so the counts cancel.
        if abs(surplus) <= tolerance * total / 2:
            break
        if abs(surplus - excess[n]) < abs(surplus):
            dropped.add(n)
            surplus -= excess[n]
            total -= sum(len(side) for side in rows[n].sides)
    return [row for n, row in enumerate(rows) if n not in dropped]


# ---- training -------------------------------------------------------------------------------


def row_losses(good_B: Tensor | None, bad_B: Tensor | None) -> Tensor:
    """Loss of each row (B,): Bradley-Terry where both scores are given, else cross-entropy of the one label.

    InstructGPT, eq. 1: -log σ(r_good - r_bad). With one side: -log σ(r_good) or -log σ(-r_bad). All three are
    softplus of minus the margin.

    Example:
        >>> good, bad = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.0])  # -log σ(1) = 0.3133, -log σ(0) = log 2
        >>> [round(loss, 4) for loss in row_losses(good, bad).tolist()], round(float(row_losses(None, good)[0]), 4)
        ([0.3133, 0.6931], 1.3133)
    """
    return F.softplus(-_margins(good_B, bad_B))


def _margins(good_B: Tensor | None, bad_B: Tensor | None) -> Tensor:
    """How much a row's scores say what they should: r_good - r_bad, r_good alone, or -r_bad alone."""
    if good_B is not None:
        return good_B if bad_B is None else good_B - bad_B
    if bad_B is None:
        raise ValueError("a row has neither side")
    return -bad_B


def rm_steps(rows: Sequence[Row], config: RmConfig) -> int:
    """Updates in all; the last one of an epoch may be short, so that no row is left out.

    Example:
        >>> rm_steps([Row((1,), (2,))] * 65, RmConfig(rows=32, epochs=2))
        6
    """
    return config.epochs * math.ceil(len(rows) / config.rows)


def rows_of_step(rows: Sequence[Row], config: RmConfig, seed: int, step: int) -> list[Row]:
    """The rows of update `step` (0-based): a new order every epoch, a pure function of (rows, seed, step)."""
    per_epoch = math.ceil(len(rows) / config.rows)
    epoch, place = divmod(step, per_epoch)
    order = list(range(len(rows)))
    Random(derive_seed("rm order", seed, epoch)).shuffle(order)
    return [rows[n] for n in order[place * config.rows : (place + 1) * config.rows]]


def train_rm(
    model: RewardModel,
    optimizer: MasterAdamW,
    rows: Sequence[Row],
    config: RmConfig,
    seed: int,
    start: int = 0,
    folder: Path | None = None,
) -> Iterator[TrainStep]:
    """Yield after every update from `start` (updates already done) to the end; the loss is the mean over the update's rows.

    A caller that restores model and optimizer and passes `start` continues bit for bit.

    Raises:
        DunwuError: there are no rows, or the numbers go bad.
    """
    config.validate()
    if not rows:
        raise DunwuError("a reward model has no rows to learn from", "give more data")
    model.train()
    total = rm_steps(rows, config)
    for step in range(start, total):
        chosen = rows_of_step(rows, config, seed, step)
        check = partial(
            check_finite, step=step + 1, batch=[side for row in chosen for side in row.sides], folder=folder
        )
        loss_sum, margins = 0.0, []
        for micro in _micro_batches(chosen, config.micro_tokens):
            margin_B = _row_margins(model, micro)
            loss = F.softplus(-margin_B).sum() / len(chosen)
            torch.autograd.backward(loss)
            loss_sum += float(loss.detach())
            margins += margin_B.detach().tolist()
        check(loss_sum, "loss")
        lr = learning_rate(step, total, config.lr, config.warmup, config.schedule, config.final_lr)
        norm = optimizer.step(lr, config.max_grad_norm, partial(check, name="gradient norm"))
        metrics = {
            "rm/loss": loss_sum,
            "rm/accuracy": fmean(margin > 0 for margin in margins),
            "rm/margin": fmean(margins),
            "rm/lr": lr,
            "rm/grad_norm": norm,
            "rm/epoch": (step + 1) * config.epochs / total,
        }
        yield TrainStep(step + 1, metrics)
    model.eval()


def _micro_batches(rows: Sequence[Row], tokens: int) -> list[list[Row]]:
    """Rows of similar length together, a pair never apart; the order of the rows within an update changes no sum."""
    left = sorted(rows, key=lambda row: -max(map(len, row.sides)))
    batches = []
    while left:
        take = max(1, tokens // sum(max(map(len, left[0].sides)) for _ in left[0].sides))
        batches.append(left[:take])
        left = left[take:]
    return batches


def _row_margins(model: RewardModel, rows: Sequence[Row]) -> Tensor:
    """Margins (B,) of the rows, with gradient; all sides go through the model in one batch."""
    scores = iter(_scores(model, [side for row in rows for side in row.sides]))
    margins = []
    for row in rows:
        good = next(scores) if row.good is not None else None
        margins.append(_margins(good, next(scores) if row.bad is not None else None))
    return torch.stack(margins)


def _scores(model: RewardModel, texts: Sequence[Sequence[int]]) -> Tensor:
    """Scores (B,) of token sequences, padded on the right; the padding's id is never looked at."""
    width = max(map(len, texts))
    ids = torch.zeros(len(texts), width, dtype=torch.long)
    for line, text in enumerate(texts):
        ids[line, : len(text)] = torch.tensor(text)
    device = model.score.weight.device
    scores: Tensor = model(ids.to(device), torch.tensor([len(text) - 1 for text in texts], device=device))
    return scores


# ---- scoring --------------------------------------------------------------------------------


def score_ids(model: RewardModel, texts: Sequence[Sequence[int]], micro_tokens: int = 16_384) -> list[float]:
    """Raw scores of encoded conversations, in order: batched by length, dropout off, the model left as it was."""
    was_training = model.training
    model.eval()
    scores = [0.0] * len(texts)
    left = sorted(range(len(texts)), key=lambda n: -len(texts[n]))
    with torch.inference_mode():
        while left:
            take = max(1, micro_tokens // len(texts[left[0]]))
            found = _scores(model, [texts[n] for n in left[:take]]).tolist()
            for n, score in zip(left[:take], found, strict=True):
                scores[n] = score
            left = left[take:]
    model.train(was_training)
    return scores


class Scorer:
    """Conversations in, scores out: batched by length, on the model's device, dropout off.

    A score does not depend on what else is in the call, nor on the order, up to rounding.
    """

    def __init__(self, model: RewardModel, tokenizer: Tokenizer, meaning: Meaning, micro_tokens: int = 16_384) -> None:
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
        return [(score - self.meaning.mean) / self.meaning.std for score in scores]


def calibrated(meaning: Meaning, scores: Sequence[float]) -> Meaning:
    """`meaning` with mean and standard deviation of these scores (of a calibration set; std 1 if they are all equal).

    Example:
        >>> calibrated(Meaning(), [1.0, 3.0])
        Meaning(kind='pairwise', view='whole', mean=2.0, std=1.0)
    """
    spread = pstdev(scores) if scores else 0.0
    return replace(meaning, mean=fmean(scores) if scores else 0.0, std=spread or 1.0)


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


def save_reward_model(model: RewardModel, folder: Path, tokenizer: Tokenizer, meaning: Meaning) -> None:
    """Write a `Qwen2ForSequenceClassification` folder with one label, its tokenizer and `reward_model.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    config = to_hf_config(model.config, model.score.weight.dtype, tokenizer.end_id)
    config |= {
        "architectures": ["Qwen2ForSequenceClassification"],
        "id2label": {"0": "reward"},
        "label2id": {"reward": 0},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (folder / MEANING).write_text(json.dumps(asdict(meaning), indent=2) + "\n", encoding="utf-8")
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.tensors().items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    tokenizer.save(folder, model.config.max_position_embeddings)


def load_reward_model(folder: str | Path, device: str = "cpu") -> tuple[RewardModel, Meaning]:
    """A reward model and what its scores mean; one that others saved has no `reward_model.json` and `Meaning()` then.

    Raises:
        DunwuError: no such folder, a damaged file, a language model, more than one label.
    """
    folder = Path(folder)
    files = [folder / "config.json", folder / "model.safetensors"]
    for file in files:
        if not file.is_file():
            raise DunwuError(f"{folder} is no reward model: {file.name} is missing", "train one with `dunwu run rm`")
    try:
        record, tensors = json.loads(files[0].read_text(encoding="utf-8")), load_file(files[1])
    except (ValueError, SafetensorError) as error:
        raise DunwuError(f"{folder} is damaged: {error}", "copy or build it again") from error
    head = tensors.get("score.weight")
    if head is None or head.dim() != 2 or len(head) != 1:
        labels = "it has no head score.weight" if head is None else f"its head has shape {tuple(head.shape)}"
        raise DunwuError(f"{folder} is no reward model: {labels}", "give one with a single label")
    with torch.device("meta"):
        model = RewardModel(from_hf_config(record, str(files[0])))
    try:
        model.load_tensors(tensors)
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:200]
        raise DunwuError(f"{files[1]} does not fit its config.json: {detail}", "copy the folder again") from error
    return model.to(device).eval(), _load_meaning(folder / MEANING)


def _load_meaning(file: Path) -> Meaning:
    if not file.is_file():
        return Meaning()
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        meaning = Meaning(record["kind"], record["view"], float(record["mean"]), float(record["std"]))
    except (ValueError, KeyError, TypeError) as error:
        raise DunwuError(f"{file} is damaged: {error}", "copy or build the reward model again") from error
    if meaning.kind not in get_args(Kind) or meaning.view not in get_args(View) or not meaning.std > 0:
        raise DunwuError(f"{file} says {meaning}", "kind is pairwise or pointwise, view summary or whole, std above 0")
    return meaning

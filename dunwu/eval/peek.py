"""The next-token table: what models expect after a text, side by side; and a run's model before and after each stage.

Models are loaded one after the other, and each leaves only its logits, (V,). Where all share a vocabulary, rows are
tokens by id and every change has a distance: total variation in [0, 1], and KL in nats. Otherwise rows are joined by the
tokens' text, which says nothing about the rest of two vocabularies, so there is no distance.
Not covered: tokens further on, servers (they tell a few probabilities at most). Its view in the terminal: `peek_view`.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dunwu.data.chat import encode_prompt
from dunwu.data.tokenizer import Tokenizer, load_tokenizer
from dunwu.log import read_json
from dunwu.store import Store, resolve_model
from dunwu.types import DunwuError, Message, UsageError

if TYPE_CHECKING:  # a mistyped name is told before torch loads
    from torch import Tensor

Name = str | Path
GIVEN = ("base", "model", "student")
"""Settings of recipes that name the model a run starts from."""
_LOST = "\ufffd"
"""What a token that is part of a character decodes to."""


@dataclass(frozen=True)
class Subject:
    """A model that is looked into."""

    name: str
    """As it was asked for, or RUN:STAGE."""
    folder: Path
    """Where its files are."""
    stage: str = ""
    """The run's stage that made it; "" for a folder."""
    before: int | None = None
    """The model it is compared with, by its place in the list."""


@dataclass(frozen=True)
class Sight:
    """What a model expects next."""

    tokenizer: Tokenizer
    """Its tokenizer."""
    vocabulary: str
    """A digest of its tokens and their ids."""
    logprobs_V: Tensor
    """Log-probabilities in nats, float64, on the CPU."""

    def best(self, top: int) -> list[int]:
        """The `top` likeliest ids, likeliest first."""
        return [int(i) for i in self.logprobs_V.topk(min(top, len(self.logprobs_V))).indices]

    def probability(self, token: int) -> float:
        """Of an id; 0 for one that the model's head does not have."""
        return float(self.logprobs_V[token].exp()) if token < len(self.logprobs_V) else 0.0


def peek(
    model: Name,
    text: str,
    top: int = 10,
    compare: Name | Sequence[Name] = (),
    chat: bool = False,
    device: str = "auto",
) -> dict[str, Any]:
    """What `dunwu peek` prints: the likeliest next tokens of each model at temperature 1.

    Args:
        model: a folder, RUN:STAGE, a name of the hub, or a run folder, which stands for all its models.
        compare: models beside it, named alike.
        chat: the text is a user's turn, and the next token the first of the reply.

    Returns:
        model, text, next (compare, compare_next: of the second model); and for any number of models: same_tokenizer;
        models: [{model, stage, before, total_variation, kl, next: [{id, token, probability}, …]}, …], where `before` is
        the model of the list that this one is compared with, and kl is KL(before ‖ this) in nats; rows: the union of
        all `next`, likeliest first, [{id, token, probabilities}, …] with one probability a model, None where the
        model has no such token.

    Raises:
        DunwuError: no such model, no text, a text longer than a model's context, a model without turns to chat in.
    """
    if top < 1:
        raise UsageError(f"--top {top} shows nothing", "use 1 or more")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError("the text is not UTF-8", "type it in a UTF-8 terminal") from error
    seen = subjects([model, *([compare] if isinstance(compare, str | Path) else compare)])
    sights = [look(subject, text, chat, device) for subject in seen]
    same = len({sight.vocabulary for sight in sights}) == 1
    tables = [_table(sight, top) for sight in sights]
    shown = [
        {"model": subject.name, "stage": subject.stage or None} | _change(seen, sights, place) | {"next": tables[place]}
        for place, subject in enumerate(seen)
    ]
    result: dict[str, Any] = {"model": seen[0].name, "text": text, "chat": chat, "next": tables[0]}
    if len(seen) > 1:
        result |= {"compare": seen[1].name, "compare_next": tables[1]}
    return result | {"same_tokenizer": same, "models": shown, "rows": _rows(sights, tables, same)}


def next_tokens(model: Name, text: str, top: int = 10) -> list[dict[str, Any]]:
    """The `top` likeliest next tokens of one model: id, token, probability."""
    found: list[dict[str, Any]] = peek(model, text, top)["next"]
    return found


# ---- which models


def subjects(names: Sequence[Name], store: Store | None = None) -> list[Subject]:
    """Models by name, a run folder unfolded into its models; each beside the one it is compared with.

    That is its left neighbour, but for the stages of a run the model they were trained from.

    Raises:
        UsageError: no language model, or a run without any.
    """
    store, found = store or Store(), list[Subject]()
    for name in map(str, names):
        left = len(found) - 1 if found else None
        if is_run(name):
            found += _models_of(name, Path(name).expanduser(), store, len(found), left)
            continue
        model = resolve_model(name, store)
        if not _predicts(model):
            raise UsageError(f"{name} is a reward model: it scores and expects no token", "name a language model")
        run, _, stage = name.rpartition(":")
        stage = stage if is_run(run) and not _is_folder(name) else ""
        found.append(Subject(name, model, stage, left))
    return found


def is_run(name: Name) -> bool:
    """Whether this is the folder of a run."""
    return _is_folder(name) and _is_folder(Path(name, "stages")) and (Path(name).expanduser() / "run.json").is_file()


def names_model(text: str) -> bool:
    """Whether a word can only mean a model here: a folder, or RUN:STAGE of a run that is there."""
    return _is_folder(text) or is_run(text.rpartition(":")[0])


def _is_folder(name: Name) -> bool:
    """As `Path.is_dir`, for any text: one too long for a name, or with a "~" of nobody's, is no folder."""
    return bool(name) and os.path.isdir(os.path.expanduser(name))


def _models_of(name: str, run: Path, store: Store, first: int, left: int | None) -> list[Subject]:
    """The models of a run in the order of its story, the one it was given before them; `first` is their place."""
    records = [read_json(file) for file in (run / "stages").glob("*.json")]
    records.sort(key=lambda record: (float(record.get("start") or 0), str(record["stage"])))
    models = [(record, folder) for record in records if (folder := _made(record, store)) is not None]
    if not models:
        there = ", ".join(str(record["stage"]) for record in records) or "none"
        raise UsageError(f"no stage of {name} is a language model yet; its stages: {there}", "see `dunwu runs`")
    given = _given(run, store)
    found = [] if given is None else [Subject(given.name, given.folder, before=left)]
    places = {record["key"]: place for place, (record, _) in enumerate(models, first + len(found))}
    for record, folder in models:
        # A student's second input is its teacher, a policy's others are its rewards: what it was comes first.
        parents = [places[key] for key in record.get("inputs", []) if key in places]
        origin = first if given is not None else None if found else left
        stage = str(record["stage"])
        found.append(Subject(f"{name}:{stage}", folder, stage, parents[0] if parents else origin))
    return found


def _made(record: dict[str, Any], store: Store) -> Path | None:
    """The language model that a stage has made, or None."""
    expected = store.home / "artifacts" / record["key"]
    if record.get("status") not in ("done", "reused"):
        return None
    if not expected.is_dir():
        print(f"dunwu: left out {record['stage']}, its files are gone", file=sys.stderr)
        return None
    if not (expected / "model" / "config.json").is_file():  # before `find`, which reads every byte of it
        return None
    artifact = store.find(record["key"])
    return artifact.path / "model" if artifact is not None and _predicts(artifact.path / "model") else None


def _given(run: Path, store: Store) -> Subject | None:
    """The model a run was started from, if it is a folder or another run's stage, and still there."""
    if (run / "stages" / "base.json").is_file():  # the recipe has made a stage of it
        return None
    config = read_json(run / "run.json").get("config") or {}
    for name in (config.get(setting) for setting in GIVEN):
        if isinstance(name, str) and names_model(name):
            try:
                return Subject(name, resolve_model(name, store))
            except DunwuError as error:
                print(f"dunwu: left out the model that {run} began with: {error.what}", file=sys.stderr)
    return None


def _predicts(folder: Path) -> bool:
    """Whether a model folder holds a language model, and no reward model."""
    # As text: a damaged file is for the loader to explain.
    return "ForSequenceClassification" not in (folder / "config.json").read_text("utf-8", "replace")


# ---- what they expect


def look(subject: Subject, text: str, chat: bool = False, device: str = "auto") -> Sight:
    """Load the model, in fp32, ask it, let it go; see `peek`."""
    import torch

    from dunwu.model.hf import from_pretrained
    from dunwu.model.runtime import resolve_device

    place = resolve_device(device)
    tokenizer = load_tokenizer(subject.folder)
    ids = encode_prompt(tokenizer, [Message("user", text)]) if chat else tokenizer.encode(text)
    if not ids:
        raise UsageError("the text is empty", "give at least one token of context")
    model = from_pretrained(subject.folder, place, torch.float32).eval()
    context = model.config.max_position_embeddings
    if len(ids) > context:
        raise UsageError(f"the text has {len(ids)} tokens, the context of {subject.name} {context}", "shorten it")
    with torch.inference_mode():
        logits_V = (model.hidden(torch.tensor([ids], device=place))[0, -1] @ model.head_weight.T).cpu()
    if not bool(logits_V.isfinite().all()):
        raise DunwuError(f"{subject.name} expects NaN or infinity", "its weights are damaged: build or copy it again")
    vocabulary = json.dumps(tokenizer.backend.get_vocab(with_added_tokens=True), sort_keys=True)
    return Sight(tokenizer, hashlib.sha256(vocabulary.encode()).hexdigest(), logits_V.double().log_softmax(-1))


def _table(sight: Sight, top: int) -> list[dict[str, Any]]:
    return [
        {"id": token, "token": sight.tokenizer.token(token), "probability": sight.probability(token)}
        for token in sight.best(top)
    ]


def _change(seen: Sequence[Subject], sights: Sequence[Sight], place: int) -> dict[str, Any]:
    """What `before` was, and how far it is from there."""
    before = seen[place].before
    if before is None:
        return {"before": None}
    named: dict[str, Any] = {"before": seen[before].name}
    if sights[before].vocabulary == sights[place].vocabulary:
        variation, kl = distances(sights[before].logprobs_V, sights[place].logprobs_V)
        named |= {"total_variation": variation, "kl": kl}
    return named


def distances(before_V: Tensor, after_V: Tensor) -> tuple[float, float]:
    """(total variation ½ Σ |p − q|, KL(p ‖ q) = Σ p (ln p − ln q) in nats) of two next-token distributions.

    Heads padded to different widths are compared on the ids both have, where each is made to sum to 1.

    Example:
        >>> import torch
        >>> variation, kl = distances(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.75, 0.25]).log())
        >>> round(variation, 4), round(kl, 4)
        (0.25, 0.1438)
    """
    shared = min(len(before_V), len(after_V))
    p, q = (logprobs[:shared].double().log_softmax(-1) for logprobs in (before_V, after_V))
    # Rounding may leave a KL of equal distributions below 0, which it never is.
    return float((p.exp() - q.exp()).abs().sum() / 2), max(0.0, float((p.exp() * (p - q)).sum()))


# ---- side by side


def _rows(sights: Sequence[Sight], tables: Sequence[list[dict[str, Any]]], same: bool) -> list[dict[str, Any]]:
    """The union of the tables, a row a token, with every model's probability; likeliest anywhere first."""
    rows: dict[object, dict[str, Any]] = {}
    for sight, table in zip(sights, tables, strict=True):
        for entry in table:
            if same:
                key: object = entry["id"]
                found: list[float | None] = [other.probability(entry["id"]) for other in sights]
            else:
                places = [_place_of(entry, sight, other) for other in sights]
                found = [None if p is None else other.probability(p) for p, other in zip(places, sights, strict=True)]
                key = tuple(places)
            named = {"id": entry["id"], "token": entry["token"]} if same else {"token": entry["token"]}
            rows.setdefault(key, named | {"probabilities": found})
    return sorted(rows.values(), key=lambda row: -max(p for p in row["probabilities"] if p is not None))


def _place_of(entry: dict[str, Any], here: Sight, there: Sight) -> int | None:
    """A token of one model in another: the id with the same text; a part of a character goes by its bytes' name."""
    if here.vocabulary == there.vocabulary:
        return int(entry["id"])
    name, text, tokenizer = here.tokenizer.backend.id_to_token(entry["id"]), entry["token"], there.tokenizer
    found = None if name is None else tokenizer.backend.token_to_id(name)
    if found is not None and tokenizer.token(found) == text:
        return int(found)
    ids = [] if _LOST in text else tokenizer.encode(text)
    return ids[0] if len(ids) == 1 and tokenizer.token(ids[0]) == text else None

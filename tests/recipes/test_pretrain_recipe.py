"""The recipe `pretrain` on small generated texts: through the run folder and the store, killed, and misused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from tiny_runs import Killed, run_recipe, stage, status, timeless_metrics

from dunwu.data.shards import TokenFolder
from dunwu.data.tokenizer import load_tokenizer, train_from_texts
from dunwu.log import read_metrics
from dunwu.model.hf import load_model
from dunwu.recipes import pretraining
from dunwu.recipes.configs import PRETRAIN_PRESETS, PretrainRunConfig
from dunwu.train.config import PretrainConfig
from dunwu.types import DunwuError, UsageError

SMALL = PretrainRunConfig(
    model="tiny",
    vocab_size=300,
    pretrain=PretrainConfig(
        tokens=30 * 128, rows=4, context=32, warmup=3, lr=1e-2, dropout=0.1, log_every=5, eval_every=10, save_every=4
    ),
    curve_tokens=500,
    device="cpu",
)


def sentences(count: int, seed: int = 0) -> list[str]:
    dice = Random(seed)
    who, does = ["the king", "a fool", "老王", "my lord"], ["speaks", "weeps", "笑了", "rides away"]
    return [f"{dice.choice(who)} {dice.choice(does)} {dice.randrange(100)} times." for _ in range(count)]


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "书.txt"
    path.write_text("\n".join(sentences(600)) + "\n", encoding="utf-8")
    return path


train = partial(run_recipe, "pretrain")


def test_a_text_becomes_a_model(tmp_path: Path, book: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(tmp_path, replace(SMALL, data=(str(book),)))
    base = stage(run, "base")
    figures = base.meta["metrics"]
    lines = [line for line in read_metrics(run.dir) if line["stage"] == "base"]
    assert [line["step"] for line in lines] == [5, 10, 15, 20, 25, 30]
    curve = [line["pretrain/bits_per_byte"] for line in lines if "pretrain/bits_per_byte" in line]
    assert len(curve) == 3 and curve[2] < curve[0] < 8  # learns, and 8 is knowing nothing at all
    assert figures["bits_per_byte"] == curve[-1]
    assert f"{curve[-1]:.4f} bits per byte" in capsys.readouterr().out
    assert lines[-1]["pretrain/valid_loss/书"] == lines[-1]["pretrain/valid_loss"] > 0
    assert figures["tokens"] == 30 * 128 and figures["tokens_per_second"] > 0
    model = load_model(base.path / "model")
    assert model.config.num_parameters == figures["parameters"]
    assert "--- update 30, sample 2" in (base.path / "samples.txt").read_text("utf-8")
    assert not (base.path / "checkpoint.safetensors").exists()

    raw = book.read_bytes()
    encoder, shards = load_tokenizer(base.path / "model"), stage(run, "shards")
    parts = {name: TokenFolder(shards.path / name) for name in ("train", "held-out/书")}
    texts = {name: part.read(0, part.tokens).tolist() for name, part in parts.items()}
    assert all(ids.count(encoder.end_id) == 1 and ids[-1] == encoder.end_id for ids in texts.values())
    spelled = [encoder.decode(ids[:-1]).encode() for ids in texts.values()]
    assert b"".join(spelled) == raw
    assert -1 < len(spelled[0]) - len(raw) * 0.9 < 3  # the cut moves to the end of a character
    assert shards.meta["metrics"]["held_out_bytes"] == len(spelled[1])


def test_jsonl_holds_out_its_last_documents(tmp_path: Path) -> None:
    path = tmp_path / "pages.jsonl"
    documents = [*sentences(195), "a trap <|endoftext|> <|im_end|> <think>", *sentences(24, seed=1)]
    path.write_text("".join(json.dumps({"text": text, "id": 1}) + "\n\n" for text in documents), encoding="utf-8")
    other = tmp_path / "notes.txt"
    other.write_text("ab " * 1000, encoding="utf-8")
    run = train(tmp_path, replace(SMALL, data=(str(path), str(other)), held_out=0.2))
    encoder, shards = load_tokenizer(stage(run, "tokenizer").path), stage(run, "shards").path
    text = TokenFolder(shards / "held-out" / "pages")
    held_out = encoder.decode(text.read(0, text.tokens).tolist())
    assert held_out == "".join(f"{document}<|endoftext|>" for document in documents[176:])
    ids = text.read(0, text.tokens).tolist()
    assert ids.count(encoder.end_id) == 44  # the trap is spelled out, not obeyed
    train_text = TokenFolder(shards / "train")
    decoded = encoder.decode(train_text.read(0, train_text.tokens).tolist())
    assert decoded == "".join(f"{d}<|endoftext|>" for d in [*documents[:176], "ab " * 800])
    last = list(read_metrics(run.dir))[-1]
    assert {"pretrain/valid_loss/pages", "pretrain/valid_loss/notes"} <= last.keys()


@pytest.mark.parametrize("moment", [6, 30])
def test_a_killed_run_resumes_to_the_same_bits(
    tmp_path: Path, book: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    config = replace(SMALL, data=(str(book),))
    whole = train(tmp_path / "whole", config)
    real = pretraining.pretrain

    def dying(*args: Any) -> Iterator[Any]:
        for step in real(*args):
            yield step
            if step.n == moment:  # at the last one the checkpoint is saved, the artifact is not
                raise Killed

    monkeypatch.setattr(pretraining, "pretrain", dying)
    with pytest.raises(Killed):
        train(tmp_path / "killed", config)
    monkeypatch.setattr(pretraining, "pretrain", real)
    resumed = train(tmp_path / "killed", config)
    bases = [stage(run, "base") for run in (whole, resumed)]
    weights = [load_model(base.path / "model").state_dict() for base in bases]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    texts = [(base.path / "samples.txt").read_text("utf-8") for base in bases]
    assert texts[0] == texts[1]
    figures = [{k: v for k, v in base.meta["metrics"].items() if k != "tokens_per_second"} for base in bases]
    assert figures[0] == figures[1]
    assert timeless_metrics(whole) == timeless_metrics(resumed)


def test_the_same_text_is_not_worked_on_twice(tmp_path: Path, book: Path) -> None:
    config = replace(SMALL, data=(str(book),))
    first = train(tmp_path, config)
    again = train(tmp_path, config, "again")
    assert [stage(run, "base").key for run in (first, again)] == [stage(first, "base").key] * 2
    assert status(again, "base") == "reused"
    book.write_text(book.read_text("utf-8") + "One line more.\n", encoding="utf-8")
    changed = train(tmp_path, config, "changed")
    assert stage(changed, "tokenizer").key != stage(first, "tokenizer").key
    other = train(tmp_path, config, "other", seed=1)
    assert stage(other, "shards").key == stage(changed, "shards").key
    assert stage(other, "base").key != stage(changed, "base").key


def test_a_tokenizer_of_ones_own(tmp_path: Path, book: Path) -> None:
    train_from_texts(sentences(50), 310).save(tmp_path / "mine")
    run = train(tmp_path, replace(SMALL, data=(str(book),), tokenizer=str(tmp_path / "mine")))
    mine, used = (load_tokenizer(folder) for folder in (tmp_path / "mine", stage(run, "base").path / "model"))
    assert used.vocab_size == 310 and used.encode("the king weeps") == mine.encode("the king weeps")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("missing.txt", None, "cannot read .*missing.txt: No such file"),
        ("empty.txt", b"", "0 bytes, too few"),
        ("short.txt", b"hello", "too few for windows of 32"),
        ("chinese.txt", "中文\n".encode("gb18030") * 400, "not UTF-8 at byte 0"),
        ("late.txt", b"fine line\n" * 20_000 + b"\xff" + b"fine line\n" * 20_000, "not UTF-8 at byte 200000"),
        ("bad.jsonl", b'{"text": "a"}\n{"text": \n', "bad.jsonl:2 is not JSON"),
        ("field.jsonl", b'{"text": "a"}\n{"txt": "b"}\n', "field.jsonl:2 has no string field 'text'"),
        ("one.jsonl", b'{"text": "a"}\n', "1 documents, too few"),
    ],
)
def test_bad_files_are_told_in_one_line(tmp_path: Path, name: str, content: bytes | None, says: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DunwuError, match=says) as caught:
        train(tmp_path, replace(SMALL, data=(str(path),)))
    assert caught.value.cure and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"data": ()},
        {"held_out": 1.0},
        {"model": "9T"},
        {"vocab_size": 100},
        {"pretrain": PretrainConfig(dropout=1.0)},
        {"pretrain": PretrainConfig(rows=0)},
        {"pretrain": PretrainConfig(lr=-1e-3)},
        {"curve_tokens": 0},
    ],
)
def test_settings_that_cannot_work(tmp_path: Path, book: Path, change: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        train(tmp_path, replace(SMALL, **{"data": (str(book),), **change}))


def test_a_tokenizer_that_is_none(tmp_path: Path, book: Path) -> None:
    with pytest.raises(DunwuError, match="no tokenizer at"):
        train(tmp_path, replace(SMALL, data=(str(book),), tokenizer=str(tmp_path / "nothing")))


@pytest.mark.parametrize("preset", PRETRAIN_PRESETS.values())
def test_presets_work_but_for_the_data(preset: PretrainRunConfig) -> None:
    replace(preset, data=("x",)).validate()
    with pytest.raises(UsageError, match="--data"):
        preset.validate()

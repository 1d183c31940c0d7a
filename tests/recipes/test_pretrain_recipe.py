"""The recipe `pretrain` on small generated texts: through the run folder and the store, killed, and misused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
import zstandard
from tiny_runs import Killed, run_recipe, stage, status, timeless_metrics, weights

from dunwu.data.shards import ShardWriter, TokenFolder
from dunwu.data.tokenizer import load_tokenizer, train_from_texts
from dunwu.eval.report import write_report
from dunwu.log import read_json, read_metrics
from dunwu.model.hf import load_model
from dunwu.recipes import pretraining
from dunwu.recipes.configs import PRETRAIN_PRESETS, InContextConfig, PretrainRunConfig
from dunwu.train.config import PretrainConfig
from dunwu.types import DunwuError, UsageError

SMALL = PretrainRunConfig(
    model="tiny",
    vocab_size=300,
    pretrain=PretrainConfig(
        tokens=30 * 128, rows=4, context=32, warmup=3, lr=1e-2, dropout=0.1, log_every=5, eval_every=10, save_every=4
    ),
    curve_tokens=500,
    in_context=InContextConfig(windows=20, shots=(0, 2), problems=10),
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
    made = [load_model(base.path / "model").state_dict() for base in bases]
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
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


NEW = {field.name for field in fields(PretrainConfig) if "later" in field.metadata}
"""Settings that came after results were recorded."""


def test_settings_that_came_later_leave_old_results_found(tmp_path: Path, book: Path) -> None:
    """A setting at its default is not in a key: what was made before it existed is found again."""
    run = train(tmp_path, replace(SMALL, data=(str(book),)))
    key = read_json(run.dir / "stages" / "base.json")["config"]
    assert key.keys() == {"model", "pretrain", "seed", "dtype", "curve_tokens"}
    assert key["pretrain"].keys() == {field.name for field in fields(PretrainConfig)} - {"save_every"} - NEW
    assert read_json(run.dir / "stages" / "shards.json")["config"].keys() == {"files", "held_out"}
    assert read_json(run.dir / "stages" / "tokenizer.json")["config"].keys() == {
        "vocab_size",
        "bytes",
        "files",
        "held_out",
    }


@pytest.fixture
def crawl(tmp_path: Path, book: Path) -> Path:
    """A folder with records and shards, the tokenizer of the shards beside them."""
    folder = tmp_path / "crawl"
    tokenizer = train_from_texts(sentences(100), 300)
    tokenizer.save(folder / "tokenizer")
    writer = ShardWriter(folder / "shards", 300, tokenizer.end_id)
    writer.add([tokenizer.encode(text) for text in sentences(300, seed=5)])
    writer.close()
    text = "".join(json.dumps({"text": text}) + "\n" for text in sentences(200, seed=6))
    (folder / "records").mkdir()
    (folder / "records" / "0.jsonl.zst").write_bytes(zstandard.compress(text.encode()))
    return folder


MIXED = replace(SMALL, pretrain=replace(SMALL.pretrain, context_steps=((8, 0.5), (32, 0.5))))


def test_a_mixture_of_a_book_records_and_shards(tmp_path: Path, book: Path, crawl: Path) -> None:
    data = (f"book={book}:2", f"web={crawl}:1", f"more={crawl / 'records'}:1")
    run = train(tmp_path, replace(MIXED, data=data, in_context=replace(SMALL.in_context, curve=True)))
    figures, shards = stage(run, "shards").meta["metrics"], stage(run, "shards").path
    assert {path.name for path in (shards / "train").iterdir()} == {
        "book",
        "more",
    }  # the crawl's shards are read where they are
    held_out = TokenFolder(shards / "held-out" / "web")
    there = TokenFolder(crawl / "shards")
    assert figures["tokens/web"] + held_out.tokens == there.tokens
    assert held_out.read(0, 9999).tolist() == there.read(figures["tokens/web"], 9999).tolist()
    encoder = load_tokenizer(stage(run, "base").path / "model")
    assert (encoder.end_id == there.read(figures["tokens/web"] - 1, 1)).all()
    lines = [line for line in read_metrics(run.dir) if line["stage"] == "base"]
    assert [line["pretrain/context"] for line in lines] == [8, 8, 8, 32, 32, 32]
    assert {f"pretrain/valid_loss/{name}" for name in ("book", "web", "more")} <= lines[-1].keys()
    epochs = {name: lines[-1][f"pretrain/epochs/{name}"] for name in ("book", "web", "more")}
    sizes = {"book": TokenFolder(shards / "train" / "book").tokens, "web": figures["tokens/web"]}
    assert epochs["book"] * sizes["book"] / (epochs["web"] * sizes["web"]) == pytest.approx(
        2, rel=0.2
    )  # and windows' slack
    assert {"in_context/score", "in_context/accuracy/symbols/2", "in_context/loss/32"} <= lines[-1].keys()
    found = read_json(run.dir / "evidence.json")["in_context"]
    assert found["borders"] == [[0, 8], [15, 32]]
    assert found["loss"]["bins"][-1][1] == 32 and [p["shots"] for p in found["few_shot"]["sums"]] == [0, 2]
    assert "Loss by position" in write_report(run.dir).read_text("utf-8")


def test_a_killed_mixture_resumes_to_the_same_bits(
    tmp_path: Path, book: Path, crawl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(MIXED, data=(str(book), str(crawl)), temperature=2.0, epochs=5.0)
    whole = train(tmp_path / "whole", config)
    real = pretraining.pretrain

    def dying(*args: Any) -> Iterator[Any]:
        for step in real(*args):
            yield step
            if step.n == 15:  # where the context grows
                raise Killed

    monkeypatch.setattr(pretraining, "pretrain", dying)
    with pytest.raises(Killed):
        train(tmp_path / "killed", config)
    monkeypatch.setattr(pretraining, "pretrain", real)
    resumed = train(tmp_path / "killed", config)
    assert weights(whole, "base") == weights(resumed, "base")
    assert timeless_metrics(whole) == timeless_metrics(resumed)


def test_what_a_mixture_cannot_give_is_told_before_training(tmp_path: Path, book: Path, crawl: Path) -> None:
    with pytest.raises(DunwuError, match="the sources end after"):
        train(tmp_path, replace(MIXED, data=(str(book),), epochs=0.1))
    with pytest.raises(UsageError, match="has no weight"):
        train(tmp_path, replace(MIXED, data=(f"{book}:1", str(crawl))), "two")
    other = tmp_path / "other"
    train_from_texts(sentences(50, seed=9), 290).save(other / "tokenizer")
    writer = ShardWriter(other / "shards", 290, end_id=0)
    writer.add([[5] * 400] * 3)
    writer.close()
    with pytest.raises(UsageError, match="use one tokenizer"):
        train(tmp_path, replace(MIXED, data=(str(crawl), str(other))), "three")


def test_a_mixture_is_not_one_text(tmp_path: Path, book: Path) -> None:
    """Weights, temperature and caps make another base; the same again is found."""
    plain = replace(SMALL, data=(str(book),))
    runs = [train(tmp_path, replace(plain, **more), f"run{n}") for n, more in enumerate(CHANGES)]
    assert len({stage(run, "base").key for run in runs}) == len(runs)
    assert len({stage(run, "shards").key for run in runs}) == 2


CHANGES: list[dict[str, Any]] = [{}, {"epochs": 9.0}, {"temperature": 2.0}]


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
        {"temperature": 0.0},
        {"epochs": -1.0},
        {"in_context": InContextConfig(shots=())},
        {"in_context": InContextConfig(windows=-1)},
        {"in_context": InContextConfig(tasks=("riddles",))},
        {"pretrain": PretrainConfig(context_steps=((100, 0.5), (256, 0.5)))},
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

"""The recipe `rm` on a small model folder and a user's files: through run folder and store, killed, and misused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Literal

import pytest
from tiny_runs import Killed, bad_rows, run_recipe, save_folder, stage, timeless_metrics, tiny_model, undocumented

from dunwu.cli import main
from dunwu.data.tokenizer import train_from_texts
from dunwu.log import Run, read_metrics
from dunwu.model.hf import from_pretrained
from dunwu.model.lora_config import LoraConfig
from dunwu.recipes import rm
from dunwu.recipes.rm_config import RM_PRESETS, RmRunConfig
from dunwu.store import Artifact
from dunwu.train.ensemble import Ensemble
from dunwu.train.reward_model import Scorer, load_reward_model
from dunwu.types import DunwuError, Message, UsageError

THINGS = ("hat", "dog", "book", "river", "cup", "tree")
SMALL = RmRunConfig(
    rows=16, lr=3e-3, warmup=5, context=64, held_out=0.2, held_out_every=8, save_every=5, device="cpu"
)  # fmt: skip


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder as a user has one."""
    texts = [f"Tell me of {a} and {b}. Gladly, of {b}. Go away, no {a}." for a in THINGS for b in THINGS]
    encoder = train_from_texts(texts, 300)
    return save_folder(tmp_path_factory.mktemp("模型"), tiny_model(encoder), encoder)


def pairs(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Polite replies are chosen; the truth agrees, but in every tenth pair."""
    dice = Random(seed)
    rows = []
    for n in range(count):
        a, b = dice.choice(THINGS), dice.choice(THINGS)
        row = {"messages": [{"role": "user", "content": f"Tell me of {a} and {b} {n % 50}."}]}
        replies = {"chosen": f"Gladly, of {b}.", "rejected": f"Go away, no {a}."}
        row |= {name: {"role": "assistant", "content": text} for name, text in replies.items()}
        rows.append(row | {"meta": {"truth": [0.9, 0.2] if n % 10 else [0.1, 0.2]}})
    return rows


def labelled(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Replies whose thinking gives them away: only the whole view can tell."""
    dice = Random(seed)
    rows = []
    for n in range(count):
        safe = dice.random() < 0.5
        thought = "Gladly." if safe else "Go away."
        reply = {"role": "assistant", "content": "The cup.", "reasoning_content": thought}
        rows.append({"messages": [{"role": "user", "content": f"Tell me {n % 60}."}, reply], "meta": {"safe": safe}})
    return rows


def rankings(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Polite, then curt, then rude; in every fourth row the two last are tied."""
    dice = Random(seed)
    rows = []
    for n in range(count):
        a, b = dice.choice(THINGS), dice.choice(THINGS)
        replies: list[Any] = [f"Gladly, of {b}.", f"Of {b}.", f"Go away, no {a}."]
        if n % 4 == 0:
            replies = [replies[0], replies[1:]]
        row = {"messages": [{"role": "user", "content": f"Tell me of {a} and {b} {n % 50}."}], "replies": replies}
        rows.append(row | {"meta": {"truth": [0.9, 0.5, 0.1]}})
    return rows


def write(path: Path, rows: list[Any]) -> str:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return str(path)


train = partial(run_recipe, "rm")


def made(run: Run) -> Artifact:
    return stage(run, "rm")


def test_pairs_become_a_reward_model(tmp_path: Path, start: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = ["not json", {"messages": [{"role": "user", "content": "hi"}], "chosen": "a"}]
    long = pairs(1)[0] | {"chosen": {"role": "assistant", "content": "Gladly, of hat. " * 30}}
    same = pairs(1)[0] | {"rejected": pairs(1)[0]["chosen"] | {"reasoning_content": "Only the thought differs."}}
    odd = pairs(1)[0] | {"meta": {"truth": "high"}}
    data = write(tmp_path / "pairs.jsonl", [*pairs(5), *bad, long, same, odd, *pairs(400, seed=1)])
    run = train(tmp_path, replace(SMALL, model=str(start), data=(data,)))
    artifact = made(run)
    figures = artifact.meta["metrics"]
    assert figures["accuracy"] > 0.95 and figures["accuracy_low"] < figures["accuracy"]
    assert figures["rows"] + figures["held_out_rows"] + figures["length_dropped"] + figures["bad_rows"] == 410
    assert figures["bad_rows"] == 5
    assert 0.7 < figures["agreement_with_truth"] < 1.0  # the model followed the judge, who erred in a tenth

    said = capsys.readouterr()
    assert f"held-out accuracy {figures['accuracy']:.3f} [" in said.out
    shown = [line for line in said.err.splitlines() if " line " in line and data in line]
    assert [line.split(": ")[0].rpartition(" ")[2] for line in shown] == ["6", "7", "8", "9", "10"]
    for text, line in zip(
        ("not JSON", "rejected", "tokens, the context is 64", "same text", "truth"), shown, strict=True
    ):
        assert text in line
    assert [(row["file"], row["line"]) for row in bad_rows(run)] == [(data, n) for n in range(6, 11)]

    logged = list(read_metrics(run.dir))
    assert [line["step"] for line in logged] == list(range(1, figures["updates"] + 1))
    assert logged[-1]["rm/held_out_accuracy"] == pytest.approx(
        json.loads((artifact.path / "calibration.json").read_text())["accuracy"]["value"], abs=0.1
    )
    assert undocumented(run.dir / "metrics.jsonl") == set()
    assert not (artifact.path / "checkpoint.safetensors").exists()

    scorer = Scorer.load(artifact.path / "model")
    asked = Message("user", "Tell me of dog and cup.")
    polite, rude = scorer.normalised(
        scorer.score([[asked, Message("assistant", text)] for text in ("Gladly, of cup.", "Go away, no dog.")])
    )
    assert polite > 0 > rude and scorer.meaning.kind == "pairwise" and scorer.meaning.view == "summary"
    assert 0.5 < polite - rude < 4  # in standard deviations of the replies it was measured on


def test_labels_become_a_safety_model_that_reads_thoughts(tmp_path: Path, start: Path) -> None:
    unlabelled = labelled(1)[0] | {"meta": {}}
    data = write(tmp_path / "safety.jsonl", [unlabelled, *labelled(400)])
    run = train(tmp_path, replace(SMALL, model=str(start), data=(data,), kind="pointwise"))
    figures = made(run).meta["metrics"]
    assert figures["accuracy"] > 0.95 and figures["bad_rows"] == 1 and figures["length_dropped"] == 0
    report = json.loads((made(run).path / "calibration.json").read_text())
    assert report["accuracy_good"]["value"] > 0.9 and report["accuracy_bad"]["value"] > 0.9
    assert sum(b["n"] for b in report["bins"]) == figures["held_out_rows"]
    assert load_reward_model(made(run).path / "model")[1].view == "whole"
    blind = train(tmp_path, replace(SMALL, model=str(start), data=(data,), kind="pointwise", view="summary"), "blind")
    assert made(blind).meta["metrics"]["accuracy"] < 0.75  # the summaries are all alike


def test_rankings_become_a_model_that_judges_pairs(tmp_path: Path, start: Path) -> None:
    long = rankings(1)[0] | {"replies": ["Gladly.", "Gladly, of hat. " * 30]}
    same = rankings(1)[0] | {"replies": ["<think>a</think>\nGladly.", "<think>b</think>\nGladly."]}
    odd = rankings(2)[1] | {"meta": {"truth": [1, 0]}}
    data = write(tmp_path / "ranked.jsonl", [{"messages": []}, pairs(1)[0], long, same, odd, *rankings(400)])
    config = replace(SMALL, model=str(start), data=(data,), kind="ranking", length_tolerance=1.0)
    run = train(tmp_path, config)
    figures = made(run).meta["metrics"]
    assert figures["accuracy"] > 0.95 and figures["agreement_with_truth"] > 0.95 and figures["bad_rows"] == 5
    says = ("no field 'replies'", "no field 'replies'", "the context is 64", "same text", '"truth" is not 3 numbers')
    for row, text in zip(bad_rows(run), says, strict=True):
        assert text in row["reason"]
    report = json.loads((made(run).path / "calibration.json").read_text())
    assert report["rankings"] == figures["held_out_rows"] and report["pairs"] > 2 * report["rankings"]
    assert report["kendall"] > 0.9 and report["best_first"]["value"] > 0.95 and report["length_correlation"] is not None
    scorer = Scorer.load(made(run).path / "model")
    assert scorer.meaning.kind == "pairwise" and scorer.meaning.view == "summary"
    assert undocumented(run.dir / "metrics.jsonl") == set()
    chosen = train(tmp_path, replace(config, ranking="plackett-luce", centre="best"), "choices")
    assert made(chosen).meta["metrics"]["accuracy"] > 0.95 and made(chosen).key != made(run).key
    asked = Message("user", "Tell me of dog and cup.")
    scorer = Scorer.load(made(chosen).path / "model")
    polite, curt = scorer.normalised(
        scorer.score([[asked, Message("assistant", t)] for t in ("Gladly, of cup.", "Of cup.")])
    )
    assert abs(polite) < 0.5 and curt < polite - 0.5  # the best replies are the zero


@pytest.mark.parametrize(("rank", "members", "view"), [(0, 2, "summary"), (2, 1, "whole")])
def test_a_models_own_likelihood_becomes_the_judge(
    tmp_path: Path, start: Path, rank: int, members: int, view: Literal["summary", "whole"]
) -> None:
    data = write(tmp_path / "pairs.jsonl", pairs(200))
    settings = replace(SMALL, head="likelihood", members=members, bootstrap=members > 1, view=view, epochs=2)
    config = replace(settings, model=str(start), data=(data,), lora=LoraConfig(rank=rank))
    made = stage(run_recipe("rm", tmp_path, config), "rm")
    assert made.meta["metrics"]["accuracy"] > 0.8
    assert (made.path / "adapter").is_dir() == bool(rank)
    assert from_pretrained(made.path / "model").config.vocab_size  # a language model still
    judge = Ensemble.load(made.path)
    assert len(judge.scorers) == members and judge.meaning.head == "likelihood"
    asked = Message("user", "Tell me of hat and dog 3.")
    polite, rude = (Message("assistant", text) for text in ("Gladly, of dog.", "Go away, no hat."))
    thoughtful = replace(polite, reasoning_content="Go away, no hat.")
    scores = judge.score([[asked, polite], [asked, rude], [asked, thoughtful]])
    assert scores[0] > scores[1] and (scores[2] != scores[0]) == (view == "whole")


def test_margins_are_read_only_where_they_are_asked_for(tmp_path: Path, start: Path) -> None:
    rows = pairs(120)
    for n, row in enumerate(rows):
        row["meta"]["margin"] = n % 4
    rows[3]["meta"].pop("margin")
    data = write(tmp_path / "pairs.jsonl", rows)
    config = replace(SMALL, model=str(start), data=(data,), length_balance=False)
    plain = train(tmp_path, config, "plain")
    assert made(plain).meta["metrics"]["bad_rows"] == 0
    wide = train(tmp_path, replace(config, margin=1.0), "wide")
    assert [(row["line"], row["reason"].startswith("no margin")) for row in bad_rows(wide)] == [(4, True)]
    assert made(wide).key != made(plain).key


@pytest.mark.parametrize("bootstrap", [False, True])
def test_members_are_one_model_and_resume_bit_for_bit(
    tmp_path: Path, start: Path, monkeypatch: pytest.MonkeyPatch, bootstrap: bool
) -> None:
    data = write(tmp_path / "pairs.jsonl", pairs(130))
    config = replace(SMALL, model=str(start), data=(data,), length_balance=False, members=3, bootstrap=bootstrap)
    whole = train(tmp_path / "whole", config)
    figures, folder = made(whole).meta["metrics"], made(whole).path
    assert figures["members"] == 3 and figures["disagreement"] > 0
    names = [f"{name}/model.safetensors" for name in ("model", "model-1", "model-2")]
    assert len({(folder / name).read_bytes() for name in names}) == 3 and not list(folder.glob("checkpoint*"))
    assert {line["stage"] for line in read_metrics(whole.dir)} == {"rm", "rm/member-1", "rm/member-2"}
    ensemble = Ensemble.load(folder / "model")
    assert len(ensemble.scorers) == 3
    report = json.loads((folder / "calibration.json").read_text())
    assert len(report["member_accuracies"]) == 3 and report["disagreement"] == figures["disagreement"]
    if not bootstrap:  # the first is the model that would have been trained alone
        alone = made(train(tmp_path / "whole", replace(config, members=1), "alone")).path
        assert (alone / names[0]).read_bytes() == (folder / names[0]).read_bytes()

    real, started = rm.train_rm, []

    def dying(*args: Any) -> Iterator[Any]:
        started.append(args[5])
        for step in real(*args):
            yield step
            if step.n == 6 and len(started) == 2:
                raise Killed

    monkeypatch.setattr(rm, "train_rm", dying)
    with pytest.raises(Killed):
        train(tmp_path / "killed", config)
    resumed = train(tmp_path / "killed", config)
    last = figures["updates"]
    assert started == [0, 0, last, 5, 0]
    for file in (*names, "calibration.json", "model-1/reward_model.json"):
        assert (folder / file).read_bytes() == (made(resumed).path / file).read_bytes(), file
    assert sorted(map(str, timeless_metrics(whole))) == sorted(map(str, timeless_metrics(resumed)))


@pytest.mark.parametrize(("moment", "kind"), [(7, "pairwise"), (19, "pairwise"), (7, "ranking")])
def test_a_killed_run_resumes_to_the_same_bits(
    tmp_path: Path, start: Path, monkeypatch: pytest.MonkeyPatch, moment: int, kind: Any
) -> None:
    data = write(tmp_path / "rows.jsonl", pairs(380) if kind == "pairwise" else rankings(380))
    config = replace(SMALL, model=str(start), data=(data,), kind=kind, length_balance=False)
    whole = train(tmp_path / "whole", config)
    assert made(whole).meta["metrics"]["updates"] == 19
    real, started = rm.train_rm, []

    def dying(*args: Any) -> Iterator[Any]:
        started.append(args[5])
        for step in real(*args):
            yield step
            if step.n == moment and len(started) == 1:  # at the last one the checkpoint is saved, the artifact is not
                raise Killed

    monkeypatch.setattr(rm, "train_rm", dying)
    with pytest.raises(Killed):
        train(tmp_path / "killed", config)
    resumed = train(tmp_path / "killed", config)
    assert started == [0, moment // 5 * 5 if moment < 19 else 19]
    files = ("model/model.safetensors", "model/reward_model.json", "calibration.json", "bad_rows.jsonl")
    for file in files:
        assert (made(whole).path / file).read_bytes() == (made(resumed).path / file).read_bytes(), file
    assert timeless_metrics(whole) == timeless_metrics(resumed)


def test_the_same_data_is_not_learned_twice(tmp_path: Path, start: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write(tmp_path / "pairs.jsonl", ["[]", *pairs(60)])
    config = replace(SMALL, model=str(start), data=(data,))
    first = train(tmp_path, config)
    capsys.readouterr()
    again = train(tmp_path, config, "again")
    assert made(again).key == made(first).key
    assert f"{data} line 1: " in capsys.readouterr().err  # told again, though nothing was read
    assert (again.dir / "bad_rows.jsonl").read_bytes() == (first.dir / "bad_rows.jsonl").read_bytes()
    assert made(train(tmp_path, replace(config, held_out=0.3), "other")).key != made(first).key


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "hold no rows"),
        (["nonsense"], "none of the 1 rows can be used"),
        (pairs(1) * 4, "1 different conversations cannot be split"),
    ],
)
def test_files_without_use_are_told_in_one_line(tmp_path: Path, start: Path, rows: list[Any], says: str) -> None:
    data = write(tmp_path / "pairs.jsonl", rows)
    with pytest.raises(DunwuError, match=says) as caught:
        train(tmp_path, replace(SMALL, model=str(start), data=(data,)))
    assert caught.value.cure and "\n" not in str(caught.value)


def test_pairs_that_are_only_longer_are_refused(tmp_path: Path, start: Path) -> None:
    rows = [{"prompt": f"Tell me {n}", "chosen": "the dog " * 4, "rejected": "cup"} for n in range(30)]
    data = write(tmp_path / "pairs.jsonl", rows)
    config = replace(SMALL, model=str(start), data=(data,))
    with pytest.raises(DunwuError, match="balancing lengths left none"):
        train(tmp_path, config)
    train(tmp_path, replace(config, length_balance=False), "unbalanced")


def test_settings_that_cannot_work(tmp_path: Path, start: Path) -> None:
    data = write(tmp_path / "pairs.jsonl", pairs(4))
    good = replace(SMALL, model=str(start), data=(data,))
    for change in ({"model": ""}, {"data": ()}, {"save_every": 0}, {"held_out": 1.5}):
        with pytest.raises(UsageError):
            train(tmp_path, replace(good, **change))  # type: ignore[arg-type]
    with pytest.raises(DunwuError, match="context 5000 is longer than the model's 1024") as caught:
        train(tmp_path, replace(good, context=5000), "long")
    assert "--context 1024" in caught.value.cure
    with pytest.raises(DunwuError, match="cannot read"):
        train(tmp_path, replace(good, data=(str(tmp_path / "none.jsonl"),)), "none")
    for preset in RM_PRESETS.values():
        replace(preset, model="x", data=("y",)).validate()


def test_the_command_reads_its_flags(tmp_path: Path, start: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DUNWU_HOME", str(tmp_path / "home"))
    data = write(tmp_path / "safety.jsonl", labelled(40))
    words = ["run", "rm", "--preset", "tiny", "--model", str(start), "--data", data, "--kind", "pointwise"]
    assert main([*words, "--device", "cpu", "--out", str(tmp_path / "run")]) == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text("utf-8"))
    assert record["config"]["kind"] == "pointwise" and record["status"] == "done"
    assert main([*words[:5], "--data", data, "--kind", "listwise", "--out", str(tmp_path / "odd")]) == 2

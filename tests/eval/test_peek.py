"""Next-token tables: the softmax of the logits, distances by hand, a run's models in their order, columns that align."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dunwu.cli import main
from dunwu.data.chat import encode_prompt
from dunwu.data.tokenizer import Tokenizer, load_tokenizer, train_from_texts
from dunwu.eval.peek import distances, next_tokens, peek, subjects
from dunwu.eval.peek_view import peek_lines
from dunwu.log import Run
from dunwu.model.config import model_preset
from dunwu.model.hf import load_model, save_model
from dunwu.model.transformer import Transformer
from dunwu.progress import columns
from dunwu.store import Artifact, Store
from dunwu.types import Message, UsageError

TEXT = "the cat sat on "


def save(folder: Path, tokenizer: Tokenizer, seed: int, context: int = 64) -> Path:
    """A model folder whose model has opinions: its weights are wide."""
    shape = replace(model_preset("tiny", tokenizer.vocab_size), initializer_range=0.3, max_position_embeddings=context)
    model = Transformer(shape)
    model.init_weights(torch.Generator().manual_seed(seed))
    save_model(model, folder, tokenizer.end_id)
    tokenizer.save(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_from_texts(["the cat sat on the mat. 猫坐在垫子上。"] * 9, 300)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """Model folders a, b and c; d with another tokenizer; and the run `run`, with its store."""
    home = tmp_path_factory.mktemp("peek")
    for seed, name in enumerate("abc"):
        save(home / name, tokenizer, seed)
    save(home / "d", train_from_texts(["the dog ran on a mat, 猫在"] * 9, 310), 7)
    tell(home, tokenizer)
    return home


@pytest.fixture(autouse=True)
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    monkeypatch.setenv("DUNWU_HOME", str(home / "store"))
    monkeypatch.setenv("COLUMNS", "100")


def tell(home: Path, tokenizer: Tokenizer) -> None:
    """A run that makes models as r1 does: not in the alphabet's order, with data and a reward model between them."""
    with Run.open(home / "run", "demo", {}, 0, Store(home / "store")) as run:

        def stage(name: str, seed: int, *inputs: Artifact, reward: bool = False) -> Artifact:
            def build(work: Path) -> None:
                folder = save(work / "model", tokenizer, seed)
                if reward:
                    text = (folder / "config.json").read_text("utf-8")
                    (folder / "config.json").write_text(text.replace("ForCausalLM", "ForSequenceClassification"))

            return run.stage(name, build, {"seed": seed}, inputs)

        words = run.stage("tokenizer", lambda work: tokenizer.save(work / "model"), {})
        base = stage("base", 0, words)
        stage("r1-zero", 1, base)
        cold = run.stage("cold-start", lambda work: (work / "x").write_text("{}") and None, {})
        dev1 = stage("dev1", 2, base, cold)
        scores = stage("rm", 3, dev1, reward=True)
        dev2 = stage("dev2", 4, dev1, scores)
        small = stage("student", 5, words)
        stage("student-opd", 6, small, dev2)


def softmax(folder: Path, ids: Sequence[int]) -> list[float]:
    """By definition, from the model's logits."""
    logits = load_model(folder, dtype=torch.float32)(torch.tensor([list(ids)]))[0, -1].tolist()
    powers = [math.exp(logit - max(logits)) for logit in logits]
    return [power / math.fsum(powers) for power in powers]


def probabilities(folder: Path) -> list[float]:
    return softmax(folder, load_tokenizer(folder).encode(TEXT))


# ---- numbers


def test_the_table_is_the_softmax_of_the_logits_likeliest_first(home: Path, tokenizer: Tokenizer) -> None:
    expected = probabilities(home / "a")
    table = next_tokens(home / "a", TEXT, 5)
    assert [row["id"] for row in table] == sorted(range(len(expected)), key=lambda i: -expected[i])[:5]
    for row in table:
        assert row["probability"] == pytest.approx(expected[row["id"]], rel=1e-5)
        assert row["token"] == tokenizer.token(row["id"])
    whole = next_tokens(home / "a", TEXT, 10_000)
    assert len(whole) == tokenizer.vocab_size
    assert sum(row["probability"] for row in whole) == pytest.approx(1.0, abs=1e-9)


def test_the_table_is_that_of_transformers(home: Path, tokenizer: Tokenizer) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(home / "b", dtype=torch.float32)
    with torch.no_grad():
        expected = theirs(torch.tensor([tokenizer.encode(TEXT)])).logits[0, -1].double().softmax(-1)
    table = next_tokens(home / "b", TEXT, 8)
    assert [row["id"] for row in table] == expected.topk(8).indices.tolist()
    assert [row["probability"] for row in table] == pytest.approx(expected.topk(8).values.tolist(), rel=1e-4)


def test_in_a_turn_the_table_is_of_the_reply(home: Path, tokenizer: Tokenizer) -> None:
    expected = softmax(home / "a", encode_prompt(tokenizer, [Message("user", TEXT)]))
    first = peek(home / "a", TEXT, top=1, chat=True)["next"][0]
    assert first["probability"] == pytest.approx(max(expected), rel=1e-5)
    assert first["id"] == expected.index(max(expected))


def test_distances_by_hand() -> None:
    p, q = torch.tensor([0.5, 0.25, 0.25]).log(), torch.tensor([0.25, 0.5, 0.25]).log()
    variation, kl = distances(p, q)
    assert (variation, kl) == (pytest.approx(0.25), pytest.approx(0.25 * math.log(2)))
    assert distances(p, p) == (0.0, 0.0)
    there, back = (distances(a, b)[1] for a, b in ((p, torch.tensor([0.98, 0.01, 0.01]).log()), (q, p)))
    assert there == pytest.approx(0.5 * math.log(0.5 / 0.98) + 0.5 * math.log(25)) and there > back
    padded = torch.cat([q + math.log(0.9), torch.tensor([0.1]).log()])
    assert distances(p, padded) == (pytest.approx(0.25), pytest.approx(0.25 * math.log(2)))


def test_two_models_are_compared_over_the_whole_vocabulary(home: Path) -> None:
    a, b = probabilities(home / "a"), probabilities(home / "b")
    result = peek(home / "a", TEXT, 3, compare=home / "b")
    assert (result["model"], result["compare"]) == (str(home / "a"), str(home / "b"))
    assert [result["next"], result["compare_next"]] == [model["next"] for model in result["models"]]
    assert "total_variation" not in result["models"][0] and result["models"][0]["before"] is None
    second = result["models"][1]
    assert second["before"] == str(home / "a")
    assert second["total_variation"] == pytest.approx(sum(abs(x - y) for x, y in zip(a, b, strict=True)) / 2, rel=1e-4)
    assert second["kl"] == pytest.approx(sum(x * math.log(x / y) for x, y in zip(a, b, strict=True)), rel=1e-4)
    ids = {row["id"] for row in result["next"] + result["compare_next"]}
    assert {row["id"] for row in result["rows"]} == ids and len(result["rows"]) == len(ids)
    for row in result["rows"]:  # also where a token is not among a model's own three
        assert row["probabilities"] == pytest.approx([a[row["id"]], b[row["id"]]], rel=1e-4)
    highest = [max(row["probabilities"]) for row in result["rows"]]
    assert highest == sorted(highest, reverse=True)


def test_a_model_beside_itself_has_not_changed(home: Path) -> None:
    result = peek("a", TEXT, 4, compare=["a"])
    assert (result["models"][1]["total_variation"], result["models"][1]["kl"]) == (0.0, 0.0)
    assert not any(sign in line for line in peek_lines(result, 100)[2:] for sign in "+-")


def test_models_with_other_tokens_are_joined_by_text_and_have_no_distance(home: Path) -> None:
    result = peek("a", TEXT, 400, compare=["d", "c"])
    assert result["same_tokenizer"] is False
    assert not any("kl" in model or "total_variation" in model for model in result["models"])
    first, other = load_tokenizer(home / "a"), load_tokenizer(home / "d")
    expected = [probabilities(home / name) for name in "adc"]
    rows = {row["token"]: row["probabilities"] for row in result["rows"] if "\ufffd" not in row["token"]}
    assert set(rows) == {t.token(i) for t in (first, other) for i in range(t.vocab_size) if "\ufffd" not in t.token(i)}
    here, there = first.encode("</think>")[0], other.encode("</think>")[0]
    assert here != there
    assert rows["</think>"] == pytest.approx([expected[0][here], expected[1][there], expected[2][here]], rel=1e-4)
    assert rows["the cat"[3:]][1] is None and rows[" dog"][0] is rows[" dog"][2] is None and rows[" dog"][1] > 0
    bytes_a = [row for row in result["rows"] if "\ufffd" in row["token"]]  # half characters: by their bytes
    assert sum(None not in row["probabilities"] for row in bytes_a) >= 100
    for place, total in enumerate(map(math.fsum, expected)):
        shown = math.fsum(row["probabilities"][place] or 0.0 for row in result["rows"])
        assert shown == pytest.approx(total, rel=1e-4), "no token is lost or counted twice"


# ---- runs


def test_a_run_unfolds_into_its_language_models_each_beside_what_it_was(home: Path) -> None:
    result = peek("run", TEXT, 3)
    before = {model["stage"]: (model["before"] or ":").rpartition(":")[2] for model in result["models"]}
    assert list(before) == ["base", "r1-zero", "dev1", "dev2", "student", "student-opd"]
    assert before == {
        "base": "",
        "r1-zero": "base",
        "dev1": "base",
        "dev2": "dev1",
        "student": "",
        "student-opd": "student",
    }
    alone = peek("run:dev2", TEXT, 3)
    assert result["models"][3]["next"] == alone["next"]
    assert (alone["models"][0]["model"], alone["models"][0]["stage"]) == ("run:dev2", "dev2")
    pair = peek("run:dev1", TEXT, 3, compare="run:dev2")
    assert result["models"][3]["kl"] == pair["models"][1]["kl"] > 0


def test_a_model_a_run_was_given_stands_before_its_stages(home: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    with Run.open(tmp_path / "sft", "sft", {"model": str(home / "a"), "data": "x"}, 0, Store(home / "store")) as run:
        run.stage("sft", lambda work: save(work / "model", tokenizer, 11) and None, {"n": 1})
    found = subjects(["b", tmp_path / "sft"])
    assert [(subject.stage, subject.before) for subject in found] == [("", None), ("", 0), ("sft", 1)]
    assert [subject.folder for subject in found[:2]] == [Path("b"), home / "a"]


def test_a_stage_whose_files_are_gone_is_left_out_by_name(
    home: Path, tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Run.open(tmp_path / "r", "demo", {}, 0, Store(home / "store")) as run:
        kept = run.stage("kept", lambda work: save(work / "model", tokenizer, 12) and None, {"n": 2})
        gone = run.stage("gone", lambda work: save(work / "model", tokenizer, 13) and None, {"n": 3})
    gone.path.rename(tmp_path / "away")
    assert [subject.folder for subject in subjects([tmp_path / "r"])] == [kept.path / "model"]
    assert "left out gone, its files are gone" in capsys.readouterr().err
    kept.path.rename(tmp_path / "away too")
    with pytest.raises(UsageError, match=r"no stage of .* is a language model yet; its stages: kept, gone"):
        subjects([tmp_path / "r"])


# ---- the view


def offsets(line: str, cells: Sequence[str]) -> list[int]:
    """Display columns at which the cells of a line begin."""
    found, at = [], 0
    for cell in cells:
        at = line.index(cell, at)
        found.append(columns(line[:at]))
        at += len(cell)
    return found


def test_columns_align_whatever_the_tokens_are(home: Path) -> None:
    result = peek("a", TEXT, compare=["b", "c"])
    tokens = [
        " 猫",
        "\t",
        "e\u0301",
        "\U0001f600",
        "\ufffd",
        "\x1b[31m",
        " " * 60,
        "中文" * 20,
        "'",
        '"',
        "\u200d",
        "a",
    ]
    result["rows"] = [
        {"id": n**3, "token": token, "probabilities": [0.5, 0.5 - 0.04 * n, 0.25]} for n, token in enumerate(tokens)
    ]
    for model in result["models"]:
        model["next"] = [{"probability": 0.5}, {"probability": 0.0}]
    lines = peek_lines(result, 100)
    head, body = lines[2], lines[4 : 4 + len(tokens)]
    expected = offsets(head, ["token", "a", "b", "c"])
    for n, line in enumerate(body):
        assert offsets(line, [line.split()[1][0], "0.5000", f"{0.5 - 0.04 * n:.4f}", "0.2500"]) == expected
        assert line.isprintable() and "\u0301" not in line
    assert "+" in body[-1] and "-0.4400" in body[-1] and "-" not in body[0].split("0.5000")[1]
    assert max(map(columns, lines)) <= 100


@pytest.mark.parametrize("width", [1, 40, 60, 80, 200])
def test_what_has_no_room_goes_below(home: Path, width: int) -> None:
    result = peek("run", TEXT, 3)
    lines = peek_lines(result, width)
    text = "\n".join(lines)
    assert width < 60 or max(map(columns, lines)) <= width
    heads = [line.split()[2:] for line in lines if line.split()[:2] == ["id", "token"]]
    assert [label for head in heads for label in head] == [model["stage"] for model in result["models"]]
    assert len(heads) == {1: 6, 40: 6, 60: 3, 80: 2, 200: 1}[width]
    for model in result["models"]:
        assert all(f"{row['probability']:.4f}" in text for row in model["next"])
        assert "kl" not in model or f"{model['kl']:.4f}" in text


def test_models_of_one_name_are_numbered(home: Path) -> None:
    lines = peek_lines(peek("a", TEXT, 2, compare=["run:dev1", str(home / "a")]), 100)
    assert lines[1:4] == ["#1 a", "#2 run:dev1", f"#3 {home / 'a'}"]
    assert lines[5].split() == ["id", "token", "#1", "#2", "#3"]
    assert lines[6].split() == ["from", "#1", "from", "#2"]


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colour_on_a_terminal_unless_it_is_not_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = {}
    for no_colour in ("", "1"):
        monkeypatch.setenv("NO_COLOR", no_colour)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setattr(sys, "stdout", Screen())
        assert main(["peek", "a", TEXT, "--compare", "b", "--device", "cpu"]) == 0
        shown[no_colour] = sys.stdout.getvalue()  # type: ignore[attr-defined]
    assert "\x1b" not in shown["1"]
    assert all(code in shown[""] for code in ("\x1b[1m", "\x1b[31m-0.", "\x1b[32m+0."))
    for code in ("\x1b[0m", "\x1b[1m", "\x1b[31m", "\x1b[32m"):
        shown[""] = shown[""].replace(code, "")
    assert shown[""] == shown["1"]


# ---- the command


def asked(words: Sequence[str], capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["peek", "--json", "--device", "cpu", *words]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


@pytest.mark.parametrize(
    "words",
    [
        ["run:base", TEXT, "--compare", "run:dev1"],
        ["--compare", "run:dev1", "--top", "10", "--", "run:base", TEXT],
        ["run:base", "--top", "10", TEXT, "--compare", "run:dev1"],
        ["run:base", "--compare", "run:dev1", TEXT],
        ["run:base", "--compare", "run:dev1", "--top", "10", TEXT],
        ["--compare", "run:base", "run:dev1", TEXT],
        ["--compare", "run:base", "run:dev1", "--", TEXT],
        [TEXT, "--compare", "run:base", "run:dev1"],
        ["--text", TEXT, "--compare", "run:base", "run:dev1"],
        ["--compare", "run:base", "run:dev1", "--text", TEXT],
        ["run:base", "run:dev1", "--text", TEXT],
    ],
)
def test_words_in_any_sensible_order(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    result = asked(words, capsys)
    assert (result["model"], result["compare"], result["text"]) == ("run:base", "run:dev1", TEXT)
    assert len(result["next"]) == len(result["compare_next"]) == 10


def test_the_text_may_look_like_a_model_of_the_hub_or_like_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert asked(["a", "and/or"], capsys)["text"] == "and/or"
    assert asked(["a", "run"], capsys)["text"] == "run"
    assert asked(["and/or", "--compare", "a", "b"], capsys)["text"] == "and/or"
    assert asked(["--compare", "a", "b", "--text", "run"], capsys)["text"] == "run"
    assert asked(["--compare", "run", "~nobody: x"], capsys)["text"] == "~nobody: x"
    assert len(asked(["a", "--compare", "b", "run", "hi"], capsys)["models"]) == 8
    assert asked(["a", "hi", "--chat"], capsys)["chat"] is True


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no model"),
        (["hello"], "no model"),
        (["a"], "no text"),
        (["--compare", "a", "b"], "no text"),
        (["a", "--compare", "b"], "no text"),
        (["run"], "no text"),
        (["--compare", "a", "hello"], "a has nothing beside it"),
        (["a", "hello", "b"], "'b' is not understood"),
        (["a", "hello", "--compare"], "--compare"),
        (["a", ""], "the text is empty"),
        (["a", "hello", "--compare", "nowhere"], "no such folder: nowhere"),
        (["run:rm", "hello"], "run:rm is a reward model"),
        (["run:nothing", "hello"], "no stage 'nothing'"),
        (["a", "hello", "--top", "0"], "--top 0"),
        (["a", "the cat " * 200], "tokens, the context of a 64"),
        (["x" * 5000, "hello"], "name too long"),
        (["a", "\udce4"], "not UTF-8"),
        (["a", "hello", "--device", "abacus"], "'abacus'"),
    ],
)
def test_wrong_use_is_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["peek", *words]) == (1 if "too long" in said else 2)
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert said in err


def test_a_model_without_turns_or_of_broken_numbers_is_one_line(
    home: Path, tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save(tmp_path / "m", tokenizer, 1)
    spec = (folder / "tokenizer.json").read_text("utf-8").replace("<|im_start|>", "<|none|>")
    (folder / "tokenizer.json").write_text(spec, "utf-8")
    assert main(["peek", str(folder), "hi", "--chat"]) == 1
    assert "no <|im_start|> token" in capsys.readouterr().err
    model = load_model(folder)
    torch.nn.init.constant_(model.model.norm.weight, float("nan"))
    save_model(model, folder, tokenizer.end_id)
    assert main(["peek", str(folder), "hi"]) == 1
    assert "expects NaN or infinity (its weights are damaged" in capsys.readouterr().err

"""The recipe `distill` on small models made on the spot: all methods, bad rows, a kill, and what is refused."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict, replace
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import (
    Killed,
    bad_rows,
    run_recipe,
    save_folder,
    say_tokenizer,
    stage,
    timeless_metrics,
    tiny_model,
    undocumented,
    weights,
)

from dunwu.data.chat import prompt_ids, read_chat
from dunwu.data.tokenizer import load_tokenizer, train_from_texts
from dunwu.disk import canonical_json
from dunwu.log import Run, read_metrics, read_rollouts
from dunwu.model.hf import load_model
from dunwu.recipes import distill as recipe
from dunwu.recipes import get_recipe
from dunwu.recipes.distill_config import DISTILL_PRESETS, DistillRunConfig
from dunwu.recipes.distill_prompts import known_answers
from dunwu.store import Store
from dunwu.train.config import SftConfig
from dunwu.train.distill import LOSSES
from dunwu.train.distill_config import DistillConfig, DivergenceName
from dunwu.types import DunwuError, UsageError

SMALL = DistillRunConfig(
    samples=2,
    max_tokens=12,
    temperature=1.0,
    sft=SftConfig(epochs=2, context=64, batch_tokens=200, warmup=2, lr=1e-2),
    held_out=0.2,
    distill=DistillConfig(steps=4, problems=4, group_size=1, max_tokens=8, warmup=0, lr=1e-2),
    held_out_problems=4,
    eval_every=2,
    save_every=1,
    chunk=5,
    precision="fp32",
    device="cpu",
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(student, teacher); the teacher's replies end early, since its distribution is far from flat."""
    tokenizer = say_tokenizer()
    home = tmp_path_factory.mktemp("models")
    student, teacher = tiny_model(tokenizer), tiny_model(tokenizer, seed=1, spread=0.3)
    return save_folder(home / "student", student, tokenizer), save_folder(home / "teacher", teacher, tokenizer)


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """24 questions; line 2 is none, line 4 repeats line 1, line 6 is too long."""
    lines = [json.dumps({"question": f"say {n}"}) for n in range(24)]
    lines[1:1] = ["{"]
    lines[3:3] = [json.dumps({"messages": [{"role": "user", "content": "say 0"}]})]
    lines[5:5] = [json.dumps({"question": "7 " * 700})]
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


distil = partial(run_recipe, "distill")


# ---- on the teacher's texts


def test_teacher_answers_are_learned_and_nothing_is_silently_left_out(
    models: tuple[Path, Path], questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chats = tmp_path / "chats.jsonl"
    row = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "here"}]}
    chats.write_text(json.dumps(row) + "\n[]\n")
    config = replace(
        SMALL,
        student=str(models[0]),
        teacher=str(models[1]),
        prompts=(str(questions),),
        data=(str(chats),),
        max_tokens=99,
    )
    run = distil(tmp_path, config)
    asked, answers = stage(run, "prompts"), stage(run, "teacher-answers")
    assert asked.meta["metrics"] == {"prompts": 24, "bad_rows": 3}
    figures = answers.meta["metrics"]
    assert figures["answers"] == 48 == figures["kept"] + figures["cut_off"] + figures["empty"]
    assert figures["kept"] > 5 and figures["cut_off"] > 0
    rows, bad = read_chat(answers.path / recipe.CHAT)
    assert len(rows) == figures["kept"] and not bad
    told = [json.loads(line) for line in questions.read_text("utf-8").splitlines() if line != "{"]
    assert {row.messages[0].content for row in rows} <= {row.get("question") for row in told}
    assert all(row.meta["line"].startswith(f"{questions} line ") for row in rows)
    data = stage(run, "chat-data").meta["metrics"]
    assert data["rows"] == figures["kept"] + 2 == data["train"] + data["held_out"] + data["bad_rows"]
    lines = bad_rows(run)
    named = [(Path(row["file"]).name, row["line"]) for row in lines if Path(row["file"]).parent == tmp_path]
    assert named == [("questions.jsonl", 2), ("questions.jsonl", 4), ("questions.jsonl", 6), ("chats.jsonl", 2)]
    too_long = [row for row in lines if "sft.context" in row["reason"]]  # answers the student has no room for
    assert len(lines) == len(named) + len(too_long) == asked.meta["metrics"]["bad_rows"] + data["bad_rows"]
    said = capsys.readouterr().err
    assert f"{questions} line 4: the same" in said and "exceed the model's" in said
    trained = stage(run, "sft").path / "model"
    assert load_model(trained).config == load_model(models[0]).config
    assert not torch.equal(load_model(trained).head_weight, load_model(models[0]).head_weight)
    assert not undocumented(run.dir / "metrics.jsonl")


def test_a_server_can_teach_and_is_asked_only_once(models: tuple[Path, Path], questions: Path, tmp_path: Path) -> None:
    with server() as (url, requests):
        config = replace(
            SMALL, student=str(models[0]), teacher=url, teacher_name="big", prompts=(str(questions),), samples=1
        )
        run = Run.open(tmp_path / "run", "distill", asdict(config), 0, Store(tmp_path / "store"))
        requests.stop_after = 12
        with pytest.raises(DunwuError, match="status 400"), run:
            get_recipe("distill").load()(run, config)
        before = len(requests.seen)
        requests.stop_after = 1000
        run = distil(tmp_path, config)
        asked = [body["messages"][-1]["content"] for body in requests.seen]
        answered = 10  # two chunks of 5 were whole
        assert len(set(asked)) == 25 and len(asked) == before + 25 - answered
    rows, _ = read_chat(stage(run, "teacher-answers").path / recipe.CHAT)
    assert {row.messages[-1].reasoning_content for row in rows} == {"hm"}


def test_a_killed_teacher_goes_on_with_other_chunks(models: tuple[Path, Path], questions: Path, tmp_path: Path) -> None:
    with server() as (url, requests):
        config = replace(
            SMALL, student=str(models[0]), teacher=url, teacher_name="big", prompts=(str(questions),), samples=1
        )
        requests.stop_after = 12
        with pytest.raises(DunwuError, match="status 400"):
            distil(tmp_path, config)
        requests.stop_after = 1000
        run = distil(tmp_path, replace(config, chunk=3), "other")  # the store knows what was begun
    rows, _ = read_chat(stage(run, "teacher-answers").path / recipe.CHAT)
    asked = [problem.messages[-1].content for problem in recipe.read_prompts(stage(run, "prompts"))]
    assert [row.messages[0].content for row in rows] == asked and len(asked) == 25


def test_a_teacher_that_says_nothing_usable_is_an_error(
    models: tuple[Path, Path], questions: Path, tmp_path: Path
) -> None:
    config = replace(
        SMALL, student=str(models[0]), teacher=str(models[0]), prompts=(str(questions),), max_tokens=1, samples=1
    )
    with pytest.raises(DunwuError, match=r"24 answers cannot be used: \d+ cut off"):
        distil(tmp_path, config)


# ---- on the student's own texts


def on_policy(models: tuple[Path, Path], **changes: Any) -> DistillRunConfig:
    return replace(SMALL, method="on-policy", student=str(models[0]), teacher=str(models[1]), **changes)


def test_the_student_comes_nearer_on_a_files_questions(
    models: tuple[Path, Path], questions: Path, tmp_path: Path
) -> None:
    config = on_policy(models, prompts=(str(questions),), distill=replace(SMALL.distill, steps=60))
    run = distil(tmp_path, config)
    figures = stage(run, "distill").meta["metrics"]
    assert figures["reverse_kl"] < 0.8 * figures["reverse_kl_first"] and "held_out_accuracy" not in figures
    steps = [line for line in read_metrics(run.dir) if line["stage"] == "distill"]
    assert [line["step"] for line in steps] == list(range(1, 61)) and "distill/reward" not in steps[0]
    first_lap = [group["id"] for group in read_rollouts(run.dir)][:24]
    assert len(set(first_lap)) == 24  # every question once before any comes twice
    assert not undocumented(run.dir / "metrics.jsonl")


def test_conversations_lend_their_questions(models: tuple[Path, Path], tmp_path: Path) -> None:
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    chats = tmp_path / "chats.jsonl"
    chats.write_text(json.dumps({"messages": [{"role": role, "content": text} for role, text in turns]}) + "\n{}\n")
    run = distil(tmp_path, on_policy(models, data=(str(chats),), distill=replace(SMALL.distill, steps=1)))
    (problem,) = recipe.read_prompts(stage(run, "prompts"))
    assert [message.content for message in problem.messages] == ["a", "b", "c"]
    assert stage(run, "prompts").meta["metrics"]["bad_rows"] == 1


def test_a_task_is_scored_on_the_way(models: tuple[Path, Path], tmp_path: Path) -> None:
    run = distil(tmp_path, on_policy(models, task="countdown", options=("operands=3",)))
    held_out = [line["step"] for line in read_metrics(run.dir) if line["stage"] == "held-out"]
    assert held_out == [0, 2, 4]
    assert {"held_out_accuracy", "before", "reverse_kl", "steps"} <= stage(run, "distill").meta["metrics"].keys()
    assert not undocumented(run.dir / "metrics.jsonl")


@pytest.mark.parametrize("after", [1, 3, 4])
def test_a_killed_run_ends_with_the_same_weights_and_records(
    models: tuple[Path, Path], questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    config = on_policy(models, prompts=(str(questions),), save_every=2)
    whole = distil(tmp_path / "whole", config)
    log = Run.log

    def fall(self: Run, name: str, step: int, metrics: dict[str, float]) -> None:
        log(self, name, step, metrics)
        if (name, step) == ("distill", after):
            raise Killed

    monkeypatch.setattr(Run, "log", fall)
    with pytest.raises(Killed):
        distil(tmp_path / "killed", config)
    monkeypatch.setattr(Run, "log", log)
    resumed = distil(tmp_path / "killed", config)
    assert weights(whole, "distill") == weights(resumed, "distill")
    assert timeless_metrics(whole) == timeless_metrics(resumed)
    assert stage(whole, "distill").meta["metrics"] == stage(resumed, "distill").meta["metrics"]


# ---- on given texts with the teacher's distributions


def logit(models: tuple[Path, Path], **changes: Any) -> DistillRunConfig:
    return replace(on_policy(models), method="logit", **changes)


def test_sequence_is_what_sft_is_called_in_the_literature(models: tuple[Path, Path], tmp_path: Path) -> None:
    chats = tmp_path / "chats.jsonl"
    rows = [[("user", f"say {n}"), ("assistant", f"here is {n}")] for n in range(9)]
    turns = [{"messages": [{"role": role, "content": text} for role, text in row]} for row in rows]
    chats.write_text("".join(json.dumps(row) + "\n" for row in turns))
    config = replace(SMALL, student=str(models[0]), data=(str(chats),))
    one = distil(tmp_path, replace(config, method="sequence"), "one")
    other = distil(tmp_path, replace(config, method="sft"), "other")
    assert stage(one, "sft").key == stage(other, "sft").key


@pytest.mark.parametrize("divergence", ["forward", "jsd"])
def test_the_student_comes_nearer_on_the_teachers_answers(
    models: tuple[Path, Path], questions: Path, tmp_path: Path, divergence: DivergenceName, capsys: Any
) -> None:
    settings = replace(SMALL.distill, steps=40, divergence=divergence)
    run = distil(tmp_path, logit(models, prompts=(str(questions),), distill=settings))
    figures, name = stage(run, "distill").meta["metrics"], LOSSES[divergence]
    assert figures[name] < 0.8 * figures[f"{name}_first"]
    assert not list(read_rollouts(run.dir))  # nothing of it is the student's
    assert recipe.TITLES[name] in capsys.readouterr().out
    assert not undocumented(run.dir / "metrics.jsonl")


def test_conversations_are_read_with_the_teachers_eyes(models: tuple[Path, Path], tmp_path: Path) -> None:
    said = [("say 1", "here is 1"), ("say 1", "here"), ("say 1", "here"), ("say 2", "here is 2")]
    rows = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in said]
    rows[3]["messages"][1]["reasoning_content"] = "hm"
    chats = tmp_path / "chats.jsonl"
    chats.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = logit(models, data=(str(chats),), distill=replace(SMALL.distill, problems=2, steps=3))
    run = distil(tmp_path, config)
    asked = recipe.read_prompts(stage(run, "prompts"))
    assert [[answer["content"] for answer in problem.data["answers"]] for problem in asked] == [
        ["here is 1", "here"],
        ["here is 2"],
    ]
    assert [row["line"] for row in bad_rows(run)] == [3]  # the same question with the same answer
    encoder = load_tokenizer(models[0])
    known = known_answers(asked, encoder)
    assert [[encoder.decode(ids) for ids in answers] for answers in known.values()] == [
        ["here is 1<|im_end|>", "here<|im_end|>"],
        ["<think>hm</think>\nhere is 2<|im_end|>"],
    ]
    lengths = {len(ids) for ids in known[(*prompt_ids(encoder, asked[0]),)]}
    other = len(known[(*prompt_ids(encoder, asked[1]),)][0])
    trained = {line["distill/trained_tokens"] for line in read_metrics(run.dir) if line["stage"] == "distill"}
    assert trained <= {length + other for length in lengths}


@pytest.mark.parametrize("after", [1, 3])
def test_a_killed_mixture_ends_with_the_same_weights(
    models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    settings = replace(SMALL.distill, on_policy_share=0.5, divergence="jsd")
    config = on_policy(models, task="countdown", options=("operands=3",), distill=settings)
    whole = distil(tmp_path / "whole", config)
    shares = [line["distill/on_policy"] for line in read_metrics(whole.dir) if line["stage"] == "distill"]
    assert len(shares) == 4 and 0 < sum(shares) < 4
    log = Run.log

    def fall(self: Run, name: str, step: int, metrics: dict[str, float]) -> None:
        log(self, name, step, metrics)
        if (name, step) == ("distill", after):
            raise Killed

    monkeypatch.setattr(Run, "log", fall)
    with pytest.raises(Killed):
        distil(tmp_path / "killed", config)
    monkeypatch.setattr(Run, "log", log)
    resumed = distil(tmp_path / "killed", config)
    assert weights(whole, "distill") == weights(resumed, "distill")
    assert timeless_metrics(whole) == timeless_metrics(resumed)


def test_settings_at_their_defaults_leave_the_keys_of_artifacts_as_they_were() -> None:
    assert canonical_json(DistillConfig()).count(":") == 13
    assert "jsd_beta" in canonical_json(DistillConfig(jsd_beta=0.1))


# ---- what is refused


def test_models_with_other_tokens_are_refused(models: tuple[Path, Path], questions: Path, tmp_path: Path) -> None:
    tokenizer = train_from_texts(["quite another text, quite another"], 330)
    other = save_folder(tmp_path / "other", tiny_model(tokenizer), tokenizer)
    config = replace(on_policy(models, prompts=(str(questions),)), teacher=str(other))
    with pytest.raises(DunwuError, match="student and teacher have other tokens"):
        distil(tmp_path, config)


def test_prompts_that_do_not_fit_are_refused(models: tuple[Path, Path], tmp_path: Path) -> None:
    config = on_policy(models, task="countdown", distill=replace(SMALL.distill, max_tokens=1020))
    with pytest.raises(UsageError, match="exceed the models' 1024"):
        distil(tmp_path, config)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"student": ""}, "no student"),
        ({"task": "countdown"}, "reject"),
        ({"data": ()}, "nothing to learn from"),
        ({"prompts": ("p",)}, "nobody answers"),
        ({"teacher": "t"}, "asked nothing"),
        ({"teacher": "http://x", "prompts": ("p",)}, "--teacher_name"),
        ({"samples": 0}, "samples is 0"),
        ({"temperature": -1.0}, "temperature"),
        ({"held_out": 1.0}, "held_out"),
        ({"method": "on-policy"}, "no teacher"),
        ({"method": "on-policy", "teacher": "http://x"}, "distributions"),
        ({"method": "on-policy", "teacher": "t", "task": "countdown"}, "one source"),
        ({"method": "on-policy", "teacher": "t", "data": ()}, "one source"),
        ({"method": "on-policy", "teacher": "t", "options": ("a=1",)}, "belong to a task"),
        ({"method": "logit"}, "no teacher"),
        ({"method": "logit", "teacher": "t", "distill": DistillConfig(on_policy_share=0.5)}, "given texts only"),
        ({"method": "off-policy"}, "logit or on-policy"),
    ],
)
def test_settings_that_cannot_work_are_told_first(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        replace(DISTILL_PRESETS["tiny"], **({"student": "s", "data": ("d",)} | changes)).validate()


# ---- a chat server


class Requests:
    """What a server was asked, and after how many questions it refuses."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.stop_after = 1000


class server:
    """An OpenAI-compatible server that says "here"."""

    def __enter__(self) -> tuple[str, Requests]:
        requests = Requests()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                requests.seen.append(body)
                refuse = len(requests.seen) > requests.stop_after
                message = {"role": "assistant", "content": "here", "reasoning_content": "hm"}
                answer = {"choices": [{"message": message, "finish_reason": "stop"}]}
                payload = json.dumps({"error": "no more"} if refuse else answer).encode()
                self.send_response(400 if refuse else 200)
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.http.server_port}", requests

    def __exit__(self, *_: object) -> None:
        self.http.shutdown()
        self.http.server_close()

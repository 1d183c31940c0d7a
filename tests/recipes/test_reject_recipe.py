"""The recipe `reject`: a small model that was taught on the spot, a server that is made up, a judge; killed, and misused."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import Killed, bad_rows, run_recipe, save_folder, say_tokenizer, stage, status, tiny_model, undocumented

from dunwu.data.chat import encode_conversation, read_chat
from dunwu.recipes import reject as recipe
from dunwu.recipes.reject_config import RejectRunConfig
from dunwu.rollout.endpoint import Answer
from dunwu.rollout.selection import SelectionRules
from dunwu.rollout.verdicts import read_sections
from dunwu.train.config import SftConfig
from dunwu.train.optim import MasterAdamW
from dunwu.train.sft import sft
from dunwu.types import DunwuError, Message, SamplingParams, UsageError

TASK = """
def problems(split):
    first = {"train": 0, "valid": 7, "test": 14}[split]
    return [{"n": n, "language": "en"} for n in range(first, first + 7)]

def prompt(problem):
    return [{"role": "user", "content": f"say {problem['n']}"}]

def gold(problem):
    return f"here is {problem['n']}"

def score(problem, completion):
    return {"accuracy": float(completion == gold(problem))}
"""
MIXED = SelectionRules(per_prompt=2)


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says what it is asked to say, mostly."""
    tokenizer = say_tokenizer()
    model = tiny_model(tokenizer)
    talks = [[Message("user", f"say {n % 7}"), Message("assistant", f"here is {n % 7}")] for n in range(140)]
    config = SftConfig(epochs=4, context=64, batch_tokens=300, warmup=2, lr=1e-2)
    encoded = [encode_conversation(tokenizer, talk) for talk in talks]
    for _ in sft(model, MasterAdamW(model, config.betas), encoded, config, seed=0):
        pass
    return save_folder(tmp_path_factory.mktemp("model"), model, tokenizer)


@pytest.fixture
def config(taught: Path, tmp_path: Path) -> RejectRunConfig:
    task = tmp_path / "say.py"
    task.write_text(TASK, "utf-8")
    return RejectRunConfig(
        model=str(taught), task=str(task), problems=7, samples=6, max_tokens=12, chunk=2, rules=MIXED, device="cpu"
    )


go = partial(run_recipe, "reject")


def test_right_samples_of_a_local_model_become_chat_data(tmp_path: Path, config: RejectRunConfig) -> None:
    run = go(tmp_path, config)
    kept = stage(run, "reject")
    rows, bad = read_chat(kept.path / "chat.jsonl")
    assert bad == [] and len(rows) >= 3
    for row in rows:
        asked, said = row.messages
        assert said.content == asked.content.replace("say", "here is") and row.meta["language"] == "en"
    counts = json.loads((kept.path / "counts.json").read_text("utf-8"))
    dropped = {name: count for name, count in counts.items() if name.startswith("dropped/")}
    assert counts["samples"] == 42 == counts["kept"] + sum(dropped.values()) and counts["kept"] == len(rows)
    assert dropped["dropped/duplicate"] > 0
    assert max(Counter(row.messages[0].content for row in rows).values()) <= 2
    drawn = stage(run, "samples")
    lines = [json.loads(line) for line in (drawn.path / "samples.jsonl").read_text("utf-8").splitlines()]
    right = sum(sample["verdict"]["rewards"]["accuracy"] for line in lines for sample in line["samples"])
    assert drawn.meta["metrics"]["right"] == right > counts["kept"] and drawn.meta["metrics"]["samples"] == 42
    assert undocumented(run.dir / "metrics.jsonl") == set()


def test_other_rules_use_the_same_samples(tmp_path: Path, config: RejectRunConfig) -> None:
    go(tmp_path, config)
    other = go(tmp_path, replace(config, rules=SelectionRules(correct=False, per_prompt=6)), "other")
    assert [status(other, name) for name in ("problems", "samples", "reject")] == ["reused", "reused", "done"]
    assert stage(other, "reject").meta["metrics"].get("dropped/wrong") is None
    fewer = go(tmp_path, replace(config, samples=5), "fewer")
    assert [status(fewer, name) for name in ("problems", "samples", "reject")] == ["reused", "done", "done"]


@pytest.mark.parametrize("torn", [b"", b'{"problem": {"task": "say", "id"'])
def test_a_killed_run_ends_the_same(
    tmp_path: Path, config: RejectRunConfig, torn: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = go(tmp_path, config, "whole", store="store-a")
    chunks = recipe._chunk
    calls = 0

    def die(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise Killed
        return chunks(*arguments)

    monkeypatch.setattr(recipe, "_chunk", die)
    with pytest.raises(Killed):
        go(tmp_path, config, "killed", store="store-b")
    (saved,) = (tmp_path / "store-b").rglob("samples.jsonl")
    assert len(saved.read_bytes().splitlines()) == 4
    if torn:  # one line of the next chunk and a part of another had reached the disk
        saved.write_bytes(saved.read_bytes() + saved.read_bytes().splitlines(keepends=True)[0] + torn)
    resumed = go(tmp_path, config, "killed", store="store-b")
    assert calls == 3 + 2  # chunks 3 and 4
    for name, file in (("samples", "samples.jsonl"), ("reject", "chat.jsonl"), ("reject", "counts.json")):
        assert (stage(resumed, name).path / file).read_bytes() == (stage(whole, name).path / file).read_bytes()
    keys = [[json.loads(line)["step"] for line in (run.dir / "metrics.jsonl").open()] for run in (whole, resumed)]
    assert keys[0] == keys[1] == [2, 4, 6, 7]
    assert stage(resumed, "samples").meta["metrics"] == stage(whole, "samples").meta["metrics"]


# ---- servers and judges


class MadeUp:
    """Stands in for a server: `answer(model, conversation, seed)` → its reply."""

    def __init__(self, answer: Callable[[str, Sequence[Message], int], Message]) -> None:
        self.answer, self.asked = answer, Counter[str]()

    def __call__(self, url: str, model_name: str, concurrency: int = 1) -> Any:
        outer = self

        class Client:
            name = f"{url}#{model_name}"

            def complete(
                self, talks: Sequence[Sequence[Message]], seeds: Sequence[int], params: SamplingParams
            ) -> list[Answer]:
                outer.asked[model_name] += len(talks)
                return [Answer(outer.answer(model_name, talk, seed), "stop") for talk, seed in zip(talks, seeds)]

            def reply(
                self, talks: Sequence[Sequence[Message]], seeds: Sequence[int], params: SamplingParams
            ) -> list[Message]:
                return [answer.message for answer in self.complete(talks, seeds, params)]

        return Client()


def remote(path: Path, **more: Any) -> RejectRunConfig:
    known: dict[str, Any] = {"model": "http://host/v1", "model_name": "r1", "data": str(path), "samples": 2}
    return RejectRunConfig(**(known | more))


def test_a_judge_decides_where_no_rule_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "questions.jsonl"
    rows: list[Any] = [
        {"question": "Who wrote it?", "gold": "Ann"},
        {"messages": [{"role": "user", "content": "你好"}], "meta": {"family": "greeting"}},
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]},
        {"question": " "},
        {"question": "Who?", "gold": ["Ann"]},
        {"question": "Who wrote it?", "gold": "Ann"},
        ["no object"],
        {"question": "Hard to say?", "gold": 7},
        {"messages": [{"role": "wizard", "content": "hi"}]},
        {"question": "Wo?", "meta": {"language": "de"}},
    ]
    lines = [json.dumps(row, ensure_ascii=False).encode() for row in rows]
    data.write_bytes(b"\n".join([*lines, b"{broken", b'{"question": "\xff"}']) + b"\n")

    def answer(model: str, talk: Sequence[Message], seed: int) -> Message:
        if model == "r1":
            reply = {"Who wrote it?": "Ann" if seed % 2 else "Bob", "你好": "你好！"}.get(talk[-1].content, "7")
            return Message("assistant", reply, "I know this one." if reply != "你好！" else None)
        texts = dict(read_sections(talk[-1].content))
        if texts["user"] == "Hard to say?":
            return Message("assistant", "Hm.")
        right = texts.get("right answer", texts["reply"]) == texts["reply"]
        return Message("assistant", json.dumps({"analysis": "as said", "correct": right}))

    server = MadeUp(answer)
    monkeypatch.setattr(recipe, "Endpoint", server)
    run = go(tmp_path, remote(data, judge="http://host/v1", judge_name="judge", samples=4))
    kept, _ = read_chat(stage(run, "reject").path / "chat.jsonl")
    replies = {row.messages[0].content: row.messages[-1] for row in kept}
    assert replies["你好"] == Message("assistant", "你好！")
    assert set(replies) <= {"你好", "Who wrote it?"} and "Bob" not in {reply.content for reply in replies.values()}
    assert {row.messages[0].content: row.meta["language"] for row in kept}["你好"] == "zh"
    counts = stage(run, "reject").meta["metrics"]
    assert counts["samples"] == 12 and counts["dropped/not judged"] == 4
    assert stage(run, "samples").meta["metrics"]["not_judged"] == 4
    # A reply that is the same as another is judged once: Ann, Bob and 你好！, and 7 with its two more attempts.
    assert server.asked == {"r1": 12, "judge": 3 + 3}
    told = capsys.readouterr().err
    bad = bad_rows(run)
    assert [row["line"] for row in bad] == [3, 4, 5, 6, 7, 9, 10, 11, 12]
    for row in bad:
        assert f"{data} line {row['line']}: {row['reason']}" in told
    reasons = {row["line"]: row["reason"] for row in bad}
    assert "the same problem as line 1" in reasons[6] and "not UTF-8 at byte 14" in reasons[12]
    assert stage(run, "problems").meta["metrics"] == {"problems": 3, "bad_rows": 9}


@pytest.mark.parametrize("frame", ["chat", "zero"])
def test_countdown_rows_go_through_a_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frame: Any) -> None:
    data = tmp_path / "countdown.jsonl"
    rows: list[Any] = [
        {"nums": [3, 8], "target": 24},
        {"numbers": [8, 3], "target": 24},
        {"numbers": [3, 9], "target": 12, "language": "zh"},
        {"numbers": [3, "x"], "target": 12},
        {"numbers": [2, 2], "target": 4},
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    seen: list[str] = []

    def answer(model: str, talk: Sequence[Message], seed: int) -> Message:
        seen.append(talk[-1].content)
        said = "3*8" if "24" in talk[-1].content else "3+9" if "12" in talk[-1].content else "2-2"
        content = f"<answer>{said}</answer>" if frame == "zero" else f"It is <answer>{said}</answer>."
        return Message("assistant", content, f"{said}.")

    monkeypatch.setattr(recipe, "Endpoint", MadeUp(answer))
    run = go(tmp_path, remote(data, task="countdown", frame=frame))
    kept, _ = read_chat(stage(run, "reject").path / "chat.jsonl")
    assert [row.messages[0].content for row in kept] == [
        "Use 3, 8 once each with + - * / to make 24.",
        "用3、9各一次，加减乘除，得到12。",
    ]
    assert kept[0].messages[1].reasoning_content == "3*8." and "<answer>3*8</answer>" in kept[0].messages[1].content
    assert all(("<think>" in text) == (frame == "zero") for text in seen)
    assert "asked" not in kept[0].meta and kept[0].meta["task"] == "countdown"
    counts = stage(run, "reject").meta["metrics"]
    assert (counts["samples"], counts["dropped/duplicate"], counts["dropped/wrong"]) == (6, 2, 2)
    bad = bad_rows(run)
    assert [row["line"] for row in bad] == [2, 4]


@pytest.mark.parametrize("frame", ["chat", "zero"])
def test_school_word_problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frame: Any) -> None:
    data = tmp_path / "gsm.jsonl"
    rows = [{"question": "12 eggs and 6?", "answer": "12+6=18\n#### 18"}, {"question": "No answer?"}]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    said = Message("assistant", "<answer>18</answer>", "12+6 is eighteen.")
    monkeypatch.setattr(recipe, "Endpoint", MadeUp(lambda model, talk, seed: said))
    run = go(tmp_path, remote(data, task="gsm8k", frame=frame))
    (kept,), _ = read_chat(stage(run, "reject").path / "chat.jsonl")
    assert kept.messages[0].content.startswith("12 eggs and 6?") and kept.messages[1] == said
    assert stage(run, "problems").meta["metrics"] == {"problems": 1, "bad_rows": 1}


def test_a_judge_on_this_machine(tmp_path: Path, taught: Path) -> None:
    """The taught model is no judge: every verdict is unreadable, and every sample is counted so."""
    data = tmp_path / "q.jsonl"
    data.write_text('{"question": "say 3", "gold": "here is 3"}\n{"question": "say 4"}\n', "utf-8")
    judge = RejectRunConfig(
        model=str(taught), data=str(data), judge=str(taught), max_tokens=12, samples=3, device="cpu"
    )
    counts = stage(go(tmp_path, judge), "reject").meta["metrics"]
    assert counts["kept"] == 0 and counts["samples"] == 6
    assert counts["dropped/not judged"] + counts.get("dropped/cut off", 0) == 6


def test_a_prompt_too_long_for_the_model_is_a_bad_row(tmp_path: Path, config: RejectRunConfig) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"n": 1}\n{"n": "' + "7" * 3000 + '"}\n', "utf-8")
    run = go(tmp_path, replace(config, data=str(data)))
    (bad,) = bad_rows(run)
    assert bad["line"] == 2 and "exceed the model's" in bad["reason"]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"model": ""}, "no model"),
        ({"model": "http://host"}, "--model_name NAME"),
        ({"task": ""}, "no problems"),
        ({"task": "", "data": "x.jsonl"}, "nobody says"),
        ({"task": "", "data": "x.jsonl", "judge": "https://host"}, "--judge_name NAME"),
        ({"frame": "verse"}, "unknown frame"),
        ({"samples": 0}, "samples is 0"),
        ({"rules": SelectionRules(per_prompt=0)}, "per_prompt"),
        ({"task": "countdwn"}, "unknown task"),
        ({"task": "knights", "data": "x.jsonl"}, "draws its own"),
        ({"task": "gsm8k"}, "no questions of its own"),
        ({"model": "nowhere"}, "no such folder"),
    ],
)
def test_wrong_use_is_told_at_once(
    tmp_path: Path, config: RejectRunConfig, change: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(UsageError, match=complaint):
        go(tmp_path, replace(config, **change))


def test_no_usable_row_is_an_error(tmp_path: Path, config: RejectRunConfig) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("{broken\n", "utf-8")
    with pytest.raises(DunwuError, match="can be used"):
        go(tmp_path, replace(config, data=str(data)))
    with pytest.raises(DunwuError, match="cannot read"):
        go(tmp_path, replace(config, data=str(tmp_path / "absent.jsonl")), "absent")

"""`dunwu score`'s stream: a line out for each line in, whatever the line."""

from __future__ import annotations

import io
import json
import time
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from dunwu.tasks import get_task
from dunwu.tasks.score import score_stream
from dunwu.types import Problem, Verdict

TASK = get_task("countdown")
PROBLEM = {"numbers": [3, 7, 12], "target": 22}
GOOD = "<think>a</think><answer>3+7+12</answer>"


def scored(*lines: str | bytes) -> list[dict[str, Any]]:
    out = io.StringIO()
    counts = score_stream(TASK, lines, out)
    verdicts = [json.loads(line) for line in out.getvalue().splitlines()]
    assert counts.pop("lines") == len(lines) == len(verdicts) == sum(counts.values())
    for status, count in counts.items():
        assert count == sum(verdict["status"] == status for verdict in verdicts)
    return verdicts


def line(completion: object = GOOD, problem: object = PROBLEM) -> str:
    return json.dumps({"problem": problem, "completion": completion}) + "\n"


def test_the_documented_object() -> None:
    assert scored(line()) == [
        {"rewards": {"accuracy": 1.0, "format": 1.0}, "reward": 2.0, "status": "ok", "reason": None, "answer": "3+7+12"}
    ]


def test_order_is_kept_and_nothing_is_lost() -> None:
    bad: list[str | bytes] = [
        b"\xff\xfe\n",
        "{\n",
        "\n",
        "",
        "3\n",
        "null\n",
        "[]\n",
        '"x"\n',
        "[" * 100_000,
        "1" * 10_000,
        "\ufeff{}",
    ]
    bad += [
        "{}\n",
        line(problem=None),
        line(problem=[1]),
        line(completion=None),
        line(completion=3),
        '{"completion": "a"}',
    ]
    bad += [line(problem={}), line(problem={"numbers": [3], "target": 1e999}), '{"problem": NaN, "completion": "a"}']
    mixed: list[str | bytes] = []
    for item in bad:
        mixed += [line(), item, line("no answer").encode()]
    statuses = [verdict["status"] for verdict in scored(*mixed)]
    assert statuses == ["ok", "error", "unparsable"] * len(bad)


def test_errors_have_no_rewards_and_a_reason_of_one_line() -> None:
    for verdict in scored("{", b"\xff", "", "[" * 100_000, "[]", line(problem={}), line(completion=1)):
        assert (verdict["rewards"], verdict["reward"], verdict["answer"]) == ({}, 0.0, None)
        assert verdict["reason"]
        assert "\n" not in verdict["reason"]


def test_output_is_ascii_whatever_the_completion() -> None:
    out = io.StringIO()
    texts = [
        "\ud800",
        "等等\u2028\x85",
        "<answer>\ud800</answer>",
        "<answer>3×7＋12</answer>",
        "<answer>3+7+12−0</answer>",
    ]
    score_stream(TASK, [line(text) for text in texts], out)
    assert out.getvalue().isascii()
    assert len(out.getvalue().splitlines()) == len(texts)


def test_a_verifier_that_raises_is_an_error_and_the_stream_goes_on() -> None:
    class Broken:
        name = "broken"

        def score(self, problem: Problem, completion: str) -> Verdict:
            if completion == "bad":
                raise KeyError("x")
            return Verdict({"accuracy": 0.0}, 0.0)

    out = io.StringIO()
    counts = score_stream(Broken(), [line("bad"), line("good")], out)  # type: ignore[arg-type]
    assert (counts["error"], counts["ok"]) == (1, 1)
    assert "verifier raised KeyError" in out.getvalue()


@settings(deadline=None)
@given(st.lists(st.binary(max_size=60) | st.text(max_size=60), max_size=8))
def test_any_lines(lines: list[str | bytes]) -> None:
    assert all(verdict["status"] == "error" for verdict in scored(*lines))


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["numbers", "target", "x"]), inner),
        max_leaves=8,
    )
)
def test_any_problem(problem: object) -> None:
    (verdict,) = scored(line(problem=problem))
    assert verdict["rewards"].get("accuracy", 0.0) == 0.0


def test_speed() -> None:
    """The bar is 20,000 lines/s on one core; half of it here, so that a busy machine does not fail the suite."""
    lines = [
        line("<think>" + "12-7=5, 5*3=15, not 22. Wait, " * 15 + f"</think>\n<answer>{answer}</answer>").encode()
        for answer in ("3+7+12", "(12-7)*3", "12/7+3", "3*7")
        for _ in range(1000)
    ]
    start = time.process_time()
    score_stream(TASK, lines, io.StringIO())
    assert len(lines) / (time.process_time() - start) > 10_000

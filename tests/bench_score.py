"""Lines per second of `dunwu score --task countdown` on one core, JSON included: `python tests/bench_score.py`.

Completions are searches of 150 to 600 characters in R1's template, a third of them right, a tenth cut off.
Processor time, best of five; the bar is 20,000 lines/s.
"""

from __future__ import annotations

import io
import json
import random
import time

from dunwu.tasks import get_task, score_stream, solve


def make_lines(n: int, seed: int = 0) -> list[bytes]:
    """`n` lines as they come from standard input."""
    rng, task, lines = random.Random(seed), get_task("countdown"), []
    for index in range(n):
        data = task.problem("train", seed, index % 3000).data
        numbers, target = data["numbers"], data["target"]
        thinking, length = "", rng.randint(110, 560)
        while len(thinking) < length:
            a, b, c = rng.sample(numbers, 3)
            thinking += f"{a}-{b}={a - b}, {a - b}*{c}={(a - b) * c}, not {target}. Wait, "
        a, b, c = rng.sample(numbers, 3)
        answer = rng.choice((solve(numbers, target)[0], f"({a}-{b})*{c}", f"{a}+{b}/{c}"))
        completion = f"<think>{thinking}</think>\n<answer>{answer}</answer>"
        if rng.random() < 0.1:
            completion = completion[: len(completion) * 3 // 4]
        lines.append(json.dumps({"problem": dict(data), "completion": completion}).encode() + b"\n")
    return lines


def main() -> None:
    """Print the rate and what was scored."""
    lines = make_lines(20_000)
    best = float("inf")
    for _ in range(5):
        start = time.process_time()
        counts = score_stream(get_task("countdown"), lines, io.StringIO())
        best = min(best, time.process_time() - start)
    size = sum(map(len, lines)) / len(lines)
    print(json.dumps({"lines_per_second": round(len(lines) / best), "bytes_per_line": round(size), "counts": counts}))


if __name__ == "__main__":
    main()

"""Parts without a model: verifiers, tokenizer, world."""

from __future__ import annotations

import io
import itertools
import json
from random import Random
from typing import Any

from dunwu.bench import BenchConfig
from dunwu.bench.pairs import compare, rate
from dunwu.bench.subject import make_tokenizer
from dunwu.tasks import get_task, score_stream, solve
from dunwu.world.knobs import Knobs
from dunwu.world.web import pages


def bench_verify(config: BenchConfig) -> dict[str, Any]:
    """Lines/s of `dunwu score` for each task, JSON in and out included, one core."""
    count = 200 if config.quick else 20_000
    rows = []
    for task, lines in (("countdown", countdown_lines(count, config.seed)), ("math", math_lines(count, config.seed))):

        def score(task: str = task, lines: list[bytes] = lines) -> float:
            return float(sum(score_stream(get_task(task), lines, io.StringIO()).values()))

        figures = compare(lambda score=score: rate(score), None, config.pairs)  # type: ignore[misc]
        rows.append(
            {"case": task, "bytes_per_line": round(sum(map(len, lines)) / len(lines)), "peer_name": None} | figures
        )
    return {"unit": "lines/s", "rows": rows, "missing": {}, "versions": {}}


def countdown_lines(count: int, seed: int) -> list[bytes]:
    """Searches of 150 to 600 characters in R1's template, a third right, a tenth cut off, as they come on stdin."""
    rng, task, lines = Random(seed), get_task("countdown"), []
    for index in range(count):
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


def math_lines(count: int, seed: int) -> list[bytes]:
    """Short solutions that end in a boxed integer, fraction or decimal; half right."""
    rng, lines = Random(seed), []
    for _ in range(count):
        a, b = rng.randint(1, 99), rng.randint(2, 99)
        gold, said = rng.choice(((f"{a}", f"{a}.0"), (f"\\frac{{{a}}}{{{b}}}", f"{a}/{b}"), (f"{a / 4}", f"{a}/4")))
        said = said if rng.random() < 0.5 else f"{a + 1}/{b}"
        completion = f"<think>Dividing {a} by {b} …</think>\n<answer>The answer is \\boxed{{{said}}}.</answer>"
        record = {"problem": {"question": "How much?", "gold": gold}, "completion": completion}
        lines.append(json.dumps(record).encode() + b"\n")
    return lines


def bench_tokenize(config: BenchConfig) -> dict[str, Any]:
    """MB/s of encoding the world's pages one by one and in batches, and of decoding."""
    tokenizer = make_tokenizer()
    texts = [page.text for page in itertools.islice(pages(Knobs(), config.seed), 100 if config.quick else 20_000)]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    ids = tokenizer.encode_batch(texts)

    def one_by_one() -> float:
        for text in texts:
            tokenizer.encode(text)
        return megabytes

    def in_batches() -> float:
        tokenizer.encode_batch(texts)
        return megabytes

    def decoding() -> float:
        for row in ids:
            tokenizer.decode(row)
        return megabytes

    works = {"encode, one by one": one_by_one, "encode, in batches": in_batches, "decode": decoding}
    rows = [
        {"case": case, "peer_name": None} | compare(lambda work=work: rate(work), None, config.pairs)  # type: ignore[misc]
        for case, work in works.items()
    ]
    return {"unit": "MB/s", "rows": rows, "missing": {}, "versions": {}, "megabytes": round(megabytes, 2)}


def bench_world(config: BenchConfig) -> dict[str, Any]:
    """Pages/s of the generated web, one core: Countdown alone, and all that R1 needs."""
    from dunwu.recipes.r1_presets import WIDE

    count = 100 if config.quick else 5_000
    rows: list[dict[str, Any]] = []
    for case, knobs in (("countdown", Knobs()), ("all of R1's", WIDE)):
        size = [0]

        def make(knobs: Knobs = knobs, size: list[int] = size) -> float:
            made = [page.text for page in itertools.islice(pages(knobs, config.seed), count)]
            size[0] = sum(len(text.encode()) for text in made)
            return float(count)

        figures = compare(lambda make=make: rate(make), None, config.pairs)  # type: ignore[misc]
        row = {"case": case, "peer_name": None} | figures
        rows.append(row | {"mb_per_second": round(figures["ours"] * size[0] / count / 1e6, 2)})
    return {"unit": "pages/s", "rows": rows, "missing": {}, "versions": {}}

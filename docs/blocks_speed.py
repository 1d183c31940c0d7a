"""Blocks about speed: the recorded benchmarks as tables, in English or Chinese."""

from __future__ import annotations

from typing import Any

from blocks_results import Results, table

BENCHMARKS = (
    "grpo",
    "rollout",
    "train",
    "architectures",
    "control",
    "data",
    "tokenizer",
    "verify",
    "tokenize",
    "world",
)


def speed(results: Results) -> str:
    """Every recorded benchmark: its rows, its limits, where it comes from."""
    parts = [_benchmark(results, name) for name in BENCHMARKS]
    return "\n\n".join(part for part in parts if part) or results.missing


def _benchmark(results: Results, name: str) -> str:
    record = results.read(f"bench-{name}")
    if record is None:
        return ""
    say, result = results.say, record["result"]
    unit = result["unit"]
    header = [
        say("what", "项目"),
        unit,
        say("peer", "同类工具"),
        unit,
        say("ratio, least to largest of the pairs", "倍数，各对的最小到最大"),
    ]
    rows = [[_what(row), _number(row["ours"]), *_peer(row)] for row in result["rows"]]
    if any("gemm_share" in row for row in result["rows"]):
        header.append(say("share of the GEMM limit", "占矩阵乘上限"))
        rows = [
            [*cells, f"{row['gemm_share']:.0%}" if "gemm_share" in row else ""]
            for cells, row in zip(rows, result["rows"])
        ]
    gemm = ", ".join(f"{dtype} {rate:,.0f}" for dtype, rate in result["limits"]["gemm_gflops"].items())
    limits = say(
        f"Limits in the same run: matrix products {gemm} GFLOP/s, memory {result['limits']['bandwidth_gb_s']} GB/s.",
        f"同一次运行里的上限：矩阵乘 {gemm} GFLOP/s，内存 {result['limits']['bandwidth_gb_s']} GB/s。",
    )
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items() if version)
    growth = [
        say(
            f"By {what}: time grows with its power of {found['exponent']} ({_seconds(found)}).",
            f"随 {what}：时间按其 {found['exponent']} 次方增长（{_seconds(found)}）。",
        )
        for what, found in result.get("growth", {}).items()
    ]
    said = [
        table([header, *rows]),
        " ".join([limits, versions and f"{versions}.", *growth]).strip(),
        results.origin(record),
    ]
    return f"**`dunwu bench {name}`**\n\n" + "\n\n".join(said)


def _what(row: dict[str, Any]) -> str:
    named = [str(row[key]) for key in ("case", "work") if key in row]
    named += [f"{row['size']}"] if "size" in row else []
    named += [f"batch {row['batch']}"] if "batch" in row else []
    named += [f"mean {row['mean_tokens_ours']} and {row['mean_tokens_peer']}"] if "mean_tokens_peer" in row else []
    return ", ".join(named)


def _peer(row: dict[str, Any]) -> list[str]:
    if "ratio" not in row:
        return ["", "", ""]
    ratio = f"{row['ratio']:.1f} ({row['ratio_low']:.1f} … {row['ratio_high']:.1f})"
    return [row["peer_name"], _number(row["peer"]), ratio]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _seconds(found: dict[str, Any]) -> str:
    return ", ".join(f"{value}: {seconds:.2f} s" for value, seconds in found["seconds"].items())

"""`dunwu bench`: a benchmark, its limits beside it."""

from __future__ import annotations

import argparse

from dunwu.commands.command import SEED, Command, Result, arg, print_table


def _bench(args: argparse.Namespace) -> Result:
    from dunwu.bench import BenchConfig, run_benchmark

    return run_benchmark(
        args.name,
        BenchConfig(args.pairs, args.quick, not args.no_peers, args.seed, _device(args.device), tuple(args.size)),
    )


def _device(name: str) -> str:
    from dunwu.model.runtime import resolve_device

    return resolve_device(name)


def _show(result: Result) -> None:
    limits = result["limits"]
    gemm = ", ".join(f"{name} {rate:,.0f} GFLOP/s" for name, rate in limits["gemm_gflops"].items())
    print(f"machine  {result['machine']['cpu']}, {result['machine']['threads']} threads")
    print(f"limits   matrix products: {gemm}; memory {limits['bandwidth_gb_s']} GB/s\n")
    names = [key for key in result["rows"][0] if key in ("case", "work", "size", "batch", "tokens")]
    shares = any("gemm_share" in row for row in result["rows"])
    header = [*names, result["unit"], "peer", result["unit"], "ratio (least … largest)"]
    table = [header + (["of GEMM"] if shares else [])]
    for row in result["rows"]:
        cells = [str(row.get(name, "")) for name in names] + [f"{row['ours']:,.4g}"]
        if "ratio" in row:
            ratio = f"{row['ratio']:.2f} ({row['ratio_low']:.2f} … {row['ratio_high']:.2f})"
            cells += [row["peer_name"], f"{row['peer']:,.4g}", ratio]
        else:
            cells += ["", "", ""]
        table.append(cells + ([f"{row['gemm_share']:.0%}" if "gemm_share" in row else ""] if shares else []))
    print_table(table)
    for name, growth in result.get("growth", {}).items():
        seconds = ", ".join(f"{value}: {s:.2f} s" for value, s in growth["seconds"].items())
        print(f"\nby {name}: {seconds}; time grows with its power of {growth['exponent']}")
    for name, reason in result["missing"].items():
        print(f"\nnot measured: {name} ({reason})")


BENCH = Command(
    "measure speed, beside the machine's limits and installed peers",
    _bench,
    _show,
    (
        arg(
            "name",
            metavar="NAME",
            help="rollout, train, grpo, architectures, control, data, tokenizer, verify, tokenize or world",
        ),
        arg("--pairs", type=int, default=5, help="turns of ours and the peer's (5)"),
        arg("--quick", action="store_true", help="tiny sizes: shows that it works, measures nothing"),
        arg("--no-peers", action="store_true", help="leave installed peers out"),
        arg("--device", default="cpu", help="cpu, cuda or mps (cpu)"),
        arg(
            "--size",
            action="append",
            default=[],
            metavar="PRESET",
            help="another model size, e.g. 120M; train takes several, rollout and grpo the first",
        ),
        SEED,
    ),
)

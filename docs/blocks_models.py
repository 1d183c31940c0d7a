"""Blocks about models: what the presets are built of, and what was measured of architectures and of real shapes."""

from __future__ import annotations

from typing import Any

from blocks_results import Results, table

from dunwu.model.config import ARCHITECTURES, PRESETS, model_preset

SHOWN = ("0.8M", "12M", "120M")


def architectures(results: Results) -> str:
    """Weights of every architecture at some sizes, vocabulary 1,024."""
    say = results.say
    rows = [["`--arch`", *(f"{size}" for size in SHOWN), say("experts", "专家")]]
    for arch in ARCHITECTURES:
        configs = [model_preset(size, 1024, arch) for size in SHOWN if size in PRESETS]
        moe = configs[0].moe
        cells = [f"{c.active_parameters / 1e6:.2f}M / {c.num_parameters / 1e6:.2f}M" for c in configs]
        experts = "" if moe is None else say(f"{moe.per_token} of {moe.experts}", f"{moe.experts} 选 {moe.per_token}")
        if moe and moe.shared:
            experts += say(f", {moe.shared} shared", f"，共享 {moe.shared}")
        rows.append([f"`{arch}`", *cells, experts])
    return table(rows)


def arch_study(results: Results) -> str:
    """r1-zero dense and with experts: scores, load and cost, and the verdicts."""
    record = results.read("arch-study")
    if record is None:
        return results.missing
    say, found = results.say, record["result"]
    head = [
        say("architecture", "架构"),
        say("weights, a token's", "权重，每 token"),
        say("weights, all", "权重，全部"),
        say("base", "基座"),
        "R1-Zero",
        say("pretraining tokens/s", "预训练 token/s"),
        say("sampling and scoring tokens/s", "采样与评分 token/s"),
    ]
    rows = [head, *(_arch_row(row) for row in found["rows"])]
    verdicts = [[say("claim", "论断"), say("measured", "实测"), say("holds", "成立")]]
    verdicts += [
        [v["claim"], v["figure"], say("yes", "是") if v["holds"] else say("**no**", "**否**")]
        for v in found["verdicts"]
    ]
    return "\n\n".join([table(rows), table(verdicts), results.origin(record)])


def _arch_row(row: dict[str, Any]) -> list[str]:
    def share(found: dict[str, float]) -> str:
        return f"{found['value']:.3f} ({found['low']:.3f} – {found['high']:.3f})"

    return [
        f"`{row['arch']}`",
        f"{row['active_parameters']:,}",
        f"{row['parameters']:,}",
        share(row["base"]),
        share(row["result"]),
        f"{row['pretraining_tokens_per_second']:,.0f}",
        f"{row['rollout_tokens_per_second']:,.0f}",
    ]


def real_shapes(results: Results) -> str:
    """Checkpoints of real shapes: loading, a step with adapters, a step of all weights, what was reloaded."""
    record = results.read("real-shapes")
    if record is None:
        return results.missing
    say = results.say
    head = [
        say("shape", "形状"),
        say("weights", "权重"),
        say("load: peak / weights", "加载：峰值/权重"),
        say("LoRA step", "LoRA 一步"),
        say("step of all weights", "全参一步"),
        say("reloaded − saved", "重新加载的差"),
    ]
    rows = [head]
    for name, found in record["result"]["shapes"].items():
        layers = found.get("full_layers", "").split(":")[0]
        part = say(f", {layers} layers", f"，{layers} 层") if layers else ""
        rows.append(
            [
                f"{name}, {found['parameters'] / 1e6:,.0f}M",
                f"{found['load']['weights_mb']:,.0f} MB",
                f"{found['load']['ratio']:.3f}",
                _step(found["lora"]),
                _step(found["full"]) + part,
                f"{max(found['lora again']['reloaded'], found['full again']['reloaded']):g}",
            ]
        )
    return "\n\n".join([table(rows), results.origin(record)])


def _step(found: dict[str, float]) -> str:
    return f"{found['step_seconds']:.1f} s, {found['peak_mb'] / 1000:.1f} GB"


def extension(results: Results) -> str:
    """The demonstration of `dunwu run extend`, as its run folder's page has it."""
    from dunwu.eval.extension import page

    record = results.read("extend")
    if record is None:
        return results.missing
    _, _, tables = page(record["result"]).partition("\n")
    return "\n\n".join([tables.strip(), results.origin(record)])

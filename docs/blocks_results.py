"""Blocks about a run: recorded measurements as tables, sentences and a picture, in English or Chinese."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from string import Formatter
from typing import Any

from dunwu.model.config import model_preset
from dunwu.recipes.configs import R1_ZERO_PRESETS
from dunwu.types import DunwuError

STUDY, PICTURE = "r1-zero-study", "r1-zero.svg"

ZH_CONTROLS = {
    "random reward": "随机奖励",
    "format reward only": "只奖励格式",
    "base without search pages": "网页里没有搜索的基座",
}


class Results:
    """The recorded measurements of one folder, in one language."""

    def __init__(self, folder: Path, chinese: bool) -> None:
        self.folder, self.chinese = folder, chinese

    def read(self, name: str) -> dict[str, Any] | None:
        """A record, or None if nothing was recorded under that name."""
        file = self.folder / f"{name}.json"
        return json.loads(file.read_text("utf-8")) if file.exists() else None

    def say(self, english: str, chinese: str) -> str:
        """The words of the page's language."""
        return chinese if self.chinese else english

    @property
    def missing(self) -> str:
        """What stands where a figure is not there yet."""
        return self.say("not measured yet", "尚未测量")

    def origin(self, record: Mapping[str, Any]) -> str:
        """Where a record comes from, as one small line."""
        where = record["machine"]
        short = str(record["commit"])[:7] + ("-dirty" if str(record["commit"]).endswith("-dirty") else "")
        return self.say(
            f"<sub>`{record['command']}`, {where['cores']} cores of {where['cpu']}, {where['memory_gib']} GiB; "
            f"commit {short}, {record['date']}.</sub>",
            f"<sub>`{record['command']}`；{where['cpu']} 的 {where['cores']} 个核，内存 {where['memory_gib']} GiB；"
            f"提交 {short}，{record['date']}。</sub>",
        )


Block = Callable[[Results], str]


def from_study(block: Callable[[Results, Mapping[str, Any]], str]) -> Block:
    """A block over the study's record; without one it says so."""

    def or_missing(results: Results) -> str:
        record = results.read(STUDY)
        return f"*{results.missing}*" if record is None else block(results, record)

    return or_missing


def output(name: str) -> Block:
    """What a command printed, whole."""

    def block(results: Results) -> str:
        record = results.read(name)
        if record is None:
            return f"*{results.missing}*"
        return f"```text\n{record['result']['output'].rstrip()}\n```\n{results.origin(record)}"

    return block


def picture(results: Results) -> str:
    """Score and length of a run, as an image."""
    if not (results.folder / PICTURE).exists():
        return f"*{results.missing}*"
    words = results.say(
        "Held-out score above, response length below, over the steps of reinforcement learning",
        "横轴是强化学习的步数；上：留出题得分，下：回答长度",
    )
    return f"![{words}](docs/results/{PICTURE})"


@from_study
def results_table(results: Results, record: Mapping[str, Any]) -> str:
    """The claim with its controls in one table."""
    say, study = results.say, record["result"]
    over, seeds = study["over_seeds"], study["seeds"]
    rows = [[say("held-out pass@1", "留出题 pass@1"), say("base", "基座"), "R1-Zero", say("change", "变化")]]
    name = say(f"**mean of {len(seeds)} seeds** (95% interval)", f"**{len(seeds)} 个种子的均值**（95% 区间）")
    rows.append(
        [name, *(interval_text(over[key]) for key in ("base", "result")), interval_text(over["difference"], "+")]
    )
    for seed in seeds:
        rows.append([say(f"seed {seed['seed']}", f"种子 {seed['seed']}"), *_ends(seed)])
    for control in study["controls"]:
        rows.append([_control(results, control), *_ends(control)])
    if (harder := _both(study, "four_operands")) is not None:
        rows.append([say("four numbers, seed of the run", "四个数（本次运行的种子）"), *_ends(harder)])
    return f"{table(rows)}\n\n{results.origin(record)}"


@from_study
def behaviour_table(results: Results, record: Mapping[str, Any]) -> str:
    """Length and behaviours of the base and of R1-Zero."""
    say, study = results.say, record["result"]
    rows = [[say("per response", "每个回答"), say("base", "基座"), "R1-Zero"]]
    names = (
        ("length_all", "tokens", "token 数"),
        ("length_right", "tokens, right answers", "token 数（答对的）"),
        ("length_wrong", "tokens, wrong answers", "token 数（答错的）"),
        ("true_checks", "true checks", "真检验"),
        ("false_checks", "false checks", "假检验"),
        ("backtracks", "backtracks", "回溯"),
        ("subgoals", "subgoals set", "子目标"),
        ("backward_chains", "steps back from the target", "从目标倒推"),
        ("distinct_expressions", "different expressions tried", "试过的不同算式"),
        ("reflection_words", "reflection words (wait, but, 不对…)", "反思词（等等、不对、wait…）"),
    )
    ends = _both(study, "behaviours") or {"base": {}, "result": {}}
    for key, english, chinese in names:
        pair = [ends[end].get(f"emergence/{key}") for end in ("base", "result")]
        if key == "length_all" and "length" in study:
            pair = [study["length"]["base"], study["length"]["result"]]
        if None not in pair:
            rows.append(
                [say(english, chinese), *(f"{value:.0f}" if "length" in key else f"{value:.2f}" for value in pair)]
            )
    return table(rows) if len(rows) > 1 else f"*{results.missing}*"


@from_study
def verdict_table(results: Results, record: Mapping[str, Any]) -> str:
    """Each claim, whether it holds, and the figure that decides."""
    say, study = results.say, record["result"]
    words = {True: say("yes", "成立"), False: say("**no**", "**不成立**"), None: say("open", "未定")}
    rows = [[say("claim", "论断"), say("holds", "成立吗"), say("figure", "数字")]]
    for verdict in study["verdicts"]:
        claim = verdict["claim"]
        if results.chinese:
            for english, chinese in (
                ("Mean base", "基座均值"),
                ("Mean R1-Zero", "R1-Zero 均值"),
                ("Mean gain", "平均提升"),
            ):
                claim = claim.replace(english, chinese)
        rows.append([claim, words[verdict["holds"]], verdict["figure"]])
    for control in study["controls"]:
        if control.get("expected"):
            rows.append(
                [f"{_control(results, control)}: {control['expected']}", words[control["holds"]], _ends(control)[2]]
            )
    return table(rows)


MEASURED = (
    ("time-r1", "`make r1` from a fresh clone, installation included", "`make r1`（新克隆的仓库，含安装）",
     "{minutes:.0f} min", "{minutes:.0f} 分钟"),
    ("time-r1-zero", "`make r1-zero`, packages installed", "`make r1-zero`（依赖已装好）",
     "{minutes:.1f} min, {rl_minutes:.1f} of them RL", "{minutes:.1f} 分钟，其中强化学习 {rl_minutes:.1f} 分钟"),
    ("time-smoke", "`make smoke`", "`make smoke`", "{seconds:.0f} s", "{seconds:.0f} 秒"),
    ("time-test", "`make test`", "`make test`", "{minutes:.1f} min", "{minutes:.1f} 分钟"),
    ("kill-resume", "`kill -9` at random moments, resumed: files or metrics that differ from an unkilled run’s",
     "随机时刻 `kill -9` 后续跑：与没被杀过的运行不同的文件或指标",
     "{differences}, after {kills} kills in {runs} runs", "{differences} 处（{runs} 次运行，共杀 {kills} 次）"),
    ("kill-resume-r1", "the same for the whole of R1, at toy size", "同上，R1 全程，玩具规模",
     "{differences}, after {kills} kills in {runs} runs", "{differences} 处（{runs} 次运行，共杀 {kills} 次）"),
    ("kill-resume-ppo", "the same for PPO", "同上，PPO",
     "{differences}, after {kills} kills in {runs} runs", "{differences} 处（{runs} 次运行，共杀 {kills} 次）"),
    ("kill-resume-dpo", "the same for DPO", "同上，DPO",
     "{differences}, after {kills} kills in {runs} runs", "{differences} 处（{runs} 次运行，共杀 {kills} 次）"),
    ("kill-resume-rlhf", "the same for RLHF, at toy size", "同上，RLHF，玩具规模",
     "{differences}, after {kills} kills in {runs} runs", "{differences} 处（{runs} 次运行，共杀 {kills} 次）"),
    ("bench-verify", "`dunwu score`, one core", "`dunwu score`，单核", "{rows[0][ours]:,.0f} lines/s", "每秒 {rows[0][ours]:,.0f} 行"),
    ("bench-grpo", "a GRPO step of 512 samples, beside TRL’s", "一步 GRPO（512 条样本），与 TRL 相比",
     "{rows[0][ratio]:.0f}×", "{rows[0][ratio]:.0f} 倍"),
    ("bench-rollout", "sampling 512 × 128 tokens, beside transformers’ `generate`", "采样 512 × 128 个 token，与 transformers 的 `generate` 相比",
     "{rows[3][ratio]:.0f}×, {rows[3][ours]:,.0f} tokens/s", "{rows[3][ratio]:.0f} 倍，每秒 {rows[3][ours]:,.0f} token"),
    ("fuzz", "fuzzed completions against an independent verifier", "模糊测试：与另一份独立实现的判分对照",
     "{cases:,} cases, {wrong} wrong verdicts, slowest {slowest_ms:.1f} ms", "{cases:,} 例，判错 {wrong} 例，最慢 {slowest_ms:.1f} 毫秒"),
    ("shakespeare", "tinyshakespeare from scratch, last tenth held out", "从零训练 tinyshakespeare，最后一成留出",
     "{metrics[bits_per_byte]:.2f} bits per byte after {minutes:.1f} min", "{minutes:.1f} 分钟后每字节 {metrics[bits_per_byte]:.2f} 比特"),
    ("memory", "peak memory at 10× the corpus over 1×; of an update at 10× the vocabulary", "语料 10 倍时的内存峰值，与 1 倍相比；词表 10 倍时更新的峰值",
     "pages {world[ratio]:.2f}, files {files[ratio]:.2f}, training {training[ratio]:.2f}; update {update[ratio]:.2f}",
     "网页 {world[ratio]:.2f}，文件 {files[ratio]:.2f}，训练 {training[ratio]:.2f}；更新 {update[ratio]:.2f}"),
)  # fmt: skip
"""Record, what was measured (en, zh), and the figure: templates over its `result`, in which seconds are there as
minutes, too, and a list shows its length."""


class _Counted(list[Any]):
    def __format__(self, spec: str) -> str:
        return format(len(self), spec)


def measured_table(results: Results) -> str:
    """The small measurements, a line each."""
    say = results.say
    rows = [[say("what", "项目"), say("measured", "测得"), say("command", "命令")]]
    for name, english, chinese, figure, figure_zh in MEASURED:
        record = results.read(name)
        if record is None:
            rows.append([say(english, chinese), results.missing, ""])
            continue
        values = {key: _Counted(value) if isinstance(value, list) else value for key, value in record["result"].items()}
        for key in [key for key in values if key.endswith("seconds")]:
            values[key.replace("seconds", "minutes")] = values[key] / 60
        try:
            text = say(figure, figure_zh).format(**values)
        except LookupError as error:
            raise DunwuError(f"docs/results/{name}.json: result has no {error}", "see docs/results/README.md") from None
        rows.append([say(english, chinese), text, f"`{record['command']}`"])
    return table(rows)


def records_table(results: Results) -> str:
    """Which figures each small record must hold."""
    rows = [["record", "keys of its result", "what it says"]]
    for name, english, _, figure, _ in MEASURED:
        keys = [key.replace("minutes", "seconds") for _, key, _, _ in Formatter().parse(figure) if key]
        rows.append([f"`{name}`", ", ".join(f"`{re.sub(r'[][]+', '.', key).rstrip('.')}`" for key in keys), english])
    return table(rows)


def settings_table(results: Results) -> str:
    """The default run in a few lines, read from its preset."""
    say, config = results.say, R1_ZERO_PRESETS["cpu"]
    right, form = config.task.accuracy_weight, config.task.format_weight
    grpo, shape = config.grpo, model_preset(config.model, config.vocab_size)
    rows = [
        [say("the default run", "默认配置"), ""],
        [
            say("model", "模型"),
            say(
                f"{shape.num_parameters / 1e6:.2f}M parameters: {shape.num_layers} layers, width {shape.hidden_size}",
                f"{shape.num_parameters / 1e6:.2f}M 参数：{shape.num_layers} 层，宽 {shape.hidden_size}",
            ),
        ],
        [say("tokenizer", "分词器"), say(f"byte-level BPE, {config.vocab_size:,} tokens", f"字节级 BPE，{config.vocab_size:,} 个 token")],
        [say("pretraining", "预训练"), say(f"{config.pretrain.tokens / 1e6:g}M tokens of generated pages", f"{config.pretrain.tokens / 1e6:g}M 个 token 的生成网页")],
        [
            say("reinforcement learning", "强化学习"),
            say(
                f"GRPO, {grpo.steps} steps of {grpo.problems} problems × {grpo.group_size} samples, at most {grpo.max_tokens} tokens each",
                f"GRPO，{grpo.steps} 步，每步 {grpo.problems} 题 × {grpo.group_size} 个样本，每个最多 {grpo.max_tokens} 个 token",
            ),
        ],
        [
            say("reward", "奖励"),
            say(
                f"{right:g} if the answer is exactly right, plus {form:g} if the format is",
                f"答案完全正确得 {right:g}，格式正确再得 {form:g}",
            ),
        ],
    ]  # fmt: skip
    return table(rows)


def doors(results: Results) -> str:
    """The layers of the import contract, from pyproject.toml."""
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8")
    layers = re.search(r"^layers = (\[.*?^\])", text, re.DOTALL | re.MULTILINE)
    if layers is None:
        raise DunwuError("pyproject.toml has no layers", "see the import-linter contract")
    return "\n".join(["```text", *ast.literal_eval(layers[1]), "```"])


def _control(results: Results, control: Mapping[str, Any]) -> str:
    return results.say(f"control: {control['name']}", f"对照：{ZH_CONTROLS.get(control['name'], control['name'])}")


def _both(study: Mapping[str, Any], key: str) -> dict[str, Any] | None:
    """{"base", "result"} of something the study carries itself, or its first and last checkpoint do."""
    if key in study:
        return dict(study[key])
    ends = [checkpoint.get(key) for checkpoint in study.get("checkpoints", [{}])]
    return None if ends[0] is None or ends[-1] is None else {"base": ends[0], "result": ends[-1]}


def _ends(record: Mapping[str, Any]) -> list[str]:
    """Base, result and change of a record whose two figures are numbers or intervals."""
    base, result = record["base"], record["result"]
    return [interval_text(base), interval_text(result), f"{_value(result) - _value(base):+.3f}"]


def _value(figure: Any) -> float:
    return float(figure["value"] if isinstance(figure, Mapping) else figure)


def interval_text(figure: Any, sign: str = "", digits: int = 3) -> str:
    """0.712 (0.684 … 0.739), the ends only where they are known."""
    shape = f"{sign}.{digits}f"
    text = f"{_value(figure):{shape}}"
    if isinstance(figure, Mapping) and figure.get("low") is not None and figure.get("high") is not None:
        text += f" ({figure['low']:{shape}} … {figure['high']:{shape}})"
    return text


def table(rows: Sequence[Sequence[str]]) -> str:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = ["| " + " | ".join(row) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])

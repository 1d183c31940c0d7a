"""Blocks about the whole of R1: the stage table, its claims, students, seeds, cost; and the settings beside the paper's."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from blocks_results import Block, Results, interval_text, table

from dunwu.eval.stages import LENGTH, STORY
from dunwu.model.config import model_preset
from dunwu.recipes.r1_presets import R1_PRESETS
from dunwu.types import DunwuError

STUDY, TIME = "r1-study", "time-r1"
ABLATION = "no language reward"
PRESET = "cpu"

ZH_COLUMNS = {
    "reasoning": "推理",
    "reasoning_hard": "推理：难题",
    "reasoning_easy": "推理：易题",
    "language": "语言一致",
    "language_zh": "语言一致：中文题",
    "format": "格式",
    "length": "长度（token）",
    "instruction": "指令遵循",
    "helpful": "有用",
    "safety": "安全",
    "facts": "事实",
}
EN_COLUMNS = {
    "reasoning_hard": "Reasoning, hard",
    "reasoning_easy": "Reasoning, easy",
    "language_zh": "Language, Chinese prompts",
    "length": "Length in tokens",
}
"""Columns whose own titles need their neighbours."""
ARMS = {
    "base": ("base, not taught", "基座，未教"),
    "sft": ("SFT on R1's data", "用 R1 的数据微调"),
    "rl": ("RL alone", "只用强化学习"),
    "opd": ("on-policy distillation", "同策略蒸馏"),
}
ZH_CLAIMS = (
    (r"Cold start raises instruction following.*", "冷启动提高指令遵循（Dev1 高于 R1-Zero）"),
    (r"Cold start lowers reasoning.*", "冷启动降低推理（Dev1 低于 R1-Zero）"),
    (r"Reasoning RL recovers it \(.*at most (\S+) .*", "推理强化学习把它找回来（Dev2 高于 Dev1，且比 R1-Zero 低不超过 {}）"),
    (r"Mixed SFT broadens .* more than (\S+)\)", "混合微调拓宽能力（Dev3 有一项通用指标高于 Dev2；通用指标和推理的降幅都不超过 {}）"),
    (r"The final RL lifts preference.*", "最终强化学习提高偏好（R1 的有用和安全都高于 Dev3）"),
    (r"The final RL hardly moves reasoning \(R1 within (\S+) .*", "最终强化学习几乎不动推理（R1 与 Dev3 相差不超过 {}）"),
    (r"R1 beats Dev1 by at least (\S+) .*", "留出推理题上 R1 比 Dev1 至少高 {}"),
    (r"The language reward keeps consistency at (\S+);.*", "语言奖励把一致性保持在 {}；没有它就下降"),
    (r"The helpful reward model agrees .* on (\S+) of.*", "有用奖励模型在留出的对子上与真相一致 {}"),
    (r"Distillation beats RL .*", "在小学生上，蒸馏胜过强化学习"),
    (r"On-policy distillation beats .*", "在小学生上，同策略蒸馏既胜过微调也胜过强化学习"),
    (r"Over (\d+) seeds: cold start lowers reasoning", "{} 个种子：冷启动降低推理"),
    (r"Over (\d+) seeds: reasoning RL recovers it \(.*at most (\S+) .*", "{} 个种子：推理强化学习把它找回来（Dev2 高于 Dev1，且比 R1-Zero 低不超过 {}）"),
    (r"Over (\d+) seeds: the final RL hardly moves it", "{} 个种子：最终强化学习几乎不动推理"),
    (r"Over (\d+) seeds: R1 beats Dev1 by (\S+)", "{} 个种子：R1 比 Dev1 高 {}"),
    (r"Over (\d+) seeds: the helpful reward model agrees .* on (\S+) of.*", "{} 个种子：有用奖励模型在留出的对子上与真相一致 {}"),
)  # fmt: skip
"""A claim of `dunwu.eval.verdicts` (a pattern) and its Chinese."""


def from_record(name: str) -> Callable[[Callable[[Results, Mapping[str, Any]], str]], Block]:
    """Makes a block over a record's whole text; without the record it says so."""

    def decorate(block: Callable[[Results, Mapping[str, Any]], str]) -> Block:
        def or_missing(results: Results) -> str:
            record = results.read(name)
            return f"*{results.missing}*" if record is None else block(results, record)

        return or_missing

    return decorate


# ---- what came out ----------------------------------------------------------------


@from_record(STUDY)
def stage_table(results: Results, record: Mapping[str, Any]) -> str:
    """A row for every figure, a column for every model of the story, as the paper draws its Table 3."""
    study, say = record["result"], results.say
    models = {m["name"]: m["scores"] for m in study["models"] if m["name"] in STORY}
    if not models:
        raise DunwuError(f"docs/results/{STUDY}.json names no model of the story", "record a run's stages.json")
    rows = [[say("held out", "留出题"), *(model if model != "base" else say("base", "基座") for model in models)]]
    for column in study["columns"]:
        key = column["key"]
        cells = [_cell(scores.get(key), key) for scores in models.values()]
        rows.append([say(EN_COLUMNS.get(key, column["title"]), ZH_COLUMNS.get(key, column["title"])), *cells])
    asked = [score["n"] for scores in models.values() for score in scores.values()]
    note = say(
        f"All but the length are shares, 0 to 1; below each its 95% interval over problems ({min(asked)} to {max(asked)} a figure). Seed {_seed(record)}.",
        f"除长度外都是 0 到 1 的比例；下面是对题目算的 95% 区间（每个数字 {min(asked)} 到 {max(asked)} 题）。种子 {_seed(record)}。",
    )
    return f"{table(rows)}\n\n<sub>{note}</sub>\n\n{results.origin(record)}"


@from_record(STUDY)
def seed_table(results: Results, record: Mapping[str, Any]) -> str:
    """Held-out reasoning of every run of the study, and the mean over them."""
    study, say = record["result"], results.say
    seeds, over = study.get("seeds") or [], study.get("over_seeds") or {}
    if not seeds:
        return f"*{results.missing}*"
    means = [("reasoning", "all", "全部"), ("reasoning_hard", "hard", "难题"), ("reasoning_easy", "easy", "易题")]
    rows = [
        [
            say("held-out reasoning", "留出推理题"),
            *(say(f"seed {seed['seed']}", f"种子 {seed['seed']}") for seed in seeds),
            *(say(f"mean, {english}", f"均值，{chinese}") for _, english, chinese in means),
        ]
    ]
    for name in (name for name in STORY if name in over):
        own = [_number(seed["scores"].get(name, {}).get("reasoning")) for seed in seeds]
        rows.append([name if name != "base" else say("base", "基座"), *own, *(_cell(over[name].get(k)) for k, _, _ in means)])  # fmt: skip
    one_base = "base_seed" in record["command"]
    ground = say("all on one base", "同一个基座") if one_base else say("each with a base of its own", "各有自己的基座")
    note = say(
        f"{len(seeds)} runs, {ground}; intervals are Student's t over the runs.",
        f"{len(seeds)} 次运行，{ground}；区间是对运行算的 t 区间。",
    )
    return f"{table(rows)}\n\n<sub>{note}</sub>"


@from_record(STUDY)
def verdict_table(results: Results, record: Mapping[str, Any]) -> str:
    """Each claim of the paper's shape: yes, NO or open, the figure that decides, and why not."""
    say = results.say
    words = {True: say("yes", "成立"), False: say("**NO**", "**不成立**"), None: say("open", "未定")}
    rows = [[say("claim", "论断"), say("holds", "成立吗"), say("figure", "数字"), say("if not, the likely reason", "若否，可能的原因")]]  # fmt: skip
    for verdict in record["result"]["verdicts"]:
        reason = re.sub(r"^(?:not reproduced|open): ", "", verdict.get("reason", ""))
        claim = chinese_claim(verdict["claim"]) if results.chinese else verdict["claim"]
        rows.append([claim, words[verdict["holds"]], verdict["figure"], reason])
    note = say(
        "A claim holds or fails only if the whole 95% interval is on one side. The reasons are rules' guesses from the table, not diagnoses.",
        "整个 95% 区间都在一边，才算成立或不成立。原因是规则按表猜的（原文英文），不是诊断。",
    )
    return f"{table(rows)}\n\n<sub>{note}</sub>"


@from_record(STUDY)
def student_table(results: Results, record: Mapping[str, Any]) -> str:
    """The students: sizes and arms, beside R1."""
    study, say = record["result"], results.say
    keys = [key for key in ("reasoning", "instruction", "helpful", "safety", "facts") if _has(study, key)]
    titles = {column["key"]: column["title"] for column in study["columns"]}
    heads = [say(titles[key], ZH_COLUMNS[key]) for key in keys]
    rows = [[say("student", "学生"), say("arm", "教法"), *heads, say("minutes", "分钟")]]
    for student in study.get("students") or []:
        arm = say(*ARMS[student["arm"]])
        minutes = f"{student['seconds'] / 60:.1f}" if student.get("seconds") is not None else ""
        rows.append([student["size"], arm, *(_cell(student["scores"].get(key)) for key in keys), minutes])
    if len(rows) == 1:
        return f"*{results.missing}*"
    teacher = next((model for model in study["models"] if model["name"] == "R1"), None)
    if teacher is not None:
        rows.append(
            [say("R1, the teacher", "R1（老师）"), "", *(_cell(teacher["scores"].get(key)) for key in keys), ""]
        )
    return table(rows)


@from_record(STUDY)
def language_table(results: Results, record: Mapping[str, Any]) -> str:
    """Reasoning RL with and without the language reward."""
    study, say = record["result"], results.say
    scores = {model["name"]: model["scores"] for model in study["models"]}
    if ABLATION not in scores:
        return f"*{results.missing}*"
    steps = {name: curve[-1][0] for name, curve in study["language_ablation"].items()}
    named = [
        ("Dev1", say("Dev1, before", "Dev1（之前）")),
        ("Dev2", say(f"Dev2, {steps['with']} steps with the reward", f"Dev2（有奖励，{steps['with']} 步）")),
        (ABLATION, say(f"{steps['without']} steps without it", f"没有奖励，{steps['without']} 步")),
    ]
    keys = ("language", "language_zh", "reasoning")
    titles = [say(english, ZH_COLUMNS[key]) for key, english in zip(keys, ("language", "language, Chinese prompts", "reasoning"), strict=True)]  # fmt: skip
    rows = [[say("model", "模型"), *titles]]
    rows += [[title, *(_cell(scores[name].get(key)) for key in keys)] for name, title in named if name in scores]
    return table(rows)


@from_record(STUDY)
def reward_table(results: Results, record: Mapping[str, Any]) -> str:
    """The reward models on held-out rows."""
    study, say = record["result"], results.say
    rows = [
        [
            say("reward model", "奖励模型"),
            say("rows", "行数"),
            say("held-out accuracy", "留出准确率"),
            say("agreement with the truth", "与真相一致"),
            say("calibration error", "校准误差"),
        ]
    ]
    for model in study.get("reward_models") or []:
        name = say(model["name"], {"helpful": "有用", "safety": "安全"}.get(model["name"], model["name"]))
        known = _cell(model["agreement"]) if model.get("agreement") else ""
        rows.append([name, str(model["rows"]), _cell(model["accuracy"]), known, f"{model['ece']:.3f}"])
    return table(rows) if len(rows) > 1 else f"*{results.missing}*"


@from_record(TIME)
def cost_table(results: Results, record: Mapping[str, Any]) -> str:
    """Minutes of every stage."""
    say, stages = results.say, record["result"]["stages"]
    rows = [[say("stage", "阶段"), say("minutes", "分钟")]]
    rows += [[f"`{stage}`", f"{seconds / 60:.1f}"] for stage, seconds in stages.items() if seconds >= 6]
    short = [seconds for seconds in stages.values() if seconds < 6]
    if short:
        rows.append([say(f"{len(short)} shorter ones", f"另外 {len(short)} 个"), f"{sum(short) / 60:.1f}"])
    return f"{table(rows)}\n\n{results.origin(record)}"


# ---- what was set ------------------------------------------------------------------


PAPER = (
    ("1. R1-Zero", "1. R1-Zero", (
        ("steps", "步数", "10,400", "zero.steps"),
        ("questions a step", "每步题数", "32", "zero.problems"),
        ("samples a question (G)", "每题样本数 G", "16", "zero.group_size"),
        ("longest sample, tokens", "最长样本（token）", "32,768, later 65,536", "zero.max_tokens"),
        ("temperature", "温度", "1", "zero.temperature"),
        ("learning rate", "学习率", "3e-6", "zero.lr"),
        ("KL coefficient", "KL 系数", "0.001", "zero.kl_coef"),
        ("minibatches of a rollout batch", "一批样本分几次更新", "16", "zero.minibatches"),
    )),
    ("2. cold start → Dev1", "2. 冷启动 → Dev1", (
        ("examples", "例子", "thousands", "cold_start.examples"),
        ("epochs", "轮数", "2 to 3", "cold_sft.epochs"),
        ("learning rate", "学习率", "5e-5, cosine to 5e-6", "cold_sft.lr"),
        ("last rate, share of the peak", "末尾学习率（占峰值）", "0.1", "cold_sft.final_lr"),
    )),
    ("3. reasoning RL → Dev2", "3. 推理强化学习 → Dev2", (
        ("steps", "步数", "not printed", "reasoning.steps"),
        ("weight of the language reward", "语言奖励的权重", "1", "language_weight"),
        ("temperature", "温度", "1", "reasoning.temperature"),
        ("upper clip ε", "截断上界 ε", "10", "reasoning.clip_high"),
    )),
    ("4. rejection sampling", "4. 拒绝采样", (
        ("reasoning : general", "推理 : 通用", "600k : 200k = 3", "rejection.ratio"),
        ("samples a prompt", "每题样本数", "several", "rejection.samples"),
        ("prompts", "题数", "not printed", "rejection.problems"),
    )),
    ("5. SFT of the base → Dev3", "5. 微调基座 → Dev3", (
        ("epochs", "轮数", "2 to 3", "sft.epochs"),
        ("learning rate", "学习率", "5e-5, cosine to 5e-6", "sft.lr"),
        ("longest example, tokens", "最长例子（token）", "32,768", "sft.context"),
    )),
    ("6. reward models", "6. 奖励模型", (
        ("pairs for helpfulness", "有用：对子", "66,000", "preferences.pairs"),
        ("votes on a pair, both orders", "每对票数（两种顺序）", "4", "preferences.judging.rounds"),
        ("pairs kept above a difference of", "差大于多少才留", "1", "preferences.judging.threshold"),
        ("labelled replies for safety", "安全：标注的回答", "106,000", "preferences.safety"),
        ("epochs", "轮数", "1", "helpful.epochs"),
        ("batch", "批量", "256", "helpful.rows"),
        ("learning rate", "学习率", "6e-6", "helpful.lr"),
    )),
    ("7. final RL → R1", "7. 最终强化学习 → R1", (
        ("steps", "步数", "1,700", "final.grpo.steps"),
        ("last steps with preference", "带偏好的最后几步", "400", "final.preference_steps"),
        ("temperature", "温度", "0.7", "final.grpo.temperature"),
    )),
    ("8. students", "8. 学生", (
        ("students", "学生", "six, 1.5B to 70B", "students.models"),
        ("RL alone, steps", "只用强化学习：步数", "over 10,000 (at 32B)", "students.rl.steps"),
        ("on-policy distillation, steps", "同策略蒸馏：步数", "not in the paper", "students.on_policy.steps"),
    )),
    ("measuring", "测量", (
        ("temperature", "温度", "0.6", "table.temperature"),
        ("top-p", "top-p", "0.95", "table.top_p"),
        ("longest reply, tokens", "最长回答（token）", "32,768", "table.max_tokens"),
    )),
)  # fmt: skip
"""Stage (en, zh), and its settings: (name en, name zh, the paper's value, our field)."""

ZH_PAPER = {
    "thousands": "几千",
    "2 to 3": "2 到 3",
    "not printed": "未公布",
    "several": "若干",
    "not in the paper": "论文里没有",
    "six, 1.5B to 70B": "六个，1.5B 到 70B",
    "over 10,000 (at 32B)": "一万多（32B）",
    "32,768, later 65,536": "32,768，后来 65,536",
    "5e-5, cosine to 5e-6": "5e-5，余弦降到 5e-6",
}


def settings_table(results: Results) -> str:
    """The paper's figures beside those of the default preset, with the flag that changes each."""
    say = results.say
    rows = [[say("stage", "阶段"), say("setting", "设置"), "R1", say("ours", "这里"), say("flag", "参数")]]
    for english, chinese, settings in PAPER:
        stage = say(english, chinese)
        for name, name_zh, value, path in settings:
            ours = _shown(_field(R1_PRESETS[PRESET], path))
            rows.append([stage, say(name, name_zh), say(value, ZH_PAPER.get(value, value)), ours, f"`--{path}`"])
            stage = ""
    return table(rows)


def setup_table(results: Results) -> str:
    """The default run in a few lines, read from its preset."""
    say, config = results.say, R1_PRESETS[PRESET]
    shape = model_preset(config.model, config.vocab_size)
    sizes = [f"{model_preset(name, config.vocab_size).num_parameters / 1e6:.2f}M" for name in config.students.models]
    tasks = config.tasks
    rl, final = (config.zero.steps, config.reasoning.steps), config.final
    rows = [
        [say("`dunwu run r1`, preset cpu", "`dunwu run r1`，预设 cpu"), ""],
        [
            say("model", "模型"),
            say(
                f"{shape.num_parameters / 1e6:.2f}M parameters: {shape.num_layers} layers, width {shape.hidden_size}; {config.vocab_size:,} tokens in its vocabulary",
                f"{shape.num_parameters / 1e6:.2f}M 参数：{shape.num_layers} 层，宽 {shape.hidden_size}；词表 {config.vocab_size:,}",
            ),
        ],
        [
            say("pretraining", "预训练"),
            say(f"{config.pretrain.tokens / 1e6:g}M tokens of generated pages, {config.world.general:.0%} of them general", f"{config.pretrain.tokens / 1e6:g}M 个 token 的生成网页，其中 {config.world.general:.0%} 讲常识和对话"),
        ],
        [
            say("reasoning prompts", "推理题"),
            say(
                f"Countdown {tasks.countdown:.0%}, word problems {tasks.word_problems:.0%}, knights and knaves {tasks.knights:.0%}; {tasks.chinese:.0%} in Chinese",
                f"Countdown {tasks.countdown:.0%}，应用题 {tasks.word_problems:.0%}，骑士与无赖 {tasks.knights:.0%}；{tasks.chinese:.0%} 是中文",
            ),
        ],
        [
            say("reinforcement learning", "强化学习"),
            say(
                f"R1-Zero {rl[0]} steps, reasoning RL {rl[1]}, final RL {final.grpo.steps} (preference in the last {final.preference_steps})",
                f"R1-Zero {rl[0]} 步，推理强化学习 {rl[1]} 步，最终强化学习 {final.grpo.steps} 步（最后 {final.preference_steps} 步带偏好）",
            ),
        ],
        [
            say("data", "数据"),
            say(
                f"cold start at most {config.cold_start.examples} examples; rejection {config.rejection.problems:,} prompts × {config.rejection.samples} samples; {config.preferences.pairs:,} judged pairs",
                f"冷启动至多 {config.cold_start.examples} 例；拒绝采样 {config.rejection.problems:,} 题 × {config.rejection.samples} 个样本；裁判看 {config.preferences.pairs:,} 对",
            ),
        ],
        [say("students", "学生"), say(f"{', '.join(sizes)} parameters", f"{'、'.join(sizes)} 参数")],
    ]  # fmt: skip
    return table(rows)


def chinese_claim(claim: str) -> str:
    """A claim in Chinese, its numbers kept; unchanged if it is not known."""
    for pattern, chinese in ZH_CLAIMS:
        if found := re.fullmatch(pattern, claim):
            return chinese.format(*found.groups())
    return claim


def _field(config: object, path: str) -> Any:
    for name in path.split("."):
        config = getattr(config, name)
    return config


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_shown, value)) or "–"
    if isinstance(value, float):
        text = f"{value:g}" if abs(value) >= 1e-2 or value == 0 else f"{value:.0e}".replace("e-0", "e-")
        return text
    return f"{value:,}" if isinstance(value, int) else str(value)


def _cell(found: Mapping[str, Any] | None, key: str = "") -> str:
    """A figure with the ends of its interval below it."""
    if found is None:
        return ""
    digits = 0 if key == LENGTH else 3
    value, _, ends = interval_text(found, digits=digits).partition(" ")
    return f"{value}<br><sub>{ends.strip('()')}</sub>" if ends else value


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _has(study: Mapping[str, Any], key: str) -> bool:
    return any(key in student["scores"] for student in study.get("students") or [])


def _seed(record: Mapping[str, Any]) -> Any:
    seeds: Sequence[int] = record.get("seeds") or [record.get("seed", 0)]
    return seeds[0]

"""The report as one HTML page: sections in the order a doubtful reader asks for them. No script, no network."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from dunwu.eval.plots import PAGE
from dunwu.eval.report_architectures import architectures_section, architectures_sentence
from dunwu.eval.report_context import in_context_section
from dunwu.eval.report_control import control_section, control_sentence
from dunwu.eval.report_curves import (
    behaviour_figures,
    control_figure,
    pass_at_k_figure,
    pretraining_figures,
    score_and_length,
    stage_figures,
    training_figures,
)
from dunwu.eval.report_data import OFFLINE, curve, headline
from dunwu.eval.report_doctor import doctor_section
from dunwu.eval.report_extension import extension_section, extension_sentence
from dunwu.eval.report_lr import lr_section, lr_sentence
from dunwu.eval.report_parts import (
    exact,
    flat,
    heading,
    hero_figure,
    interval,
    interval_bar,
    mark,
    marked,
    note,
    number,
    right_or_wrong,
    safe,
    spent,
    stage_figure,
    table,
)
from dunwu.eval.report_preference import (
    preference_section,
    preference_sentence,
    reward_models_section,
    reward_models_sentence,
)
from dunwu.eval.report_r1 import r1_hero, r1_sections, r1_sentence
from dunwu.eval.report_rl_study import rl_study_section, rl_study_sentence
from dunwu.eval.report_rlhf import rlhf_section, rlhf_sentence
from dunwu.eval.report_samples import legend, problem_text, sampled_group
from dunwu.eval.report_shell import whole_page


def page(data: Mapping[str, Any]) -> str:
    """The page of what `collect` found."""
    title = f"{data['run'].get('recipe', 'run')} · {data['name']}"
    return whole_page(title, "\n".join(section for section in _sections(data) if section))


class Study(NamedTuple):
    """How a run with evidence of its own kind is told."""

    section: Callable[[Mapping[str, Any]], str]
    sentence: Callable[[Mapping[str, Any]], str]
    stages: bool = False
    training: bool = False


STUDIES: dict[str, Study] = {
    "architectures": Study(architectures_section, architectures_sentence),
    "rl_study": Study(rl_study_section, rl_study_sentence),
    "rlhf": Study(rlhf_section, rlhf_sentence, stages=True),
    "lr_finder": Study(lr_section, lr_sentence, training=True),
    "control": Study(control_section, control_sentence),
    "extension": Study(extension_section, extension_sentence, stages=True, training=True),
    "reward_models": Study(reward_models_section, reward_models_sentence, stages=True),
    "preferences": Study(preference_section, preference_sentence, stages=True, training=True),
}
"""Key of `evidence.json` → what it is shown by, instead of the sections about reinforcement."""


GATHERED = ("expert/", "reject/")
"""How the keys of a stage begin that makes what is learned from."""
TAUGHT = ("sft/", "rm/", "dpo/", "distill/", *GATHERED)
"""How the keys of a stage begin that learns without reinforcement, or makes what is learned from."""


def _study(data: Mapping[str, Any]) -> tuple[Study, Mapping[str, Any]] | None:
    evidence = data["evidence"]
    return next(((study, evidence[key]) for key, study in STUDIES.items() if evidence.get(key)), None)


def _sections(data: Mapping[str, Any]) -> Iterator[str]:
    yield _top(data)
    if "r1" in data:
        yield from r1_sections(data)
    elif told := _study(data):
        study, found = told
        yield study.section(found)
        yield _stages(data) if study.stages else ""
        yield _training(data) if study.training else ""
    else:
        yield _stages(data)
        # Where nothing was reinforced, what reinforcement would leave is shown if it is there, and not missed if it is not.
        due = bool(data["rl_stages"] or data["evidence"].get("checkpoints") or not data["curves"])
        yield _picture(data) if due or score_and_length(data, PAGE) else ""
        yield _behaviours(data) if due or behaviour_figures(data) else ""
        yield _completions(data) if due or data["evidence"].get("shown") else ""
        yield _controls(data) if due else ""
        yield _groups(data) if due or data["groups"] else ""
        yield _training(data)
        yield in_context_section(data)
        yield _checkpoints(data)
    yield doctor_section(data)
    yield _settings(data)
    yield _lineage(data)
    yield _footer(data)


def _top(data: Mapping[str, Any]) -> str:
    run, whole_r1 = data["run"], "r1" in data
    rise = {} if whole_r1 else headline(data)
    status = str(run.get("status", "unknown"))
    badge = f'<span class="badge{"" if status == "done" else " bad"}">{safe(status)}</span>'
    facts = [data["name"], f"seed {run.get('seed', '?')}", str(run.get("start", ""))[:16].replace("T", " ")]
    parts = [f'<p class="eyebrow">dunwu 顿悟 · {" · ".join(safe(f) for f in facts if f)} {badge}</p>']
    if told := _study(data):
        study, found = told
        sentence = study.sentence(found)
    else:
        sentence = r1_sentence(data) if whole_r1 else _sentence(rise) if rise else _loss_sentence(data)
    parts.append(f"<h1>{safe(run.get('recipe', 'run'))}: {safe(sentence)}</h1>")
    if status == "running":
        parts.append(note("The run had not ended when this page was written; what is here is what was there."))
    elif status != "done":
        parts.append(note(f"The run ended as “{status}”; the same command resumes it."))
    if rise:
        parts.append(_hero(rise))
        parts.append(f'<p class="caption">{safe(rise["source"])}.</p>')
    if whole_r1:
        parts.append(r1_hero(data))
    for said in [*(data["evidence"].get("notes") or []), *(data["r1"]["table"].get("notes") or [] if whole_r1 else [])]:
        parts.append(note(said))
    rows = [
        f"<li>{mark(v.get('holds'))}<span>{safe(v.get('claim', ''))}{_reason(v)}</span>"
        f'<span class="figures">{_whole(safe(v.get("figure", "")))}</span></li>'
        for v in data["verdicts"]
    ]
    if rows:
        parts.append(f'<ul class="verdicts">{"".join(rows)}</ul>')
    elif data["rl_stages"] or not data["curves"] or whole_r1:
        what = "No stage has" if whole_r1 else "No held-out score and no behaviours have"
        parts.append(note(f"{what} been measured yet."))
    return "".join(parts)


def _whole(figure: str) -> str:
    """A figure whose intervals do not break over two lines."""
    return re.sub(r"\[[^\]]*\]", lambda found: found[0].replace(" ", "\u00a0"), figure)


def _reason(verdict: Mapping[str, Any]) -> str:
    return f'<small class="reason">{safe(verdict["reason"])}</small>' if verdict.get("reason") else ""


def _loss_sentence(data: Mapping[str, Any]) -> str:
    """Where nothing was reinforced: the held-out loss of what was taught, or that there is none yet."""
    for key in ("sft/valid_loss", "pretrain/valid_loss"):
        if found := curve(data, key):
            first, last = found[0][1], found[-1][1]
            return f"held-out loss from {first:.3f} to {last:.3f} nats a token"
    return "no held-out score yet"


def _sentence(rise: Mapping[str, Any]) -> str:
    base, result = rise["base"]["value"], rise["result"]["value"]
    if f"{base:.0%}" == f"{result:.0%}":
        return f"stays at {base:.0%} on held-out problems"
    return f"{'from' if result > base else 'down from'} {base:.0%} to {result:.0%} on held-out problems"


def _hero(rise: Mapping[str, Any]) -> str:
    def block(name: str, chinese: str, value: Mapping[str, Any], kind: str, sign: str = "") -> str:
        return hero_figure(f'{name} · <span lang="zh">{chinese}</span>', value, kind, sign)

    blocks = [
        block("base", "基座", rise["base"], ""),
        '<div class="arrow" aria-hidden="true">→</div>',
        block("after reinforcement", "强化学习后", rise["result"], "result"),
    ]
    if isinstance(rise.get("difference"), Mapping):
        blocks.append(block("difference, same problems", "同题之差", rise["difference"], "", "+"))
    return f'<div class="hero">{"".join(blocks)}</div>'


def _stages(data: Mapping[str, Any]) -> str:
    drawn = stage_figure(data["stages"])
    wide = "wide scroll" if len(data["stages"]) > 2 else "scroll"  # a box or two stay as large as they are
    body = f'<figure class="{wide}">{drawn}</figure>' if drawn else note("No stage has begun.")
    return heading("Stages", "阶段") + body


def _picture(data: Mapping[str, Any]) -> str:
    head = heading("Score and length rise together?", "得分与长度是否同升")
    drawn = score_and_length(data, PAGE, 1040, 190)
    if not drawn:
        return head + note("No reinforcement learning step has been logged yet.")
    caption = (
        "Above: share of right answers on held-out problems (dots, 95% intervals) and of training samples (line, raw behind). "
        "Below: tokens per training response, all, right and wrong ones; smoothed, raw behind."
    )
    return f'{head}<p class="caption">{caption}</p><figure class="wide">{drawn}</figure>'


def _behaviours(data: Mapping[str, Any]) -> str:
    head = heading("Behaviours in the thoughts", "思考中的行为")
    figures = behaviour_figures(data)
    if not figures:
        return head + note("No samples were kept, so no behaviour could be read.")
    source = "read from samples of the run after the fact" if OFFLINE in data["curves"] else "as logged by the run"
    lead = f"Counted by a parser from the sums and verdicts of the text, not by a language model; {source}."
    return f'{head}<p class="lead">{lead}</p><div class="grid">{"".join(figures)}</div>'


def _completions(data: Mapping[str, Any]) -> str:
    head = heading("The same problems at successive checkpoints", "同一题在各检查点")
    shown = data["evidence"].get("shown") or []
    if not shown:
        return head + note("No held-out completions: the evidence stage has not run.")
    parts = [head, legend()]
    for row in shown:
        problem = row.get("problem") or {}
        parts.append(f'<p class="problem">{problem_text(problem)}</p><div class="row">')
        for said in row.get("completions") or []:
            facts = f"{number(said.get('length'))} tokens · reward {number(said.get('reward'))}"
            parts.append(
                f'<div class="card"><header><b>{safe(said.get("name", "?"))}</b>'
                f"{right_or_wrong(said.get('right'))}<span>{facts}</span></header>"
                f'<pre class="text">{marked(problem, str(said.get("completion", "")))}</pre></div>'
            )
        parts.append("</div>")
    return "".join(parts)


def _controls(data: Mapping[str, Any]) -> str:
    controls, seeds = data["evidence"].get("controls") or [], data["evidence"].get("seeds") or []
    head = heading("Controls and seeds", "对照与种子")
    if not controls and not seeds:
        return head + note("None in this run: `dunwu run r1-zero-study` makes several seeds and the controls.")
    parts = [head]
    figure = control_figure(data)
    if figure:
        parts.append(f'<div class="wide">{figure}</div>')
    over = data["evidence"].get("over_seeds") or {}
    rows = [
        [f"seed {number(s.get('seed'))}", interval(s.get("base")), interval(s.get("result")), "", ""] for s in seeds
    ]
    if over:
        words = "mean over seeds <small>(Student’s t)</small>"
        rows.append(
            [words, interval(over.get("base")), interval(over.get("result")), interval(over.get("difference")), ""]
        )
    for control in controls:
        expected = (
            f"{safe(control['expected'])} {mark(control.get('holds'))}" if control.get("expected") else "reported"
        )
        figures = [interval(control.get(key)) for key in ("base", "result", "difference")]
        rows.append([f"control: {safe(control.get('name', '?'))}", *figures, expected])
    parts.append(table(["run", "base", "result", "difference", "expected"], rows))
    return "".join(parts)


def _groups(data: Mapping[str, Any]) -> str:
    head = heading("Groups: what the update saw", "组：更新所见")
    if not data["groups"]:
        return head + note("No sampled groups were kept.")
    parts = [
        head,
        '<p class="lead">Of an early, a middle and a late step, the first group whose rewards differ, if there is one.</p>',
        legend(),
    ]
    parts += [sampled_group(group, 3) for group in data["groups"]]
    return "".join(parts)


def _training(data: Mapping[str, Any]) -> str:
    parts = []
    for stage in data["rl_stages"]:
        figures = training_figures(data["curves"], stage)
        chinese = "强化学习"
        parts.append(heading(f"Training: {stage}", chinese) + f'<div class="grid">{"".join(figures)}</div>')
    figures = pretraining_figures(data["curves"])
    if figures:
        parts.append(heading("Pretraining", "预训练") + f'<div class="grid">{"".join(figures)}</div>')
    for stage, of_stage in data["curves"].items():
        if of_stage and all(key.startswith(TAUGHT) for key in of_stage):
            figures = stage_figures(data["curves"], stage)
            title = ("Course", "过程") if next(iter(of_stage)).startswith(GATHERED) else ("Training", "训练")
            drawn = f'<div class="grid">{"".join(figures)}</div>'
            parts.append(heading(f"{title[0]}: {stage}", title[1]) + drawn if figures else "")
    return "".join(parts) or heading("Training", "训练") + note("No training metrics have been logged.")


def _checkpoints(data: Mapping[str, Any]) -> str:
    rows_of: Sequence[Mapping[str, Any]] = data["evidence"].get("checkpoints") or []
    if not rows_of:
        return ""
    consensus = sorted({key for c in rows_of for key in c if key.startswith("cons@")})
    most = max((int(k) for c in rows_of for k in c.get("pass@k") or {}), default=1)
    ks = [most] if most > 1 else []
    extra = [key for key in ("four_operands",) if any(key in c for c in rows_of)]
    behaviours = [
        ("length_all", "tokens"),
        ("true_checks", "true checks"),
        ("false_checks", "false checks"),
        ("backtracks", "backtracks"),
    ]
    heads = [
        "checkpoint",
        "pass@1",
        "0 to 1",
        *(f"pass@{k}" for k in ks),
        *consensus,
        *(k.replace("_", " ") for k in extra),
        "format",
    ]
    heads += [name for _, name in behaviours]
    rows = []
    for c in rows_of:
        found = c.get("behaviours") or {}
        row = [safe(c.get("name", c.get("step", "?"))), interval(c.get("pass@1")), interval_bar(c.get("pass@1"))]
        row += [interval((c.get("pass@k") or {}).get(str(k))) for k in ks]
        row += [interval(c.get(key)) for key in (*consensus, *extra)] + [number(c.get("format"))]
        rows.append(row + [number(found.get(f"emergence/{key}")) for key, _ in behaviours])
    note_ = "95% intervals: Wilson, samples of one problem counted as one cluster. cons@k: majority by the verifier’s answer key, ties shared."
    head = heading("Every figure by checkpoint", "各检查点的数字")
    parts = [head, table(heads, rows, last_is_result=True), f'<p class="caption">{note_}</p>']
    figure = pass_at_k_figure(rows_of)
    return "".join([*parts, f'<div class="grid">{figure}</div>' if figure else ""])


def _settings(data: Mapping[str, Any]) -> str:
    config = data["run"].get("config")
    if not isinstance(config, Mapping) or not config:
        return ""
    plain = {name: value for name, value in config.items() if not isinstance(value, Mapping)}
    nested = [(str(name), value) for name, value in config.items() if isinstance(value, Mapping)]
    blocks = [("run", plain), *nested] if plain else nested
    sections = []
    for name, values in blocks:
        rows = [[safe(key), f"<code>{exact(value)}</code>"] for key, value in flat(values)]
        sections.append(f"<section><h3>{safe(name)}</h3>{table([], rows)}</section>")
    return heading("Configuration", "配置") + f'<div class="columns">{"".join(sections)}</div>'


def _lineage(data: Mapping[str, Any]) -> str:
    run = data["run"]
    names = {stage.get("key"): stage["stage"] for stage in data["stages"]}
    rows = []
    for stage in data["stages"]:
        inputs = ", ".join(safe(names.get(key, key)) for key in stage["inputs"]) or "–"
        key = f"<code>{safe(stage.get('key', '–'))}</code>"
        rows.append([safe(stage["stage"]), safe(stage.get("status", "–")), spent(stage), inputs, key])
    parts = [heading("Lineage and machine", "来历与机器")]
    if rows:
        parts.append(table(["stage", "status", "time", "made from", "artifact"], rows))
    facts = {"start": run.get("start"), "end": run.get("end"), "git commit": run.get("git_commit")}
    if run.get("resumed"):
        facts["resumed"] = ", ".join(map(str, run["resumed"]))
    blocks = [("run", facts), ("machine", run.get("machine") or {}), ("versions", run.get("versions") or {})]
    sections = [
        f"<section><h3>{name}</h3>{table([], [[safe(key), number(value)] for key, value in values.items()])}</section>"
        for name, values in blocks
        if values
    ]
    return "".join(parts) + f'<div class="columns">{"".join(sections)}</div>'


def _footer(data: Mapping[str, Any]) -> str:
    return (
        "<footer>Every number of this page is in report.json beside it; what each metric means is in docs/metrics.md. "
        "Smoothed lines are running line fits; the faint line is what was measured.</footer>"
    )

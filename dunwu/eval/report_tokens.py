"""`dunwu tokenizer report`: a tokenizer on one page, with a search over its vocabulary and why models miscount letters.

The page's one script is the search; its policy admits no other, by hash.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dunwu.disk import write_atomically
from dunwu.eval.report_parts import exact, heading, note, number, safe, short, table
from dunwu.eval.report_shell import whole_page

_SHOWN = 400
"""Rows of the vocabulary shown at a time."""
_SEARCH = """
const rows = JSON.parse(document.getElementById("vocabulary").textContent);
const box = document.getElementById("search"), body = document.getElementById("found"), said = document.getElementById("said");
function show() {
  const asked = box.value.replaceAll(" ", "\u2423"), id = /^#\\d+$/.test(asked) ? Number(asked.slice(1)) : -1;
  const hits = rows.filter(row => id >= 0 ? row[0] === id : row[1].includes(asked) || row[2] === asked);
  body.replaceChildren(...hits.slice(0, MOST).map(row => {
    const line = document.createElement("tr");
    row.forEach((cell, n) => {
      const td = document.createElement("td");
      td.textContent = n === 3 && cell === 0 ? "\u2013" : cell;
      td.className = n === 1 ? "mono" : n === 2 ? "" : "number";
      line.append(td);
    });
    return line;
  }));
  said.textContent = hits.length + " of " + rows.length + (hits.length > MOST ? ", the first " + MOST + " shown" : "");
}
box.addEventListener("input", show);
document.getElementById("searching").hidden = false;
show();
""".replace("MOST", str(_SHOWN))
_WHY = (
    (
        "The model reads ids. That id N holds two r's is written nowhere in it; it has to be learned from texts that spell "
        "the word, and few do.",
        "模型读到的是编号。某个编号里有几个 r，并没有写在任何地方，只能从拼写过该词的文本里学到，而这样的文本很少。",
    ),
    (
        "The same word has other ids at the start of a line, after a space, with a capital: what is known of one is not "
        "known of the others.",
        "同一个词在行首、空格之后、首字母大写时编号各不相同；认识其中一个，并不等于认识其余。",
    ),
    (
        "In Chinese a token can be several characters, or a piece of one: the number of tokens is not the number of "
        "characters, and a character met only in bytes has no sign of its own.",
        "中文里一个 token 可能是几个字，也可能只是一个字的一部分字节：token 数不是字数，只以字节出现的字没有自己的符号。",
    ),
    (
        "Counting takes a step per letter, and a model has one step per token it writes. Spelled out, every letter is a "
        "token and every count a step: so asking it to spell first helps, and a long chain of thought does it by itself.",
        "数数需要一字一步，而模型每写一个 token 才走一步。拼写开来，一个字母一个 token，一步一数：所以先让它拼写会有帮助，长思维链正是自己这样做的。",
    ),
)


def write_token_page(report: Mapping[str, Any], path: Path) -> Path:
    """Write the page of `dunwu.data.token_report.token_report`'s report."""
    write_atomically(path, token_page(report))
    return path


def token_page(report: Mapping[str, Any]) -> str:
    """The page."""
    page = whole_page(f"{report['tokenizer']} · tokens", "\n".join(_sections(report)))
    return _searchable(page, report["vocabulary"]) if report.get("vocabulary") else page


def _sections(report: Mapping[str, Any]) -> Iterator[str]:
    yield _top(report)
    yield heading("Compression", "压缩率") + _languages(report)
    yield heading("Why models miscount letters", "模型为何数错字母") + _letters(report)
    yield heading("The vocabulary", "词表") + _vocabulary(report)
    yield heading("Texts", "文本") + _texts(report)
    yield "<footer>Bytes of a character that are no character by themselves are shown as \\xNN; ␣ is a space, ⏎ a line end.</footer>"


def _top(report: Mapping[str, Any]) -> str:
    figures = [
        ("tokens in the vocabulary · 词表", number(report["vocab_size"]), ""),
        ("bytes per token · 每 token 字节", number(report["all"]["bytes_per_token"]), " result"),
        ("of the vocabulary used · 用到", f"{100 * report['used_share']:.1f}<small> %</small>", ""),
    ]
    blocks = "".join(
        f'<div><div class="what">{what}</div><div class="figure{kind}">{value}</div></div>'
        for what, value, kind in figures
    )
    name = safe(report["tokenizer"])
    return f'<p class="eyebrow">dunwu tokenizer report</p><h1>{name}</h1><div class="hero story">{blocks}</div>'


def _languages(report: Mapping[str, Any]) -> str:
    keys = ("pieces", "bytes", "tokens", "bytes_per_token", "characters_per_token", "tokens_per_word")
    largest = max(group["bytes_per_token"] or 0 for group in report["languages"].values()) or 1
    rows = [
        [safe(label), *(number(group[key]) for key in keys), _bar(group["bytes_per_token"] or 0, largest)]
        for label, group in [*report["languages"].items(), ("all", report["all"])]
    ]
    said = note(
        "Tokens per word is fertility: 1 is a token for every word. A word is what stands between blank spaces, or one "
        "Chinese or Japanese character. Languages with less than a thousandth of the bytes are under “other”."
    )
    heads = ["language", "pieces", "bytes", "tokens", "bytes/token", "characters/token", "tokens/word", ""]
    return table(heads, rows, range(1, 7), last_is_result=True) + said


def _bar(value: float, largest: float) -> str:
    width = 160 * min(1.0, value / largest)
    return (
        '<svg width="160" height="12" aria-hidden="true">'
        f'<rect y="2" width="{width:.1f}" height="8" style="fill:var(--s1)"/></svg>'
    )


def _letters(report: Mapping[str, Any]) -> str:
    rows = [
        [
            f"<code>{safe(example['text'].replace(' ', '␣'))}</code>",
            f"{safe(example['letter'])} × {example['count']}",
            _pieces(example["pieces"]),
            _pieces(example["spelled"]),
        ]
        for example in report["letters"]
    ]
    reasons = "".join(
        f'<li>{safe(english)}<br><span lang="zh" class="dim">{safe(zh)}</span></li>' for english, zh in _WHY
    )
    heads = ["text", "how many", "what the model reads · 模型读到的", "spelled out · 拼写开来"]
    return f'{table(heads, rows)}<ul class="plain">{reasons}</ul>'


def _pieces(pieces: Sequence[Mapping[str, Any]]) -> str:
    """Tokens in boxes with their ids below; in those with the letter, how many of it."""
    cells = []
    for piece in pieces:
        count = f"<sup>{piece['letters']}</sup>" if piece["letters"] else ""
        style = "var(--true)" if piece["letters"] else "var(--line)"
        cells.append(
            f'<span style="display:inline-block;text-align:center;border:1px solid {style};border-radius:3px;padding:0 4px;'
            f'margin:1px"><code>{safe(piece["text"])}</code>{count}<br><small>{piece["id"]}</small></span>'
        )
    return f'<div style="min-width:260px">{"".join(cells)}</div>'


def _vocabulary(report: Mapping[str, Any]) -> str:
    total = sum(report["kinds"].values())
    kinds = table(
        ["made of", "tokens", "share"],
        [[safe(kind), number(count), f"{100 * count / total:.1f} %"] for kind, count in report["kinds"].items()],
        (1, 2),
    )
    parts = [
        f"<section><h3>{title}</h3>{_tokens(report[key])}</section>"
        for title, key in (("Longest", "longest"), ("Most used", "most_used"))
    ]
    search = ""
    if report.get("vocabulary"):
        search = (
            '<div id="searching" hidden><p><input id="search" type="search" size="40" aria-label="search the vocabulary" '
            'placeholder="text, #id, or a kind such as Han"> <span class="caption" id="said"></span></p>'
            '<div class="scroll"><table><thead><tr><th class="number">id</th><th>token</th><th>made of</th>'
            '<th class="number">uses</th></tr></thead><tbody id="found"></tbody></table></div></div>'
        )
    return f'{kinds}<div class="grid">{"".join(parts)}</div>{search}'


def _tokens(rows: Sequence[Mapping[str, Any]]) -> str:
    cells = [
        [number(row["id"]), f"<code>{safe(short(row['text'], 32))}</code>", number(row["bytes"]), number(row["uses"])]
        for row in rows
    ]
    return table(["id", "token", "bytes", "uses"], cells, (0, 2, 3))


def _texts(report: Mapping[str, Any]) -> str:
    facts = {
        "files": report["files"],
        "most bytes sampled": report["sample_bytes"],
        "encoded by tiktoken": report["fast"],
    }
    return table([], [[safe(name), exact(value)] for name, value in facts.items()])


def _searchable(page: str, vocabulary: Sequence[Sequence[Any]]) -> str:
    """The page with the vocabulary as data and the search, which the policy names by its hash."""
    digest = base64.b64encode(hashlib.sha256(_SEARCH.encode()).digest()).decode()
    page = page.replace("default-src 'none';", f"default-src 'none'; script-src 'sha256-{digest}';", 1)
    rows = [[index, _readable(text), kind, uses] for index, text, kind, uses in vocabulary]
    data = json.dumps(rows, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    tail = f'<script type="application/json" id="vocabulary">{data}</script>\n<script>{_SEARCH}</script>\n</body>'
    return page.replace("</body>", tail, 1)


def _readable(text: str) -> str:
    """Without characters that would turn or hide what follows; escaping is the script's, by textContent."""
    from html import unescape

    return unescape(safe(text))

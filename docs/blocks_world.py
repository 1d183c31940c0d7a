"""Blocks about the generated web, read from its knobs and written by its own authors."""

from __future__ import annotations

import ast
import inspect
import textwrap
from dataclasses import fields, is_dataclass, replace
from itertools import islice, pairwise

from blocks_results import Results, table

from dunwu.world.countdown import HANDS
from dunwu.world.knobs import Hands, Knobs
from dunwu.world.web import pages as world_pages

ZH_KNOBS = {
    "countdown": "讲 Countdown（凑数）的页面占多少；其余是算术",
    "general": "全部页面里，讲常识、请求和对话的占多少；其余的份额只分它剩下的",
    "knights": "在 `general` 剩下的页面里，讲骑士与无赖的占多少；`countdown` 只分它和下一项剩下的",
    "worked_problems": "在 `general` 剩下的页面里，带演算的应用题（任务里的那种）占多少",
    "word_problems": "算术页面里，应用题占多少",
    "chinese": "中文页面占多少；其余是英文",
    "template": "Countdown、骑士和带演算的应用题页面里，用 R1-Zero 对话模板写的占多少",
    "mixed_thinking": "中文页面里，作者用英文思考的占多少；这些作者想得好，总用 `backward`",
    "guess_wrong": "直接猜的答案里，错的占多少（错了也说对）",
    "hit": "搜索时，每次尝试恰好是解的概率",
    "max_tries": "一次搜索最多试几次",
    "give_up": "每次失败之后，作者放弃并随便作答的概率",
    "repeat": "一次尝试重复本页旧尝试的概率",
    "false_check": "失败的尝试被说成成功的概率（说谎的检验）",
    "arithmetic_error": "写出的结果算错的概率；0 表示除了猜错的以外，算式都对",
    "four_operands": "四个数的 Countdown 页面占多少；其余是三个数",
    "unsolvable": "目标凑不出来的页面占多少；诚实的作者在这里都会放弃",
    "low": "最小的数",
    "high": "最大的数",
    "target_low": "最小的目标",
    "target_high": "最大的目标",
}
ZH_HANDS = {
    "guess": "张口就答，并说成立；以 `guess_wrong` 的概率是错的",
    "worked": "一步步写出正确解法",
    "search": "一个个试：算出来，和目标比，不对就换",
    "backward": "定子目标：留下一个数，看还差多少，再看另外两个数能得到什么",
}


def knobs_table(results: Results) -> str:
    """Every knob of the world with its default and meaning."""
    say = results.say
    rows = [[say("knob", "旋钮"), say("default", "默认"), say("meaning", "含义")]]
    for name, meaning in documented(Knobs).items():
        value = getattr(Knobs(), name)
        if is_dataclass(value):
            continue
        rows.append([f"`{name}`", f"{value:g}", say(meaning, ZH_KNOBS.get(name, meaning))])
    return table(rows)


def hands_table(results: Results) -> str:
    """The shares of the hands, on forums and in the template."""
    say = results.say
    rows = [[say("hand", "写法"), "`forum_hands`", "`template_hands`", say("meaning", "含义")]]
    forum, template = Knobs().forum_hands.shares(), Knobs().template_hands.shares()
    for name, meaning in documented(Hands).items():
        rows.append(
            [f"`{name}`", f"{forum[name]:.2f}", f"{template[name]:.2f}", say(meaning, ZH_HANDS.get(name, meaning))]
        )
    return table(rows)


def samples(results: Results) -> str:
    """For each hand an English forum page and a Chinese page in the template."""
    say = results.say
    titles = {0.0: say("English, on a forum", "英文，论坛"), 1.0: say("Chinese, in the template", "中文，对话模板")}
    parts = []
    for hand in HANDS:
        parts.append(f"### `{hand}`")
        shares = replace(Hands(0.0, 0.0, 0.0, 0.0), **{hand: 1.0})
        for chinese, title in titles.items():
            knobs = replace(
                Knobs(), countdown=1.0, four_operands=0.0, chinese=chinese, template=chinese, forum_hands=shares,
                template_hands=shares,
            )  # fmt: skip
            page = max(islice(world_pages(knobs, seed=int(chinese)), 6), key=lambda page: page.text.count("\n"))
            solved = say("solved", "解出") if page.truth["solved"] else say("not solved", "没有解出")
            caption = say(f"{title}; {solved}:", f"{title}；{solved}：")
            parts.append(f"{caption}\n\n```text\n{page.text}\n```")
    return "\n\n".join(parts)


def documented(kind: type) -> dict[str, str]:
    """Field → the docstring that stands below it.

    Example:
        >>> documented(Hands)["worked"].split(",")[0]
        'A clean solution in steps'
    """
    (body,) = (
        node.body for node in ast.parse(textwrap.dedent(inspect.getsource(kind))).body if isinstance(node, ast.ClassDef)
    )
    found = {}
    for field, text in pairwise(body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            found[field.target.id] = inspect.cleandoc(ast.literal_eval(text.value)).replace("\n", " ")
    return {field.name: found[field.name] for field in fields(kind)}

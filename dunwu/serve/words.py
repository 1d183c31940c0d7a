"""What the chat says of itself, in English and Chinese."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal

Language = Literal["en", "zh"]

EN = {
    "hello": "{name} · /help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves",
    "zero": "This model never learned to talk in turns: each question is put to it in R1-Zero's frame.",
    "thought": "thought for {n} tokens",
    "thought_uncounted": "thought",
    "cut": "cut off at {n} tokens",
    "stopped": "stopped",
    "silent": "no reply; the question is forgotten",
    "left_out": "the model's context is full: the oldest turns are left out from here on",
    "leave": "Ctrl-D leaves",
    "new": "a new conversation",
    "shown": "thinking is shown",
    "hidden": "thinking is folded",
    "system": "system message set",
    "no_system": "no system message",
    "temperature": "temperature {value:g}",
    "max": "replies of {value} tokens at most",
    "saved": "saved as {path}",
    "number": "{name} wants a number",
    "file": "/save wants a file name",
    "unknown": "no command {name}; /help lists them, and // begins a question with a slash",
    "help": """\
/new             begin a new conversation
/think           fold or show the thinking
/system TEXT     say something before the conversation; without TEXT, nothing
/temperature X   0 is greedy
/max N           longest reply in tokens
/save FILE       write the conversation as one line of chat data
/help            this list
/quit            leave (also Ctrl-D)""",
}

ZH = {
    "hello": "{name} · /help 列出命令，Ctrl-C 停止回答，Ctrl-D 退出",
    "zero": "这个模型没有学过多轮对话：每个问题都按 R1-Zero 的模板提出。",
    "thought": "思考了 {n} 个词元",
    "thought_uncounted": "思考过",
    "cut": "到 {n} 个词元为止",
    "stopped": "已停止",
    "silent": "没有回答；这个问题不计入对话",
    "left_out": "模型的上下文已满：从这里起略去最早的几轮",
    "leave": "Ctrl-D 退出",
    "new": "新的对话",
    "shown": "显示思考",
    "hidden": "折叠思考",
    "system": "已设定系统消息",
    "no_system": "没有系统消息",
    "temperature": "温度 {value:g}",
    "max": "回答最多 {value} 个词元",
    "saved": "已存为 {path}",
    "number": "{name} 后面要一个数字",
    "file": "/save 后面要文件名",
    "unknown": "没有命令 {name}；/help 列出命令，问题以斜杠开头时写 //",
    "help": """\
/new             开始新的对话
/think           折叠或显示思考
/system 文字     设定系统消息；不写文字则取消
/temperature X   温度，0 为贪心
/max N           回答最多多少词元
/save 文件       把对话存成一行对话数据
/help            这份列表
/quit            退出（或 Ctrl-D）""",
}

WORDS: dict[Language, dict[str, str]] = {"en": EN, "zh": ZH}


def language_of(choice: str, environment: Mapping[str, str] | None = None) -> Language:
    """ "en" and "zh" are themselves; "auto" is "zh" where the locale says so.

    Example:
        >>> language_of("auto", {"LANG": "zh_CN.UTF-8"}), language_of("auto", {"LC_ALL": "C", "LANG": "zh_CN"})
        ('zh', 'en')
    """
    there = os.environ if environment is None else environment
    locale = next((there[name] for name in ("LC_ALL", "LC_MESSAGES", "LANG") if there.get(name)), "")
    return "zh" if choice == "zh" or (choice == "auto" and locale.lower().startswith("zh")) else "en"

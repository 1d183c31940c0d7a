"""Problem and verdict: what is asked, and exact verifiers that cannot be talked round. No torch, no model.

>>> task = get_task("countdown", operands=4)
>>> problem = task.problem("test", seed=0, index=0)
>>> task.score(problem, "<answer>1+1</answer>").rewards
{'accuracy': 0.0, 'format': 0.0}
"""

from __future__ import annotations

from dunwu.tasks.countdown import Countdown, CountdownConfig
from dunwu.tasks.expression import ExpressionError, evaluate
from dunwu.tasks.formats import Parsed, split_completion
from dunwu.tasks.registry import catalogue, get_task, task_names, task_options
from dunwu.tasks.score import score_stream
from dunwu.tasks.solver import solve, value_table
from dunwu.tasks.splits import split_of
from dunwu.tasks.templates import TEMPLATE_EN, TEMPLATE_ZH, load_template, question

__all__ = [
    "TEMPLATE_EN",
    "TEMPLATE_ZH",
    "Countdown",
    "CountdownConfig",
    "ExpressionError",
    "Parsed",
    "catalogue",
    "evaluate",
    "get_task",
    "load_template",
    "question",
    "score_stream",
    "solve",
    "split_completion",
    "split_of",
    "task_names",
    "task_options",
    "value_table",
]

"""What each command does: one function call into a room, and how a person is shown the result.

A command is a function from parsed arguments to a JSON object, and another that shows the object. Rooms
are imported when a command runs, so that `dunwu score` or `dunwu tasks` never wait for torch.
"""

from __future__ import annotations

from dunwu.commands import bench, data, export, importing, models, runs, tasks, tokenizers
from dunwu.commands.command import Command

COMMANDS: dict[str, Command] = {
    "doctor": runs.DOCTOR,
    "run": runs.RUN,
    "recipes": runs.RECIPES,
    "runs": runs.RUNS,
    "runs gc": runs.RUNS_GC,
    "report": runs.REPORT,
    "eval": models.EVAL,
    "score": tasks.SCORE,
    "tasks": tasks.TASKS,
    "tasks show": tasks.TASKS_SHOW,
    "peek": models.PEEK,
    "tokenizer train": tokenizers.TRAIN,
    "tokenizer encode": tokenizers.ENCODE,
    "tokenizer decode": tokenizers.DECODE,
    "tokenizer report": tokenizers.REPORT,
    "data build": data.BUILD,
    "data inspect": data.INSPECT,
    "chat": models.CHAT,
    "export": export.EXPORT,
    "import": importing.IMPORT,
    "bench": bench.BENCH,
}
"""In the order of `dunwu --help`."""

"""A worker's process: a trial as a line of JSON on stdin, its outcome as a line on stdout, until stdin ends.

One thread each, so that neither the number of workers nor of cores changes a bit. It dies with its parent, whose pipe then ends.
"""

from __future__ import annotations

import base64
import json
import sys
from dataclasses import asdict
from typing import Any

import torch
from safetensors.torch import load, save

from dunwu.control.config import Trial
from dunwu.control.trial import Outcome, run_trial
from dunwu.machine import die_with_parent
from dunwu.model.runtime import prepare_torch
from dunwu.types import DunwuError


def answer(line: str) -> dict[str, Any]:
    """The outcome of the trial in this line, or its error."""
    try:
        outcome = run_trial(Trial.from_json(json.loads(line)))
    except DunwuError as error:
        return {"what": error.what, "cure": error.cure}
    plain = {name: value for name, value in asdict(outcome).items() if name != "weights"}
    return plain | {"weights": base64.b64encode(save({"weights": outcome.weights})).decode("ascii")}


def outcome_of(record: dict[str, Any]) -> Outcome:
    """What `answer` said, as an outcome.

    Raises:
        DunwuError: it was an error.
    """
    if "what" in record:
        raise DunwuError(record["what"], record["cure"])
    return Outcome(**{**record, "weights": load(base64.b64decode(record["weights"]))["weights"]})


def main() -> None:
    """Answer line after line."""
    die_with_parent()  # a pipe that ends is noticed only between trials
    torch.set_num_threads(1)
    prepare_torch()
    for line in sys.stdin:
        print(json.dumps(answer(line)), flush=True)


if __name__ == "__main__":
    main()

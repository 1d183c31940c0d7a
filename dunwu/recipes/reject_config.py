"""The knobs of the recipe `reject`: no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from dunwu.rollout.judge import JudgeConfig
from dunwu.rollout.selection import SelectionRules
from dunwu.tasks.frames import FRAMES, Frame
from dunwu.types import SamplingParams, UsageError


@dataclass(frozen=True)
class RejectRunConfig:
    """Rejection sampling: several samples of each problem, the right and readable ones kept as chat data."""

    model: str = ""
    """Who is sampled: a model folder, RUN:STAGE, or the URL of an OpenAI-compatible server."""
    model_name: str = ""
    """The model's name on that server."""
    data: str = ""
    """JSONL file of problems; none: the task draws its own."""
    task: str = ""
    """Name from `dunwu tasks`, or a task file (FILE.py), whose verifier decides; none: the judge decides."""
    frame: Frame = "chat"
    """How a named task asks: in the chat format, or in R1-Zero's template ("zero"). A task file has its own prompt."""
    problems: int = 256
    """Problems drawn from the task's training split where there is no data file."""
    samples: int = 4
    """Samples of each problem."""
    max_tokens: int = 256
    """Longest sample in tokens; what reaches it is dropped as cut off."""
    temperature: float = 1.0
    """Of the samples (R1: 1)."""
    top_p: float = 1.0
    """Nucleus mass of the samples."""
    judge: str = ""
    """Who decides where no task does: a model folder, RUN:STAGE, or a server's URL."""
    judge_name: str = ""
    """The judge's name on that server."""
    judging: JudgeConfig = field(default_factory=JudgeConfig)
    """How the judge is asked; a reply gets one vote, so `rounds` and `threshold` do not matter here."""
    rules: SelectionRules = field(default_factory=SelectionRules)
    """What is kept."""
    concurrency: int = 8
    """Requests at once to a server."""
    chunk: int = 32
    """Problems sampled between two saves."""
    device: str = "auto"
    """cpu, cuda, mps, or auto."""

    def validate(self) -> None:
        """Raise UsageError for settings that cannot work, before anything long has begun."""
        if not self.model:
            raise UsageError("there is no model to sample from", "name one: --model FOLDER_or_URL")
        for name, address, told in (("model", self.model, self.model_name), ("judge", self.judge, self.judge_name)):
            if address.startswith(("http://", "https://")) and not told:
                raise UsageError(f"{address} serves many models", f"say which: --{name}_name NAME")
        if self.frame not in FRAMES:
            raise UsageError(f"unknown frame {self.frame!r}", f"one of {', '.join(FRAMES)}")
        if not self.task and not self.data:
            raise UsageError("there are no problems", "give --task NAME, or --data FILE, or both")
        if not self.task and not self.judge:
            raise UsageError(
                "nobody says which samples are right", "give --task NAME_or_FILE.py, or --judge FOLDER_or_URL"
            )
        for name in ("problems", "samples", "max_tokens", "concurrency", "chunk"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}", "use 1 or more")
        self.judging.validate()
        self.rules.validate()

    @property
    def params(self) -> SamplingParams:
        """How samples are drawn."""
        return SamplingParams(max_tokens=self.max_tokens, temperature=self.temperature, top_p=self.top_p)


REJECT_PRESETS: dict[str, RejectRunConfig] = {
    "cpu": RejectRunConfig(),
    "tiny": RejectRunConfig(problems=16, samples=4, max_tokens=96, chunk=8),
    "gpu": RejectRunConfig(problems=10_000, samples=16, max_tokens=4096, chunk=256),
}

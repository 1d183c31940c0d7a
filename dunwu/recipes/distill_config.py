"""The knobs of the recipe `distill`: no torch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from dunwu.train.config import Precision, SftConfig
from dunwu.train.distill_config import DistillConfig
from dunwu.types import UsageError


@dataclass(frozen=True)
class DistillRunConfig:
    """A student taught by a teacher: the teacher's texts, its distributions on given texts, or on the student's own."""

    student: str = ""
    """Model folder in Hugging Face's layout that learns, or RUN:STAGE."""
    teacher: str = ""
    """Model folder that teaches, or RUN:STAGE; for method sequence also the URL of an OpenAI-compatible server."""
    teacher_name: str = ""
    """The teacher's name on that server."""
    method: Literal["sequence", "sft", "logit", "on-policy"] = "sft"
    """What the student is trained on: texts (sequence, also called sft), or the teacher's distributions on given texts (logit) or on its own."""
    data: tuple[str, ...] = ()
    """Files of conversations: sequence learns them as they are, logit as the teacher sees them; on-policy takes their questions."""
    prompts: tuple[str, ...] = ()
    """Files of questions, {"question": …} or {"messages": […]}: for sequence and logit the teacher answers them."""
    task: str = ""
    """Logit and on-policy: a name from `dunwu tasks`, or a task file (FILE.py), that asks instead of files, and is scored."""
    options: tuple[str, ...] = ()
    """Options of a named task as NAME=VALUE."""
    task_data: str = ""
    """Problems for a named task."""
    samples: int = 1
    """For sequence: the teacher's answers to each question."""
    max_tokens: int = 256
    """For sequence: the teacher's longest answer; what reaches it is left out and counted."""
    temperature: float = 0.7
    """For sequence: of the teacher's answers."""
    sft: SftConfig = field(default_factory=SftConfig)
    """For sequence: the training."""
    held_out: float = 0.05
    """For sequence: share of the conversations that is never trained on."""
    distill: DistillConfig = field(default_factory=DistillConfig)
    """Logit and on-policy: the sampling and the training."""
    held_out_problems: int = 128
    """With a task: validation problems behind each point of the held-out curve."""
    eval_every: int = 10
    """Updates between held-out points."""
    save_every: int = 10
    """Updates between checkpoints."""
    chunk: int = 64
    """Teacher's answers between two saves."""
    precision: Precision = "auto"
    """For sequence: weights and activations; "auto" is bf16 where the processor multiplies it fast."""
    device: str = "auto"
    """cpu, cuda, mps, or auto."""

    def validate(self) -> None:
        """Raise UsageError for settings that cannot work, before anything long has begun."""
        if not self.student:
            raise UsageError("there is no student", "name a model folder: --student FOLDER, or RUN:STAGE")
        if self.method not in ("sequence", "sft", "logit", "on-policy"):
            raise UsageError(f"method is {self.method!r}", "use sequence, logit or on-policy")
        counts = ("samples", "max_tokens", "held_out_problems", "eval_every", "save_every", "chunk")
        if low := [name for name in counts if getattr(self, name) < 1]:
            raise UsageError(f"{low[0]} is {getattr(self, low[0])}", "use 1 or more")
        if not 0 <= self.temperature <= 100:
            raise UsageError(f"temperature {self.temperature} is out of range", "0 is greedy, 0.7 usual")
        if not 0 <= self.held_out < 1:
            raise UsageError(f"held_out {self.held_out} is no share", "choose 0 or more and less than 1, e.g. 0.05")
        self.sft.validate()
        self.distill.validate()
        (self._validate_texts if self.by_texts else self._validate_distributions)()

    @property
    def by_texts(self) -> bool:
        """Whether the student learns texts, and not distributions."""
        return self.method in ("sequence", "sft")

    @property
    def settings(self) -> DistillConfig:
        """`distill`, with the method's share of the student's own samples."""
        return replace(self.distill, on_policy_share=0.0) if self.method == "logit" else self.distill

    def _validate_texts(self) -> None:
        if self.task:
            what = "method sequence learns texts, and a task has none"
            raise UsageError(what, "sample it first with `dunwu run reject`, or use --method on-policy")
        if not (self.data or self.prompts):
            raise UsageError(
                "there is nothing to learn from", "give --data FILE …, or --prompts FILE … for the teacher"
            )
        if self.prompts and not self.teacher:
            raise UsageError("nobody answers the prompts", "name a model folder or a server: --teacher FOLDER")
        if self.teacher and not self.prompts:
            raise UsageError("the teacher is asked nothing", "give --prompts FILE …, or leave --teacher away")
        if self.teacher.startswith(("http://", "https://")) and not self.teacher_name:
            raise UsageError(f"{self.teacher} serves models by name", "name one: --teacher_name NAME")

    def _validate_distributions(self) -> None:
        if not self.teacher:
            raise UsageError("there is no teacher", "name a model folder: --teacher FOLDER, or RUN:STAGE")
        if self.teacher.startswith(("http://", "https://")):
            raise UsageError("a server does not give its distributions", "use --method sequence, or a model folder")
        if bool(self.task) == bool(self.data or self.prompts):
            raise UsageError("one source of questions is needed", "give --task, or files with --prompts or --data")
        if (self.options or self.task_data) and not self.task:
            raise UsageError("options and task_data belong to a task", "name it: --task NAME")
        if self.method == "logit" and self.distill.on_policy_share not in (0.0, 1.0):
            what = f"method logit shows given texts only, and on_policy_share is {self.distill.on_policy_share}"
            raise UsageError(what, "use --method on-policy for a mixture")


DISTILL_PRESETS: dict[str, DistillRunConfig] = {
    "cpu": DistillRunConfig(),
    "tiny": DistillRunConfig(
        sft=SftConfig(context=256, batch_tokens=1024, warmup=2, lr=3e-3),
        held_out=0.2,
        distill=DistillConfig(steps=6, problems=8, group_size=1, max_tokens=48, warmup=2, lr=2e-3),
        held_out_problems=32,
        eval_every=3,
        save_every=2,
    ),
    # 1e-4 is what has been reported for distilling billions of weights by LoRA; all weights take less.
    "gpu": DistillRunConfig(
        max_tokens=4096,
        sft=SftConfig(context=8192, batch_tokens=262_144, micro_tokens=32_768, lr=5e-5, warmup=20, weight_decay=0.0),
        distill=DistillConfig(
            steps=150, problems=64, group_size=4, max_tokens=4096, lr=1e-5, warmup=10, micro_tokens=32_768
        ),
    ),
}

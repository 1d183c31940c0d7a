"""The fields of a `config.json`, each checked as it is asked for; and what is said of those that nobody asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dunwu.types import DunwuError

KNOWN = "Qwen2, Qwen2.5, Qwen3, Qwen3-MoE, Llama 3, DeepSeek-V3"
"""The classes that are ours, as people say it."""

_HARMLESS = frozenset(
    """architectures auto_map dtype torch_dtype transformers_version use_cache initializer_range tokenizer_class
    output_router_logits router_aux_loss_coef aux_loss_alpha seq_aux ep_size pretraining_tp id2label label2id num_labels
    problem_type finetuning_task task_specific_params return_dict output_attentions output_hidden_states torchscript
    model_type is_decoder is_encoder_decoder chunk_size_feed_forward prefix tf_legacy_loss use_bfloat16 sliding_window
    max_window_layers max_length min_length do_sample temperature top_k top_p repetition_penalty qk_head_dim language
    license num_return_sequences dunwu""".split()  # noqa: SIM905 (forty lines otherwise)
)
"""Fields that say nothing about what is computed, or only together with one that is checked."""
_HARMLESS_FORMS = ("_", "unsloth_")
_NEEDED: Any = object()


class NotOurs(DunwuError):
    """A model, sound in itself, that this project's own classes do not compute."""

    def __init__(self, what: str) -> None:
        super().__init__(what, f"known: {KNOWN}; others load through transformers: pip install 'dunwu[hf]'")


class Fields:
    """The fields of a record, each checked when it is asked for; null counts as absent."""

    def __init__(self, record: Mapping[str, Any], where: str) -> None:
        self.record, self.where = record, where
        self.seen: set[str] = set()

    def value(self, name: str, default: Any = _NEEDED) -> Any:
        self.seen.add(name)
        value = self.record.get(name)
        if value is not None:
            return value
        if default is _NEEDED:
            raise DunwuError(f"{self.where} has no field '{name}'", "copy the model folder again")
        return default

    def whole(self, name: str, default: Any = _NEEDED, least: int = 1) -> int:
        value = self.value(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self.wrong(name, value, f"a whole number from {least}")
        return value

    def number(self, name: str, default: Any = _NEEDED, above: float = 0.0) -> float:
        value = self.value(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not above < value < math.inf:
            raise self.wrong(name, value, f"a number above {above:g}")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.value(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, value, "true or false")
        return value

    def items(self, name: str) -> list[Any]:
        value = self.value(name, [])
        if not isinstance(value, list):
            raise self.wrong(name, value, "a list")
        return value

    def only(self, name: str, *allowed: Any) -> None:
        """The field, if it is there, has one of these values, or the model is not ours."""
        value = self.value(name, allowed[0])
        if value not in allowed:
            raise NotOurs(f"{self.where}: {name} is {value!r}")

    def wrong(self, name: str, value: Any, wanted: str) -> DunwuError:
        return DunwuError(f"{self.where}: {name} is {value!r}", f"it must be {wanted}; copy the model folder again")

    def check_rest(self, of_what: str) -> None:
        """No field is left that could change the computation without our knowing."""
        for name, value in self.record.items():
            harmless = name in _HARMLESS or name.startswith(_HARMLESS_FORMS) or name.endswith("_token_id")
            if name not in self.seen and not harmless and value is not None:
                cure = "remove it, or in Python: from_pretrained(FOLDER, foreign=True)"
                raise DunwuError(f"{self.where}: field '{name}' is not known of {of_what}", cure)

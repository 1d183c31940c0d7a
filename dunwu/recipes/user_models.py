"""The model that a user names: a folder, a stage of a run, a name of the hub, or a PEFT adapter."""

from __future__ import annotations

from pathlib import Path

from dunwu.data.tokenizer import load_tokenizer
from dunwu.log import Run
from dunwu.model.hf import save_model, stop_ids_of
from dunwu.model.lora_files import base_folder, is_adapter, load_adapted
from dunwu.model.runtime import COMPUTED
from dunwu.recipes.pretraining import MODEL
from dunwu.recipes.stages import model_digest
from dunwu.store import resolve_model


def model_folder(run: Run, text: str) -> Path:
    """`resolve_model`; and of a PEFT adapter the merged model, which is a stage of the run.

    Raises:
        UsageError, DunwuError: no such model; an adapter that is damaged, not covered, or whose base is not here.
    """
    folder = Path(text).expanduser()
    if not is_adapter(folder):
        return resolve_model(text, run.store)
    base = base_folder(folder)

    def build(work: Path) -> dict[str, object]:
        encoder = load_tokenizer(folder if (folder / "tokenizer.json").is_file() else base)
        encoder = encoder.stopping_at(stop_ids_of(base))
        model = load_adapted(folder, base)
        save_model(model, work / MODEL, encoder.end_id, encoder.stop_ids)
        encoder.save(work / MODEL, model.config.max_position_embeddings)
        return {"parameters": model.config.num_parameters}

    key = {"adapter": model_digest(folder), "base": model_digest(base)}
    return run.stage("merged", build, key, version=COMPUTED).path / MODEL

"""Models by name: the Hugging Face hub's cache on this machine, or a download, through `huggingface_hub`.

Only configuration, tokenizer and safetensors files are fetched; never code, never pickles.
"""

from __future__ import annotations

import re
from pathlib import Path

from dunwu.types import DunwuError

FILES = ("*.json", "*.jinja", "*.safetensors", "merges.txt")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_hub_name(text: str) -> bool:
    """Whether `text` has the form ORGANISATION/MODEL.

    Example:
        >>> is_hub_name("Qwen/Qwen2.5-3B"), is_hub_name("runs/x:base"), is_hub_name("./model")
        (True, False, False)
    """
    return _NAME.fullmatch(text) is not None


def from_hub(name: str) -> Path:
    """The folder of a model of the hub, from its cache or downloaded.

    Raises:
        DunwuError: the extra is not installed, there is no such model, or it cannot be had (no network, no permission).
    """
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise DunwuError(
            f"{name} is no folder here, and the hub needs a library", "pip install 'dunwu[hf]', or give a folder"
        ) from None
    try:
        return Path(snapshot_download(name, allow_patterns=list(FILES)))
    except Exception as error:
        said = " ".join(str(error).split())[:160]
        raise DunwuError(
            f"{name} is no folder here, and the hub does not give it: {said}", "check the name, or give a folder"
        ) from error

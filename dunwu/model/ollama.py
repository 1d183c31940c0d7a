"""A model folder as what `ollama create NAME -f Modelfile` takes: model.gguf and its Modelfile.

ollama reads the Jinja template in the GGUF; where it is older, or asked to (OLLAMA_GO_TEMPLATE=1), the Modelfile's own, in
Go's language. The context is written out because ollama's default is far below what a model can.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dunwu.disk import write_atomically
from dunwu.model.gguf import Kind, Written, write_gguf
from dunwu.model.gguf_tokenizer import CONTROL, Vocabulary, read_vocabulary, stop_tokens
from dunwu.model.hf_config import from_hf_config
from dunwu.model.stored import read_json
from dunwu.types import DunwuError

TEMPERATURE, TOP_P = 0.6, 0.95
"""What R1 was evaluated and is advised to be used with; greedy decoding repeats itself (2501.12948, section 3)."""


def write_ollama(folder: Path, out: Path, kind: Kind = "f16", go_template: str = "", name: str = "") -> Written:
    """Write model.gguf and Modelfile into `out`.

    Args:
        kind: see `write_gguf`.
        go_template: the chat template in Go's language; "" leaves it to the one in the GGUF.
        name: what programs show.

    Raises:
        DunwuError: as `write_gguf`.
    """
    config = from_hf_config(read_json(folder / "config.json"), str(folder / "config.json"))
    vocabulary = read_vocabulary(folder, config.vocab_size)
    stops = _stops(folder, vocabulary)
    text = modelfile(config.max_position_embeddings, stops, vocabulary.template is not None, go_template)
    written = write_gguf(folder, out / "model.gguf", kind, name)
    write_atomically(out / "Modelfile", text)
    return written


def modelfile(context: int, stops: Sequence[str], chats: bool = True, go_template: str = "") -> str:
    """The text of a Modelfile.

    Args:
        context: tokens of a conversation at most.
        stops: texts that end a reply.
        chats: adds R1's temperature and top_p.

    Example:
        >>> print(modelfile(1024, ["<|im_end|>"], chats=False), end="")
        FROM ./model.gguf
        PARAMETER num_ctx 1024
        PARAMETER stop "<|im_end|>"
    """
    lines = ["FROM ./model.gguf"]
    if go_template:
        if '"""' in go_template:
            raise DunwuError('the Go template holds """, which ends it in a Modelfile', "write it without")
        lines.append(f'TEMPLATE """{go_template}"""')
    lines.append(f"PARAMETER num_ctx {context}")
    if chats:
        lines += [f"PARAMETER temperature {TEMPERATURE}", f"PARAMETER top_p {TOP_P}"]
    lines += [f'PARAMETER stop "{stop}"' for stop in stops]
    return "\n".join(lines) + "\n"


def _stops(folder: Path, vocabulary: Vocabulary) -> list[str]:
    """The control tokens that end a reply, and the one that would begin the next turn."""
    ends = [vocabulary.tokens[number] for number in stop_tokens(folder) or [vocabulary.eos]]
    begins = [token for token in ("<|im_start|>",) if token in vocabulary.tokens]
    kinds = dict(zip(vocabulary.tokens, vocabulary.kinds))
    return [token for token in (*begins, *ends) if kinds[token] == CONTROL and '"' not in token]

"""Is memory flat? Peak resident memory at 1× and 10× the size, each measured in a process of its own.

    python tests/memory_flat.py [--tokens 2000000] [--updates 20]

Three things stream a corpus: generated pages to token shards, a user's text and JSONL files to token
shards, and pretraining steps over shards of both sizes. The fourth is an update's log-probabilities, forward and
backward, with 1× and 10× the vocabulary. Prints one JSON object with the peaks in MB and their
ratios (10× over 1×); exit code 1 if one is above 1.10. Peaks are the kernel's own high-water marks (VmHWM).
Not collected by pytest: it takes minutes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from dunwu.data.shards import ShardWriter
from dunwu.data.tokenizer import load_tokenizer, train_from_texts
from dunwu.world.knobs import Knobs
from dunwu.world.web import pages

LIMIT = 1.10
PAGES = 2000
"""Pages per call of the writer, as in the recipe."""


def world(folder: Path, tokens: int) -> None:
    """Pages to shards until there are `tokens`."""
    encoder = load_tokenizer(folder)
    writer = ShardWriter(folder / f"world-{tokens}", encoder.vocab_size, encoder.end_id)
    stream = (page.text for page in pages(Knobs(), seed=0))
    while writer.tokens < tokens:
        writer.add(encoder.encode_batch(list(islice(stream, PAGES))))
    writer.close()


def files(folder: Path, tokens: int) -> None:
    """A text file and a JSONL file of about half the tokens each, through the recipe's own stage."""
    from dunwu.log import Run
    from dunwu.recipes.configs import PretrainRunConfig
    from dunwu.recipes.pretrain import shards, tokenizer
    from dunwu.store import Store

    names = [folder / f"files-{tokens}.{suffix}" for suffix in ("txt", "jsonl")]
    config = PretrainRunConfig(data=tuple(map(str, names)), tokenizer=str(folder))
    with Run.open(folder / f"run-{tokens}", "pretrain", {}, 0, Store(folder / "store")) as run:
        described = [[name.stem, name.suffix, str(tokens)] for name in names]
        shards(run, config, described, tokenizer(run, config, described))


def write_files(folder: Path, tokens: int) -> None:
    """What `files` reads: the same 3,000 pages over and over, as text and as JSONL."""
    encoder = load_tokenizer(folder)
    paths = [folder / f"files-{tokens}.{suffix}" for suffix in ("txt", "jsonl")]
    size = 0
    with paths[0].open("w", encoding="utf-8") as text, paths[1].open("w", encoding="utf-8") as lines:
        for page in islice(pages(Knobs(), seed=1), 3000):
            text.write(page.text + "\n")
            lines.write(json.dumps({"text": page.text}, ensure_ascii=False) + "\n")
            size += len(encoder.encode(page.text))
    for path in paths:
        block = path.read_bytes()
        with path.open("ab") as file:
            for _ in range(tokens // (2 * size)):
                file.write(block)


def training(folder: Path, tokens: int, updates: int) -> None:
    """Updates of a small model over the shards `world` wrote."""
    import torch

    from dunwu.data.shards import PackedShards
    from dunwu.model.config import model_preset
    from dunwu.model.transformer import Transformer
    from dunwu.train.config import PretrainConfig
    from dunwu.train.optim import MasterAdamW
    from dunwu.train.pretrain import pretrain

    config = PretrainConfig(rows=16, context=256, tokens=updates * 16 * 256)
    shards = PackedShards(folder / f"world-{tokens}", config.context, seed=0)
    model = Transformer(model_preset("tiny", load_tokenizer(folder).vocab_size))
    model.init_weights(torch.Generator().manual_seed(0))
    for _ in pretrain(model, MasterAdamW(model), shards, config):
        shards.batch(shards.total // config.rows, config.rows)  # into the next epoch: every shard's order is drawn


def update(vocabulary: int) -> None:
    """Log-probabilities of 30,000 tokens and their gradient. Whole logits of 1,000 tokens would be 120 MB, of 10,000
    ten times that; the output matrix itself is below 1 MB."""
    import torch

    from dunwu.train.losses import state_logprobs

    generator = torch.Generator().manual_seed(0)
    states, head = (torch.randn(rows, 16, generator=generator, requires_grad=True) for rows in (30_000, vocabulary))
    chosen = torch.randint(vocabulary, (30_000,), generator=generator)
    state_logprobs(states, head, chosen)[0].sum().backward()  # type: ignore[no-untyped-call]


def peak_mb() -> float:
    """High-water mark of this process's resident memory. `getrusage` would also count the parent's before exec."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("memory_flat.py reads /proc/self/status, which this system has not")


def measure(work: str, folder: Path, tokens: int, updates: int) -> float:
    """Peak of one piece of work in a fresh process."""
    command = [sys.executable, __file__, "--work", work, "--folder", str(folder)]
    command += ["--tokens", str(tokens), "--updates", str(updates)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.splitlines()[-1])


def main() -> int:
    """Compare 1× with 10×, or do one piece of work in this process (`--work`)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2_000_000, help="tokens of the 1× corpus (2,000,000)")
    parser.add_argument("--updates", type=int, default=20, help="pretraining updates at either size (20)")
    parser.add_argument("--work", choices=("world", "files", "training", "update"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        works: dict[str, Callable[[], None]] = {
            "world": lambda: world(args.folder, args.tokens),
            "files": lambda: files(args.folder, args.tokens),
            "training": lambda: training(args.folder, args.tokens, args.updates),
            "update": lambda: update(args.tokens),
        }
        works[args.work]()
        print(peak_mb())
        return 0
    result: dict[str, object] = {"tokens": [args.tokens, 10 * args.tokens], "limit": LIMIT}
    worst = 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train_from_texts((page.text for page in islice(pages(Knobs(), seed=0), 2000)), 1024).save(folder)
        for work, size in (("world", args.tokens), ("files", args.tokens), ("training", args.tokens), ("update", 1000)):
            peaks = []
            for tokens in (size, 10 * size):
                if work == "files":
                    write_files(folder, tokens)
                peaks.append(measure(work, folder, tokens, args.updates))
            result[work] = {"peak_mb": [round(peak, 1) for peak in peaks], "ratio": round(peaks[1] / peaks[0], 3)}
            worst = max(worst, peaks[1] / peaks[0])
    result["ok"] = worst <= LIMIT
    print(json.dumps(result))
    return 0 if worst <= LIMIT else 1


if __name__ == "__main__":
    raise SystemExit(main())

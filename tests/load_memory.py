"""How much memory does loading take? Peak resident memory over the size of the weights, each load in a process of its own.

    python tests/load_memory.py [--folder DIR]

Random checkpoints in the shapes of Qwen2.5-0.5B (1 GB) and Llama-3.2-1B (2.5 GB), and a small one in DeepSeek-V3's
class, in bf16; each is loaded as it is stored and to fp32. Prints one JSON object with the weights and peaks in MB and their ratios;
exit code 1 if one is above 1.3. Peaks are the kernel's own high-water marks (VmHWM) over what stood before the load.
Files are written below DIR and removed. Not collected by pytest, whose tests use the same functions on small shapes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from dunwu.model.config import Llama3Rope, MlaShape, ModelConfig, MoeShape, Yarn

LIMIT = 1.3
QWEN = ModelConfig(151_936, 896, 24, 14, 2, 4864, 32_768, 1e6)
LLAMA = ModelConfig(128_256, 2048, 16, 32, 8, 8192, 131_072, 5e5, qkv_bias=False, rope_scaling=Llama3Rope(32.0, 8192))
DEEPSEEK = ModelConfig(
    vocab_size=32_000, hidden_size=1024, num_layers=6, num_heads=8, num_kv_heads=8, intermediate_size=2816, qkv_bias=False,
    max_position_embeddings=163_840, tie_word_embeddings=False, mla=MlaShape(512, 128, 64, 128, q_rank=384), mtp_depth=1,
    moe=MoeShape(32, 8, 512, shared=1, first_dense=1, groups=8, top_groups=4, scale=2.5),
    rope_scaling=Yarn(40.0, 4096, mscale=1.0, mscale_all_dim=1.0),
)  # fmt: skip
SHAPES = {"Qwen2.5-0.5B": QWEN, "Llama-3.2-1B": LLAMA, "DeepSeek-V3 toy": DEEPSEEK}


def write(config: ModelConfig, folder: Path) -> None:
    """A checkpoint of random weights in bf16."""
    import torch

    from dunwu.model.hf import save_model
    from dunwu.model.hf_weights import unfilled
    from dunwu.model.transformer import Transformer

    with unfilled():
        model = Transformer(config).bfloat16()
    model.to_empty(device="cpu")
    for buffer in model.buffers():  # routers' biases: `init_weights` fills parameters only
        buffer.zero_()
    model.init_weights(torch.Generator().manual_seed(0))
    save_model(model, folder, end_id=0)


def measured(folder: Path, dtype: str) -> tuple[int, int]:
    """Bytes of the weights in this dtype, and peak bytes of a load above what stood before, in a process of its own."""
    command = [sys.executable, __file__, "--measure", str(folder), dtype]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    weights, peak = json.loads(done.stdout)
    return weights, peak


def measure(folder: Path, dtype: str) -> tuple[int, int]:
    """The same in this process."""
    import torch

    from dunwu.model.hf import load_model

    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins here
    before = status("VmRSS")
    model = load_model(folder, dtype=getattr(torch, dtype))
    return sum(tensor.nbytes for tensor in model.state_dict().values()), status("VmHWM") - before


def status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(Path(args.measure[0]), args.measure[1])))
        return 0
    result: dict[str, dict[str, float]] = {"weights_mb": {}, "peak_mb": {}, "ratio": {}}
    for name, config in SHAPES.items():
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            write(config, Path(folder))
            for dtype in ("bfloat16", "float32"):
                weights, peak = measured(Path(folder), dtype)
                key = f"{name}, {dtype}"
                result["weights_mb"][key] = round(weights / 1e6, 1)
                result["peak_mb"][key] = round(peak / 1e6, 1)
                result["ratio"][key] = round(peak / weights, 3)
    print(json.dumps(result, indent=2))
    return int(max(result["ratio"].values()) > LIMIT)


if __name__ == "__main__":
    sys.exit(main())

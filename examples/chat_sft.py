"""Your own chat data taught to a model: python examples/chat_sft.py [FILE.jsonl]

A row is {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}; ShareGPT's and Alpaca's
rows are read as well, and rows that cannot be used are named. The same from the command line:
dunwu run sft --model FOLDER --data FILE.jsonl
"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from dunwu.data.chat import encode_conversation, read_chat, write_chat
from dunwu.data.tokenizer import train_from_texts
from dunwu.model.config import model_preset
from dunwu.model.transformer import Transformer
from dunwu.rollout.engine import Engine
from dunwu.rollout.local import LocalChat
from dunwu.train.config import SftConfig
from dunwu.train.optim import MasterAdamW
from dunwu.train.sft import sft
from dunwu.types import ChatExample, Message, SamplingParams

COLOURS = {"grass": "green", "snow": "white", "coal": "black", "the sky": "blue", "blood": "red"}


def make_data(file):
    """A few conversations, and a row that is none."""
    asked = {f"What colour is {thing}?": f"It is {colour}." for thing, colour in COLOURS.items()}
    write_chat(file, [ChatExample((Message("user", q), Message("assistant", a))) for q, a in asked.items()])
    with file.open("a", encoding="utf-8") as rows:
        rows.write('{"messages": []}\n')


def main(file):
    """Fine-tune a model made on the spot; returns (bad rows, first and last loss, question and reply)."""
    examples, bad = read_chat(file)
    for row in bad:
        print(f"{file.name} line {row.line}: {row.reason}")
    tokenizer = train_from_texts([m.content for example in examples for m in example.messages], 300)
    model = Transformer(model_preset("tiny", tokenizer.vocab_size))
    model.init_weights(torch.Generator().manual_seed(0))
    encoded = [encode_conversation(tokenizer, example.messages) for example in examples]
    config = SftConfig(epochs=60, batch_tokens=200, lr=3e-3)
    losses = [step.metrics["sft/loss"] for step in sft(model, MasterAdamW(model), encoded, config, seed=0)]
    print(f"loss {losses[0]:.2f} → {losses[-1]:.4f} nats a token in {len(losses)} updates")
    question = examples[0].messages[:1]
    chat = LocalChat(Engine(model, tokenizer), tokenizer, "mine")
    reply = chat.reply([question], [0], SamplingParams(max_tokens=32, temperature=0.0))[0]
    print(f"{question[0].content} {reply.content}")
    return bad, (losses[0], losses[-1]), (question[0].content, reply.content)


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        if not sys.argv[1:]:
            make_data(Path(folder) / "chat.jsonl")
        main(Path(sys.argv[1]) if sys.argv[1:] else Path(folder) / "chat.jsonl")

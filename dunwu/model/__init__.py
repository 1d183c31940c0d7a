"""Tokens to logits: one decoder-only transformer, in plain torch and over the C kernels; Hugging Face folders in and out.

No parallelism and no sampling here; the rollout room drives the KV cache.
"""

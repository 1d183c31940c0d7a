"""Groups in, gradients out: advantages and losses (pure functions), the optimizer, checkpoints, and the loops.

`advantages` and `losses` know nothing of models, samplers or files; `pretrain` and `grpo` are generators of
steps built on top of them, so that evaluation and saving stay visible in the recipe.
"""

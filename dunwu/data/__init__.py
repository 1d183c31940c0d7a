"""Documents to token shards, and the tokenizer. No model, no task."""

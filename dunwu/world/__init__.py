"""The embedded default data: a generated web with exact ground truth, deterministic from a seed."""

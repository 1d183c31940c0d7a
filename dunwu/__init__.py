"""dunwu (顿悟): DeepSeek-R1's pipeline, from web pages to a reasoning model, on a laptop CPU."""

__version__ = "0.1.0"

"""Prompts to scored groups: the engine and its decoders, endpoints, judges, rejection."""

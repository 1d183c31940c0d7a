"""Prompts to scored groups: the KV-cache engine."""

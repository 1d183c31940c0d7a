"""Weights to conversation: who speaks (`speaker`), what is shown of it (`pieces`), and the terminal (`terminal`)."""

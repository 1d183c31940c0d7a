"""Simple control systems, and the language models' algorithms on them."""

"""Small C libraries for the processor at hand, compiled when first needed; every caller has a plain-torch path too.

`build` compiles and caches, the other modules mirror one C file each. Knows tensors, but neither models nor tasks.
"""

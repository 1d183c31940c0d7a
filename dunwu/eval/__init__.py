"""Weights or files → evidence: pass@k, cons@k, emergence, the report. Reads; never trains."""

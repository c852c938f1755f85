"""Folders of checkpoints: steps in order, what was left out, and what is told beside them.

Begin with `run`; `run_files` tells checkpoints from other files, `recipes` reads ``run.json`` of any
trainer, `exports` writes checkpoints.
"""

"""Checkpoint files in, tensors out, nothing executed.

Begin with `reader`; the file is opened by `reader_worker` in another process (`reader_process`), with the
parsers of `reading`; `step_names` tells the step that a file name means.
"""

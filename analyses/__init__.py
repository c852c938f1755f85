"""Studies: checkpoints in, reports out; the ``rhoscope`` command line."""

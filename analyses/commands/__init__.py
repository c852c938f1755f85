"""The commands of ``rhoscope``, one module each; `analyses.cli` gathers them."""

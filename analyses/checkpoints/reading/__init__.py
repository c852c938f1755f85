"""Parsers of strangers' files: torch archives, safetensors, folders, without unpickling code.

Begin with `folders` (which kind of file is this) and `statedicts` (which tensors are meant); `pickles`
reads the pickle language with the names in `allowlist` only.
"""

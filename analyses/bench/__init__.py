"""Benchmarks: ratios against the best existing tool, in the same run.

One file a command of ``rhoscope bench``; `timing` is what they share.
"""

"""What every study uses: files, jobs, drawing, the user's cache.

Begin with `study_files` (atomic writes, ``.nc`` files with provenance) and `jobs` (workers and clusters).
"""

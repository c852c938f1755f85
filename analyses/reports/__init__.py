"""Parts of pages and figures that several studies share.

Begin with `sections` (titles, tables, figures of a page), then `figures`.
"""

"""Studies: each takes subjects and gives a document, a dataset, figures and a section of a page.

One room a study; those of one file stand here. `page` makes the report of any of them. A new study is a
room with `study`, `document`, `figures`, `section`, one command, and one line in `page`.
"""

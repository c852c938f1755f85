"""A network with its task, ready for any study.

Begin with `subject`; `potential_sets` names sets of potentials, `order_parameters` sums them up,
`task_check` warns of a network that does not do its task.
"""

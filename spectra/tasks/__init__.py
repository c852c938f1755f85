"""What a network is asked to do: losses over the pairs of a group, by fast forms.

Begin with `group_task` (square activation) and `output_task` (any activation); `gram_terms` and
`pair_terms` are their fast products, `relabelled_task` sees the elements in another order.
"""

"""The reference trainer, its flow time, and the published table that it repeats.

Begin with `trainer`; `published` repeats a published protocol, `family_table` compares with its table.
"""

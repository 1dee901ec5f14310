"""The domain: pure folds and decisions, without database or clock; time is an argument.

Read it from the bottom up: `blocks` and `block_table` (data structures), `account`, `chain`, `state` (folds),
`unit_of_work`, `commands`, `fact_commands` (decisions).
"""

"""The paper's tables as runs: one table of facts, and the ``lmms-eval --config`` files made from it."""

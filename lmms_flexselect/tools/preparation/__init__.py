"""The benchmarks' data: what there is, where lmms-eval looks for it, and how it gets there."""

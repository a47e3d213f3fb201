"""Qwen3-VL, dense and mixture of experts."""

"""``lmms-eval --config`` files; installed as ``lmms_flexselect.run_configs``."""

"""lmms-eval task YAMLs that upstream lacks; installed as ``lmms_flexselect.tasks``."""

"""``lmms-flexselect doctor``: whether this machine can run a config, and what to do if not."""

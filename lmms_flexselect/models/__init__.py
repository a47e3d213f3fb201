"""lmms-eval model classes: one per upstream wrapper they subclass, as thin as can be.

Importing this package imports nothing: lmms-eval resolves the classes by the paths in `lmms_flexselect.manifests`.
"""

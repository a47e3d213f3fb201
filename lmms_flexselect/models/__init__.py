"""What the classes that lmms-eval runs share, whatever their family: options, order, records, and upstream's seams.

The classes themselves are in their families' folders; lmms-eval resolves them by the paths in
`lmms_flexselect.manifests`.
"""

"""Training a FlexSelect-Lite selector by rank supervision."""

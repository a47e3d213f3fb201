"""See `spec`."""

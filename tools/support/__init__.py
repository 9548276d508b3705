"""tools/support."""

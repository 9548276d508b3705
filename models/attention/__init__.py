"""models/attention."""

"""models/positions."""

"""The density that is to be sampled: its energy, bounds and standardised coordinates."""

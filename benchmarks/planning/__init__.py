"""How long planning takes, and how far from optimal plans are."""

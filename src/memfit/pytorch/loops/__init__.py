"""Recurrences that are planned and run as rolled loops."""

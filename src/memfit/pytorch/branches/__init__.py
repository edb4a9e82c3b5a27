"""Branches on data: traced as they went once, checked in every step."""

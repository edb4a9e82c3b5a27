"""Figures and sentences about steps and plans, as data: what reports and commands show."""

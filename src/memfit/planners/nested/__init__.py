"""Stages whose backward is planned recursively."""

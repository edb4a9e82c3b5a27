"""The architectures, a module for each group: `ARCHITECTURES` makes a step by name.

No module of a group imports a package when it is imported itself, so that names can be listed
without any of them.
"""

"""Modules that cannot be traced, as one op each: kept, or run again from their inputs."""

"""The report page: what it holds, and the files that it is made of."""

"""The executor that generates code, and what fusion does to costs and order."""

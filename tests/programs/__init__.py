"""Random training programs: made from a seed, run by plain PyTorch and by memfit, compared, shrunk.

`python -m programs --help` (from the folder `tests`) says how to run them.
"""

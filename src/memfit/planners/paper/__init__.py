"""The dynamic programs of Kusumoto et al. 2019 over canonical strategies."""

"""The experiments of Kusumoto et al. 2019 beside memfit's plans."""

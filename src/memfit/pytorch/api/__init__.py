"""What users call: fit, plan, trade_off, verify, bound, and the module that trains."""

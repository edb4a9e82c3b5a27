"""What ended a step, told in one line with its cause and a remedy."""

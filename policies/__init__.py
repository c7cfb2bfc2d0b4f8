"""Facts in, decision with its reason out: pure functions, and the vocabulary that all packages share."""

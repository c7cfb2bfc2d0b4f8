"""Model in, serving model out: engines, their proof and measurement, and the way into Triton."""

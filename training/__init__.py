"""Training: text in, a folder that the engine loads out. Knows nothing of the engine or of HTTP."""

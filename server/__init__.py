"""Text and HTTP: the OpenAI chat API in front of a denoising engine. Knows no tensors."""

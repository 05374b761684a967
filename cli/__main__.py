"""`python -m diffusiongpt.cli`."""

from diffusiongpt.cli.main import app

app()

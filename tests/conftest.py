"""What holds for every test: one thread, and no settings from the shell that runs them."""

from __future__ import annotations

import os

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _calm_machine():
    """One thread each: toy tensors gain nothing from more, and two test runs do not collide."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_settings_from_the_shell(monkeypatch):
    for name in list(os.environ):
        if name.startswith("DIFFUSIONGPT_"):
            monkeypatch.delenv(name)

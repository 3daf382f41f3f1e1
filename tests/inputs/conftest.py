from __future__ import annotations

import pytest

from fd_core.serving.inputs.text_model import TextModel
from fd_core.testkit.toy_text import write_model_folder


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory):
    return write_model_folder(tmp_path_factory.mktemp("inputs") / "toy")


@pytest.fixture(scope="session")
def toy(toy_folder):
    """The text side of the toy model."""
    return TextModel.load(toy_folder)

"""Runs every test on the device that LOLA_TEST_DEVICE names; where it is missing, tests skip and say why. What tools/
are made of can be imported; `model` is any of three small models of random weights, unless a file has its own.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lola_cpp import Model
from reference.device import DEVICE, GPU_LAYERS, why_missing

sys.path.append(str(Path(__file__).parent.parent / "tools"))


def pytest_configure() -> None:
    for function in (Model.__init__, Model.default.__func__):  # type: ignore[attr-defined]
        function.__kwdefaults__.update(device=DEVICE, gpu_layers=GPU_LAYERS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if DEVICE != "cpu" and (reason := why_missing(DEVICE)):
        for item in items:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    from reference.session_models import ADAPTERS, make_model  # needs gguf, which not every test does

    return {kind: make_model(tmp_path_factory.mktemp("models"), kind) for kind in ADAPTERS}


@pytest.fixture(params=["lola", "softmax", "hybrid"])
def model(request: pytest.FixtureRequest, models: dict[str, Model]) -> Model:
    return models[request.param]


@pytest.fixture
def lola(models: dict[str, Model]) -> Model:
    return models["lola"]

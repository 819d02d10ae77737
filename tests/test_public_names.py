"""`adaptok_hf.data.video_folder` can be a function or a module, not both."""

import importlib
import pkgutil
from types import ModuleType

import pytest

import adaptok_hf

PACKAGES = [module.name for module in pkgutil.walk_packages(adaptok_hf.__path__, "adaptok_hf.") if module.ispkg]


@pytest.mark.parametrize("package", ["adaptok_hf", *PACKAGES])
def test_no_public_name_shadows_a_module(package):
    module = importlib.import_module(package)
    submodules = {each.name for each in pkgutil.iter_modules(module.__path__)}
    shadowed = [name for name in submodules & set(dir(module)) if not isinstance(getattr(module, name), ModuleType)]
    assert shadowed == []

"""Checkpoints by name, and the modules that a pipeline's index names."""

from pathlib import Path

import diffusers.pipelines
import pytest

from adaptok_hf import AdapTokPipeline, checkpoints, find_checkpoint
from adaptok_hf.checkpoints import DEFAULT_GENERATORS, ORIGINAL_CHECKPOINTS, PACKAGED_CHECKPOINTS

FOLDER = Path(checkpoints.__file__).parent


def test_every_folder_has_a_name():
    assert {path.parent.name for path in FOLDER.glob("*/model_index.json")} == set(PACKAGED_CHECKPOINTS)


@pytest.mark.parametrize("name", [None, *PACKAGED_CHECKPOINTS])
def test_names_are_folders_of_the_package(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_checkpoint(name) == FOLDER / (name or "small")
    if name is not None:  # but a local folder comes first
        (tmp_path / name).mkdir()
        assert find_checkpoint(name) == name
        assert find_checkpoint(None) == FOLDER / "small"


def test_sizes():
    """What a clone and an installation have to carry."""
    sizes = [path.stat().st_size for path in FOLDER.rglob("*.safetensors")]
    assert max(sizes) < 20e6 and sum(sizes) < 40e6, sizes


def test_other_names_stay():
    for name in (*ORIGINAL_CHECKPOINTS, "some/folder", Path("small")):
        assert find_checkpoint(name) == name


def test_from_pretrained_takes_names(tiny_pipeline, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    figures, default = AdapTokPipeline.from_pretrained("figures"), AdapTokPipeline.from_pretrained()
    assert default.ar_model is default.fp_model is None and None not in (figures.ar_model, figures.fp_model)
    for generate in (lambda: default.generate(0), lambda: default.predict("x.mp4"), lambda: default.class_names):
        with pytest.raises(ValueError, match=f"'{DEFAULT_GENERATORS}'"):
            generate()
    tiny_pipeline.save_pretrained("small")
    assert AdapTokPipeline.from_pretrained("small").tokenizer.config.latents_per_block == 6


def test_diffusers_does_not_mistake_our_modules_for_its_own(complete_pipeline):
    """It takes a component's sub-package for one of its own where `diffusers.pipelines` has that name."""
    classes = [type(component) for component in complete_pipeline.components.values() if component is not None]
    assert len(classes) == 5
    for each in [*classes, AdapTokPipeline]:
        assert not hasattr(diffusers.pipelines, each.__module__.split(".")[-2]), each.__module__

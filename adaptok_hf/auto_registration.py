"""Registers our classes with transformers' Auto classes, and our pipeline with diffusers, without importing either
before somebody else does.

`import adaptok_hf` must be instant, while the module of `AutoModel` takes seconds to import. So registration waits until
somebody has imported that module. It also waits while a module that ours build on, or one of ours, is still being
imported, since ours could not be imported then.
"""

import importlib.abc
import sys

_AUTO = "transformers.models.auto."
_PIPELINES = "diffusers.pipelines.pipeline_utils"
# What our modules import from transformers; a module in the middle of its own import does not have its name yet.
_FOUNDATIONS = {
    "transformers.configuration_utils": "PreTrainedConfig",
    "transformers.modeling_utils": "PreTrainedModel",
    "transformers.modeling_layers": "GradientCheckpointingLayer",
    "transformers.video_processing_utils": "VideoProcessorMixin",
    _AUTO + "modeling_auto": "MODEL_MAPPING_NAMES",  # LlamaConfig's docstring decorator looks it up
    _PIPELINES: "DiffusionPipeline",
}


def _register_configs(auto) -> None:
    from .models.configuration_adaptok import AdapTokConfig
    from .models.configuration_adaptok_ar import AdapTokARConfig
    from .models.configuration_adaptok_prior import AdapTokPriorConfig
    from .models.configuration_adaptok_scorer import AdapTokScorerConfig

    for config in (AdapTokConfig, AdapTokScorerConfig, AdapTokARConfig, AdapTokPriorConfig):
        auto.AutoConfig.register(config.model_type, config)


def _register_models(auto) -> None:
    from .models.modeling_adaptok import AdapTokModel
    from .models.modeling_adaptok_ar import AdapTokARForCausalLM
    from .models.modeling_adaptok_prior import AdapTokPriorModel
    from .models.modeling_adaptok_scorer import AdapTokScorerModel

    for model in (AdapTokModel, AdapTokScorerModel, AdapTokPriorModel):
        auto.AutoModel.register(model.config_class, model)
    auto.AutoModelForCausalLM.register(AdapTokARForCausalLM.config_class, AdapTokARForCausalLM)


def _register_video_processor(auto) -> None:
    from .models.configuration_adaptok import AdapTokConfig
    from .video.video_processing_adaptok import AdapTokVideoProcessor

    auto.AutoVideoProcessor.register(AdapTokConfig, AdapTokVideoProcessor)


def _register_pipeline(pipelines) -> None:
    import diffusers

    from .pipelines.pipeline_adaptok import AdapTokPipeline

    # `DiffusionPipeline.from_pretrained` looks up the class that a folder names in diffusers' own namespace.
    diffusers.AdapTokPipeline = AdapTokPipeline


_REGISTER = {
    _AUTO + "configuration_auto": _register_configs,
    _AUTO + "modeling_auto": _register_models,
    _AUTO + "video_processing_auto": _register_video_processor,
    _PIPELINES: _register_pipeline,
}


class _AfterImport(importlib.abc.MetaPathFinder):
    """Finds the modules it watches as usual, and registers what can be registered after each has been imported."""

    def __init__(self):
        self.pending = [name for name in _REGISTER if name in sys.modules]
        self.depth = 0  # how many of our own modules are being imported

    def find_spec(self, name, path=None, target=None):
        is_ours = name.startswith(__package__ + ".")
        if not is_ours and name not in _REGISTER and name not in _FOUNDATIONS:
            return None
        found = (finder.find_spec(name, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is None or spec.loader is None:
            return spec
        run_module = spec.loader.exec_module

        def run_then_register(module):
            self.depth += is_ours
            try:
                run_module(module)
            finally:
                self.depth -= is_ours
            if name in _REGISTER:
                self.pending.append(name)
            self.register()

        spec.loader.exec_module = run_then_register
        return spec

    def register(self) -> None:
        half_imported = any(
            name in sys.modules and not hasattr(sys.modules[name], attribute) for name, attribute in _FOUNDATIONS.items()
        )
        while self.pending and not self.depth and not half_imported:
            name = self.pending.pop(0)
            _REGISTER[name](sys.modules[name])


def register_auto_classes() -> None:
    """Registers now what can be, and the rest when transformers' modules are imported."""
    hook = _AfterImport()
    sys.meta_path.insert(0, hook)
    hook.register()

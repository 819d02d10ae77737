"""Register our classes with transformers' Auto classes and our pipeline with diffusers, once these are imported.

`import adaptok_hf` takes milliseconds, the module of `AutoModel` takes seconds. So registration waits until somebody else
has imported that module, and until no module of transformers, diffusers or this package is half imported: only then can
ours be imported.
"""

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder

_AUTO = "transformers.models.auto."


def _register_configs(auto) -> None:
    from .models.configuration_adaptok import AdapTokConfig
    from .models.configuration_adaptok_ar import AdapTokARConfig
    from .models.configuration_adaptok_prior import AdapTokPriorConfig
    from .models.configuration_adaptok_router import AdapTokRouterConfig
    from .models.configuration_adaptok_scorer import AdapTokScorerConfig
    from .models.configuration_evatok import EVATokConfig

    tokenizers = AdapTokConfig, EVATokConfig
    for config in (*tokenizers, AdapTokScorerConfig, AdapTokRouterConfig, AdapTokARConfig, AdapTokPriorConfig):
        auto.AutoConfig.register(config.model_type, config)


def _register_models(auto) -> None:
    from .models.modeling_adaptok import AdapTokModel
    from .models.modeling_adaptok_ar import AdapTokARForCausalLM, AdapTokARModel
    from .models.modeling_adaptok_prior import AdapTokPriorModel
    from .models.modeling_adaptok_router import AdapTokRouterModel
    from .models.modeling_adaptok_scorer import AdapTokScorerModel
    from .models.modeling_evatok import EVATokModel

    tokenizers = AdapTokModel, EVATokModel
    for model in (*tokenizers, AdapTokScorerModel, AdapTokRouterModel, AdapTokPriorModel, AdapTokARModel):
        auto.AutoModel.register(model.config_class, model)
    auto.AutoModelForCausalLM.register(AdapTokARForCausalLM.config_class, AdapTokARForCausalLM)
    # `Trainer` shifts the labels for its `label_smoothing_factor` only for classes with a name in this table
    auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[AdapTokARForCausalLM.config_class.model_type] = AdapTokARForCausalLM.__name__


def _register_video_processor(auto) -> None:
    from .models.configuration_adaptok import AdapTokConfig
    from .models.configuration_evatok import EVATokConfig
    from .video.video_processing_adaptok import AdapTokVideoProcessor

    auto.AutoVideoProcessor.register(AdapTokConfig, AdapTokVideoProcessor)
    auto.AutoVideoProcessor.register(EVATokConfig, AdapTokVideoProcessor)


def _register_pipeline(_) -> None:
    from .pipelines.pipeline_adaptok import AdapTokPipeline
    from .pipelines.pipeline_loading import register_pipeline

    register_pipeline(AdapTokPipeline)


class _Registration(MetaPathFinder):
    """Runs each function of `waiting` when its module is imported and the outermost import has finished."""

    def __init__(self):
        self.depth = 0  # imports of the watched packages in progress
        self.waiting = {
            _AUTO + "configuration_auto": _register_configs,
            _AUTO + "modeling_auto": _register_models,
            _AUTO + "video_processing_auto": _register_video_processor,
            "diffusers.pipelines.pipeline_utils": _register_pipeline,
        }

    def find_spec(self, name, path=None, target=None):
        if not self.waiting or name.partition(".")[0] not in ("transformers", "diffusers", __package__):
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_then_register(module):
                self.depth += 1
                try:
                    execute(module)
                finally:
                    self.depth -= 1
                self.register()

            spec.loader.exec_module = execute_then_register
        return spec

    def register(self) -> None:
        for name in list(self.waiting):
            if self.depth == 0 and name in sys.modules and name in self.waiting:
                self.waiting.pop(name)(sys.modules[name])


def register_auto_classes() -> None:
    """Register now what is possible, and the rest when transformers' and diffusers' modules are imported."""
    registration = _Registration()
    sys.meta_path.insert(0, registration)
    registration.register()

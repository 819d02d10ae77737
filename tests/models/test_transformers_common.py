"""transformers' own tests of models (`ModelTesterMixin`) and configurations (`ConfigTester`) on ours."""

import sys
import unittest
from importlib import import_module

import pytest
import torch
from builders.transformers_tests import fetch_common_tests

from adaptok_hf import (
    AdapTokARConfig,
    AdapTokARForCausalLM,
    AdapTokConfig,
    AdapTokModel,
    AdapTokPriorConfig,
    AdapTokPriorModel,
    AdapTokRouterConfig,
    AdapTokRouterModel,
    AdapTokScorerConfig,
    AdapTokScorerModel,
    EVATokConfig,
    EVATokModel,
)
from adaptok_hf.models.modeling_adaptok_ar import AdapTokARModel

pytestmark = [pytest.mark.slow, pytest.mark.network]

BATCH = 3


class TokenizerCase:
    model_classes = (AdapTokModel,)
    num_hidden_layers, hidden_size, num_attention_heads = 2, 32, 2
    batch_size, is_training = BATCH, True
    seq_length = encoder_seq_length = 20

    def get_config(self):
        return AdapTokConfig(
            image_size=16,
            num_frames=8,
            hidden_size=32,
            num_attention_heads=2,
            num_encoder_layers=1,
            num_decoder_layers=1,
            latents_per_block=6,
            codebook_size=50,
            codebook_dim=8,
        )

    def inputs(self):
        return {"pixel_values_videos": torch.rand(BATCH, 8, 3, 16, 16)}


class EVATokCase:
    model_classes = (EVATokModel,)
    num_hidden_layers, hidden_size, num_attention_heads = 2, 16, 2
    batch_size, is_training = BATCH, True
    seq_length = encoder_seq_length = 8

    def get_config(self):
        return EVATokConfig(
            image_size=16,
            num_frames=8,
            patch_size=8,
            levels=[2, 4],
            encoder_hidden_size=16,
            num_encoder_layers=1,
            num_encoder_attention_heads=2,
            decoder_hidden_size=16,
            num_decoder_layers=1,
            num_decoder_attention_heads=2,
            latent_size=12,
            codebook_size=50,
            codebook_dim=8,
        )

    def inputs(self):
        return {"pixel_values_videos": torch.rand(BATCH, 8, 3, 16, 16)}


class RouterCase:
    model_classes = (AdapTokRouterModel,)
    num_hidden_layers, hidden_size, num_attention_heads = 2, 16, 2
    batch_size, is_training = BATCH, True
    seq_length = 10

    def get_config(self):
        return AdapTokRouterConfig(
            image_size=16,
            num_frames=8,
            patch_size=8,
            levels=[2, 4],
            hidden_size=16,
            num_attention_heads=2,
            num_hidden_layers=2,
        )

    def inputs(self):
        return {"pixel_values_videos": torch.rand(BATCH, 8, 3, 16, 16)}

    def labels(self):
        return {"labels": torch.ones(BATCH, dtype=torch.long)}


class ScorerCase:
    model_classes = (AdapTokScorerModel,)
    num_hidden_layers, hidden_size, num_attention_heads = 2, 16, 2
    batch_size, is_training = BATCH, True
    seq_length = 12

    def get_config(self):
        return AdapTokScorerConfig(
            latent_size=32,
            num_blocks=2,
            latents_per_block=6,
            score_step=2,
            hidden_size=16,
            num_attention_heads=2,
            num_hidden_layers=2,
        )

    def inputs(self):
        return {"latents": torch.randn(BATCH, 2, 6, 32), "quantized": torch.randn(BATCH, 2, 6, 32)}

    def labels(self):
        return {"labels": torch.ones(BATCH, 2, 3)}


class PriorCase:
    model_classes = (AdapTokPriorModel,)
    num_hidden_layers, hidden_size, num_attention_heads = 2, 16, 2
    batch_size, is_training = BATCH, False  # its loss needs a codebook: `adaptok_hf.losses.prior_loss`
    seq_length = 11

    def get_config(self):
        return AdapTokPriorConfig(
            codebook_dim=8, num_latent_tokens=12, hidden_size=16, num_attention_heads=2, num_hidden_layers=2
        )

    def inputs(self):
        return {"code_vectors": torch.randn(BATCH, 12, 8)}


class GeneratorCase:
    model_classes = (AdapTokARForCausalLM,)
    num_hidden_layers, hidden_size, num_attention_heads = 2, 16, 2
    batch_size, is_training = BATCH, True
    seq_length = 7

    def get_config(self):
        return AdapTokARConfig(
            codebook_size=50,
            num_blocks=3,
            latents_per_block=6,
            num_classes=3,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
        )

    def inputs(self):
        return {"input_ids": torch.randint(50, (BATCH, 7)), "attention_mask": torch.ones(BATCH, 7, dtype=torch.long)}

    def labels(self):
        return {"labels": torch.ones(BATCH, 7, dtype=torch.long)}


class GeneratorBaseCase(GeneratorCase):
    model_classes = (AdapTokARModel,)
    is_training = False  # has no head


CASES = {
    "tokenizer": TokenizerCase,
    "evatok": EVATokCase,
    "router": RouterCase,
    "scorer": ScorerCase,
    "prior": PriorCase,
    "generator": GeneratorCase,
    "generator_base": GeneratorBaseCase,
}

# test -> why it cannot apply
MISSING_WEIGHTS = "from_pretrained raises an error where weights are missing, it does not report them"
NO_WORDS = "the input is no table of words but a linear map of pixels or vectors"
CONTINUOUS = {
    "test_model_get_set_embeddings": NO_WORDS,
    "test_resize_tokens_embeddings": NO_WORDS,
    "test_model_weights_reload_no_missing_tied_weights": MISSING_WEIGHTS,
}
GENERATOR = {"test_model_weights_reload_no_missing_tied_weights": MISSING_WEIGHTS}
NOT_APPLICABLE = {
    "tokenizer": CONTINUOUS,
    "evatok": CONTINUOUS,
    "router": CONTINUOUS,
    "scorer": CONTINUOUS,
    "prior": CONTINUOUS,
    "generator": GENERATOR
    | {
        "test_correct_missing_keys": MISSING_WEIGHTS,
        "test_generation_tester_mixin_inheritance": "GenerationTesterMixin is not in the source distribution",
    },
    "generator_base": GENERATOR,
}


@pytest.fixture(scope="module")
def common_tests():
    """A function that imports a module of transformers' tests."""
    folder = str(fetch_common_tests())
    sys.path.insert(0, folder)
    yield lambda name: import_module(f"transformers_tests.{name}")
    sys.path.remove(folder)


@pytest.mark.parametrize("name", CASES)
def test_model_tester_mixin(common_tests, name):
    mixin, case, skipped = common_tests("test_modeling_common").ModelTesterMixin, CASES[name], NOT_APPLICABLE[name]
    assert skipped.keys() <= set(dir(mixin))

    class Tester(case):
        def __init__(self, parent):
            self.parent = parent

        def prepare_config_and_inputs_for_common(self):
            return self.get_config(), self.inputs()

    def set_up(test):
        test.model_tester = Tester(test)

    def prepare(test, inputs, model_class, return_labels=False):
        labels = test.model_tester.labels() if return_labels and hasattr(case, "labels") else {}
        return mixin._prepare_for_class(test, inputs, model_class, return_labels) | labels

    members = {"setUp": set_up, "all_model_classes": case.model_classes, "_prepare_for_class": prepare}
    members |= {"additional_model_inputs": ["quantized"]}
    members |= {test: unittest.skip(reason)(getattr(mixin, test)) for test, reason in skipped.items()}
    tests = type(f"{case.__name__}Test", (mixin, unittest.TestCase), members)
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(tests).run(result)
    assert result.testsRun > 150
    wrong = [*result.failures, *result.errors]
    assert [test.id().rpartition(".")[2] for test, _ in wrong] == [], wrong[0][1]


@pytest.mark.parametrize("name", CASES)
def test_config_tester(common_tests, name):
    config = CASES[name]().get_config()
    entries = {key: value for key, value in config.to_diff_dict().items() if key in type(config).__annotations__}
    parent = unittest.TestCase()
    parent.model_tester = None
    has_words = hasattr(config, "vocab_size")
    tester = common_tests("test_configuration_common").ConfigTester(parent, type(config), has_words, **entries)
    tester.run_common_tests()

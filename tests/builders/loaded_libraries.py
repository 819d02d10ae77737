"""What the scripts import that takes long: imported here, it is there in every fork of the process that did.

The garbage collector is off meanwhile and looks at none of it later, which takes less time.
"""

import gc
import importlib

LIBRARIES = ["torch", "accelerate", "datasets", "diffusers", "peft", "transformers.models.llama.modeling_llama"]
LIBRARIES += ["torch.distributed", "torch.utils.tensorboard", "scipy.optimize", "adaptok_hf.pipelines.pipeline_adaptok"]

gc.disable()
for library in LIBRARIES:
    importlib.import_module(library)
gc.freeze()
gc.enable()

"""The standard arguments of a transformers video processor, checked: what a call of ours does with each."""

from types import SimpleNamespace
from typing import Any

import torch
from huggingface_hub.dataclasses import validate_typed_dict
from huggingface_hub.errors import StrictDataclassError
from transformers.image_processing_utils import get_size_dict
from transformers.image_utils import ChannelDimension
from transformers.processing_utils import VideosKwargs

STANDARD_OPTIONS = tuple(VideosKwargs.__annotations__)

# Acts only while its switch is on.
_SWITCH_OF = {
    **dict.fromkeys(("size", "resample", "default_to_square"), "do_resize"),
    "crop_size": "do_center_crop",
    "rescale_factor": "do_rescale",
    **dict.fromkeys(("image_mean", "image_std"), "do_normalize"),
    **dict.fromkeys(("fps", "num_frames"), "do_sample_frames"),
}
# What Pillow calls NEAREST, BILINEAR and BICUBIC.
_RESAMPLING = {0: "nearest-exact", 2: "bilinear", 3: "bicubic"}
_ALWAYS = {"do_convert_rgb": (True, "the models read colors"), "do_pad": (False, "all videos of a batch get one size")}


def check_options(options: dict[str, Any]) -> None:
    """Raise `ValueError` for a standard option of a wrong type or value, by name."""
    try:
        validate_typed_dict(VideosKwargs, options)
    except StrictDataclassError as error:
        raise ValueError(" ".join(str(error).split())) from error
    options = {name: value for name, value in options.items() if value is not None}
    for name, (accepted, why) in _ALWAYS.items():
        if options.get(name, accepted) is not accepted:
            raise ValueError(f"{name}={options[name]}: only {accepted} is accepted, because {why}")
    if options.get("resample", 2) not in _RESAMPLING:
        raise ValueError(f"resample={options['resample']!r}: accepted are 0 (nearest), 2 (bilinear) and 3 (bicubic)")
    if options.get("return_tensors", "pt") not in ("pt", "np"):
        raise ValueError(f"return_tensors={options['return_tensors']!r}: accepted are 'pt' and 'np'")
    for name in ("data_format", "input_data_format"):
        if options.get(name, "channels_first") not in list(ChannelDimension):
            raise ValueError(f"{name}={options[name]!r}: accepted are 'channels_first' and 'channels_last'")
    for name in ("fps", "num_frames", "rescale_factor"):
        if not options.get(name, 1) > 0:
            raise ValueError(f"{name}={options[name]!r}: only a positive number is accepted")
    for name in ("image_mean", "image_std"):
        value = options.get(name, 1.0)
        if not isinstance(value, float | int) and len(value) != 3:
            raise ValueError(f"{name}={value!r}: accepted are a number and 3 numbers, one for each color")
        if name == "image_std" and 0 in (value if isinstance(value, list | tuple) else [value]):
            raise ValueError(f"image_std={value!r}: no number may be 0")
    if "device" in options:
        check_device(options["device"])


def check_device(device: str | torch.device) -> torch.device:
    """Return the device; raise `ValueError` for one that this machine does not have."""
    try:
        return torch.empty(0, device=device).device
    except Exception as error:  # every backend has its own kind
        raise ValueError(f"device={device!r} cannot be used: {str(error).splitlines()[0]}") from error


def resolve_options(processor: Any, given: dict[str, Any]) -> SimpleNamespace:
    """Return all standard options of a call: those that were given, and the processor's others.

    `size` is `(height, width)` or one number for the short side, or `None` not to resize; `crop_size` is `(height, width)`
    or `None`; `resample` is a mode of torch's.

    Raises:
        TypeError: for a name that is no standard option.
        ValueError: for a value that is not accepted, and an option whose switch (such as `do_resize`) is off.
    """
    if unknown := sorted(set(given) - set(STANDARD_OPTIONS)):
        accepted = ", ".join(("resize_mode", *STANDARD_OPTIONS))
        raise TypeError(f"the video processor takes no argument {unknown[0]!r}; accepted are {accepted}")
    given = {name: value for name, value in given.items() if value is not None}
    check_options(given)
    options = SimpleNamespace(**{name: given.get(name, getattr(processor, name, None)) for name in STANDARD_OPTIONS})
    for name, switch in _SWITCH_OF.items():
        if name in given and given[name] != getattr(processor, name, None) and not getattr(options, switch):
            raise ValueError(f"{name}={given[name]!r} acts only with {switch}=True")
    if "fps" in given and "num_frames" in given:
        raise ValueError(f"fps={options.fps} and num_frames={options.num_frames} exclude each other; give one")
    if "num_frames" in given:
        options.fps = None
    if options.do_normalize and (options.image_mean is None or options.image_std is None):
        raise ValueError("do_normalize=True needs image_mean and image_std")
    size = resolve_size(options.size, options.default_to_square)
    crop = given.get("crop_size")
    if crop is None:
        crop = size if options.do_resize else processor.crop_size
    crop = resolve_size(list(crop) if isinstance(crop, tuple) else crop, True, "crop_size")
    options.size, options.crop_size = size if options.do_resize else None, crop if options.do_center_crop else None
    options.resample = _RESAMPLING[int(options.resample)]
    options.given = frozenset(given)
    options.input_data_format = options.input_data_format and str(ChannelDimension(options.input_data_format).value)
    return options


def resolve_size(size: Any, default_to_square: bool, name: str = "size") -> tuple[int, int] | int:
    """Return `(height, width)`, or a number for the short side.

    Raises:
        ValueError: for other keys, and sizes below 1.
    """
    entries = get_size_dict(size, default_to_square=default_to_square, param_name=name)
    entries = {key: value for key, value in entries.items() if value is not None}
    accepted = [{"height", "width"}] if name == "crop_size" else [{"height", "width"}, {"shortest_edge"}]
    if set(entries) not in accepted or not all(isinstance(value, int) and value > 0 for value in entries.values()):
        forms = " or ".join("{" + ", ".join(f"{key!r}: N" for key in sorted(keys)) + "}" for keys in accepted)
        raise ValueError(f"{name}={size!r}: accepted are a positive number and {forms}")
    return entries["shortest_edge"] if "shortest_edge" in entries else (entries["height"], entries["width"])

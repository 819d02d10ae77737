"""Which tensors of EVATok's files become which of ours: by alias, then by shape, and never by a guess.

The aliases are those of GigaTok, by the same first author. Nobody here has seen EVATok's own files.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch

# Regular expressions of our names and of the original's. `\g<layer>` is the number of a layer, `\g<end>` weight or bias.
_NORM = r"(?P<end>weight|bias)"
_LAYER = r"layers\.(?P<layer>\d+)"
_ATTENTIONS = (("self_attention", "self_attn"), ("cross_attention", r"(multihead_attn|cross_attn)"))
_ENDS = (("encoder", r"s[23]to1encoder"), ("decoder", r"s1to[23]decoder"))


def _aliases() -> list[tuple[str, str]]:
    rows = []
    for ours, theirs in _ENDS:
        layer = rf"{theirs}\.transformer(\.layers)?\.\g<layer>"
        for part, name in _ATTENTIONS:
            our_part, their_part = rf"{ours}\.{_LAYER}\.{part}", rf"{layer}\.{name}"
            for each in ("q_proj", "k_proj", "v_proj"):
                rows.append((rf"{our_part}\.{each}\.{_NORM}", rf"{their_part}\.(in_proj_|{each}\.)\g<end>"))
            rows.append((rf"{our_part}\.out_proj\.{_NORM}", rf"{their_part}\.(out_proj|wo)\.\g<end>"))
            for each in ("q_norm", "k_norm"):
                rows.append((rf"{our_part}\.{each}\.{_NORM}", rf"{their_part}\.{each}\.\g<end>"))
        for number in "123":
            rows.append((rf"{ours}\.{_LAYER}\.norm{number}\.{_NORM}", rf"{layer}\.norm{number}\.\g<end>"))
        for number in "12":
            rows.append((rf"{ours}\.{_LAYER}\.mlp\.fc{number}\.{_NORM}", rf"{layer}\.(mlp\.)?(linear|fc){number}\.\g<end>"))
        rows.append((rf"{ours}\.patch_positions\.weight", rf"{theirs}\.positional_embedding"))
        rows.append((rf"{ours}\.latent_positions\.weight", rf"{theirs}\.latent_token_positional_embedding"))
    encoder, decoder = (theirs for _, theirs in _ENDS)
    embedding = r"((s[23]to1)?encoder\.)?(patch_embed|x_embedder)\.proj"
    rows += [
        (rf"encoder\.patch_embedding\.projection\.{_NORM}", rf"{embedding}\.\g<end>"),
        (rf"encoder\.feature_norm\.{_NORM}", rf"{encoder}\.ln_pre\.\g<end>"),
        (rf"encoder\.feature_projection\.{_NORM}", rf"{encoder}\.encoder_embed\.\g<end>"),
        (rf"encoder\.query_projection\.{_NORM}", rf"{encoder}\.global_proj\.\g<end>"),
        (r"encoder\.queries\.weight", rf"{encoder}\.(latent_tokens|query_embed)"),
        (rf"encoder\.norm\.{_NORM}", rf"{encoder}\.ln_post\.\g<end>"),
        (rf"encoder\.projection\.{_NORM}", rf"{encoder}\.conv_out\.\g<end>"),
        (rf"decoder\.latent_norm\.{_NORM}", rf"{decoder}\.ln_pre\.\g<end>"),
        (rf"decoder\.latent_projection\.{_NORM}", rf"{decoder}\.decoder_embed\.\g<end>"),
        (rf"decoder\.head\.norm\.{_NORM}", rf"{decoder}\.ln_post\.\g<end>"),
        (rf"decoder\.head\.projection\.{_NORM}", rf"{decoder}\.conv_out\.\g<end>"),
        (rf"quantizer\.project_in\.{_NORM}", r"quant_conv\.\g<end>"),
        (rf"quantizer\.project_out\.{_NORM}", r"post_quant_conv\.\g<end>"),
        (r"quantizer\.codebook\.weight", r"quantize\.embedding\.weight"),
    ]
    return rows


ALIASES = _aliases()
# Training only, or statistics.
DROPPED = (r".*\.distill_mlp\..*", r"quantize\.codebook_used", r".*num_batches_tracked")
# The original's separate projections, whose masks mean the opposite of the fused ones'.
SEPARATE = r".*\.(self_attn|multihead_attn|cross_attn)\.q_proj\.weight"


class Mapped(NamedTuple):
    """
    Args:
        tensors: our names -> tensors of our shapes.
        sources: our names -> the original's.
        by_shape: our names that were found by shape alone.
    """

    tensors: dict[str, torch.Tensor]
    sources: dict[str, str]
    by_shape: list[str]


class UnmatchedNamesError(ValueError):
    """Names that cannot be matched without a guess.

    Args:
        missing: our names without source -> shape.
        unused: the original's that are left over -> shape.
        template: for `names.json`, our missing names -> null.
    """

    def __init__(self, missing: Mapping[str, tuple[int, ...]], unused: Mapping[str, tuple[int, ...]], wrong: list[str]):
        self.missing, self.unused = dict(missing), dict(unused)
        self.template: dict[str, str | None] = dict.fromkeys(missing)
        lines = ["the tensors cannot be matched without a guess; the layout was inferred from GigaTok, never seen", *wrong]
        lines.append(f"ours without a source ({len(self.missing)}):")
        for name, shape in self.missing.items():
            same = [theirs for theirs, other in self.unused.items() if _squeezed(other) == _squeezed(shape)]
            lines.append(f"  {name} {shape}; of this shape: {', '.join(same) or 'none'}")
        lines.append(f"theirs left over ({len(self.unused)}):")
        lines += [f"  {name} {shape}" for name, shape in self.unused.items()] or ["  none"]
        super().__init__("\n".join(lines))


def match_names(
    shapes: Mapping[str, torch.Size],
    tensors: Mapping[str, torch.Tensor],
    names: Mapping[str, str | None] | None = None,
) -> Mapped:
    """Return the original's tensors under our names.

    Args:
        shapes: our names -> shapes.
        tensors: the original's.
        names: our names -> the original's, which come before all aliases; `None` as a value leaves a name open.

    Raises:
        UnmatchedNamesError: unless each of ours has exactly one source and nothing but `DROPPED` is left over.
        ValueError: for names that neither side has.
    """
    given = {ours: theirs for ours, theirs in (names or {}).items() if theirs is not None}
    if unknown := [*(given.keys() - shapes.keys()), *(set(given.values()) - tensors.keys())]:
        raise ValueError(f"names that neither the model nor the checkpoint has: {', '.join(sorted(unknown))}")
    sources, wrong, known = {}, [], set()
    for name, shape in shapes.items():
        alias = _alias_of(name)
        candidates = [theirs for theirs in tensors if alias is not None and alias.fullmatch(theirs)]
        known.update(candidates)
        candidates = [given[name]] if name in given else candidates
        fitting = [theirs for theirs in candidates if _fitted(name, shape, tensors[theirs]) is not None]
        if len(fitting) == 1:
            sources[name] = fitting[0]
        elif not fitting:
            wrong += [f"{each} is {tuple(tensors[each].shape)}, but {name} {tuple(shape)}" for each in candidates]
        else:
            wrong.append(f"{name} could be any of {', '.join(fitting)}")
    dropped = {name for name in tensors if any(re.fullmatch(pattern, name) for pattern in DROPPED)}
    left = [name for name in tensors if name not in sources.values() and name not in dropped]
    # a known name of another shape is an error, not a name for something else
    by_shape, open_names = [], [name for name in shapes if name not in sources]
    for name in open_names:
        theirs = [each for each in left if _squeezed(tensors[each].shape) == _squeezed(shapes[name])]
        rivals = [each for each in open_names if _squeezed(shapes[each]) == _squeezed(shapes[name])]
        if len(theirs) == len(rivals) == 1 and theirs[0] not in known:
            sources[name] = theirs[0]
            by_shape.append(name)
    for name in open_names:  # the bias of a weight that was found
        weight = sources.get(name.removesuffix("bias") + "weight", "")
        theirs = weight.removesuffix("weight") + "bias"
        if name.endswith(".bias") and theirs in left and _squeezed(tensors[theirs].shape) == _squeezed(shapes[name]):
            sources.setdefault(name, theirs)
    left = [name for name in left if name not in sources.values()]
    for theirs in {each for each in given.values() if sum(s == each for s in sources.values()) > 1}:
        users = [name for name in sources if sources[name] == theirs]
        if any(_squeezed(tensors[theirs].shape) == _squeezed(shapes[name]) for name in users):  # not a fused projection
            raise ValueError(f"{theirs} was given for {', '.join(users)}")
    missing = {name: tuple(shapes[name]) for name in shapes if name not in sources}
    if missing or left:
        raise UnmatchedNamesError(missing, {name: tuple(tensors[name].shape) for name in left}, wrong)
    found = {name: _fitted(name, shapes[name], tensors[theirs]) for name, theirs in sources.items()}
    return Mapped({name: tensor.detach().clone().float() for name, tensor in found.items()}, sources, by_shape)


def _alias_of(ours: str) -> re.Pattern | None:
    for pattern, alias in ALIASES:
        if match := re.fullmatch(pattern, ours):
            for group, value in match.groupdict().items():
                alias = alias.replace(rf"\g<{group}>", value)
            return re.compile(alias)
    return None


def _squeezed(shape) -> tuple[int, ...]:
    """Return a shape without axes of length 1, kernels as the linear maps that they are."""
    sizes = [size for size in shape if size != 1]
    return (sizes[0], torch.Size(sizes[1:]).numel()) if len(sizes) > 2 else tuple(sizes)


def _fitted(ours: str, shape: torch.Size, tensor: torch.Tensor) -> torch.Tensor | None:
    """Return a tensor in our shape: kernels flattened, a third of fused projections, one block's positions repeated.

    `None` if it does not fit.
    """
    if not tensor.is_floating_point():
        return None
    if ours == "decoder.head.projection.weight" and tensor.ndim == 5 and tensor.numel() == shape.numel():
        return tensor.permute(2, 3, 4, 1, 0).reshape(shape)  # of a transposed convolution
    if ours == "decoder.head.projection.bias" and tensor.ndim == 1 and len(tensor) < 8 and shape[0] % len(tensor) == 0:
        return tensor.repeat(shape[0] // len(tensor))  # one for each channel, the fastest axis here
    projection = re.fullmatch(r".*\.([qkv])_proj\.(weight|bias)", ours)
    if projection and tuple(tensor.shape) == (3 * shape[0], *shape[1:]):
        return tensor.chunk(3)["qkv".index(projection[1])]
    rows = _squeezed(tensor.shape)
    if ours.endswith("positions.weight") and len(rows) == 2 and rows[1] == shape[-1] and shape[1] % rows[0] == 0:
        return tensor.reshape(rows).repeat(shape[1] // rows[0], 1)[None]  # one table for every block
    return tensor.reshape(shape) if rows == _squeezed(shape) else None

"""Damaged tokens files and model folders: only the promised exceptions, each naming the file."""

import json
import random

import pytest

from adaptok_hf import AdapTokModel, AdapTokPipeline
from adaptok_hf.video.tokenized_video import TokenizedVideo

VALUES = (
    0,
    -1,
    1,
    3,
    10**9,
    10**30,
    1.5,
    float("nan"),
    float("inf"),
    "",
    "a",
    "9" * 5000,
    None,
    True,
    [],
    [1],
    {},
    {"a": 1},
)


def damage(content: bytes, chance: random.Random) -> bytes:
    """Return a file with a few bytes changed, removed, doubled or cut off."""
    damaged = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        damaged = damaged or bytearray(b" ")
        start = chance.randrange(len(damaged)) if chance.random() < 0.5 else chance.randrange(min(len(damaged), 400))
        stop = start + chance.randint(1, 8)
        kind = chance.randrange(5)
        if kind == 0:
            damaged[start] ^= 1 << chance.randrange(8)
        elif kind == 1:
            damaged[start:stop] = chance.randbytes(stop - start)
        elif kind == 2:
            del damaged[start:stop]
        elif kind == 3:
            damaged[start:start] = damaged[start:stop]
        else:
            damaged = damaged[: max(start, 1)]
    return bytes(damaged)


def damage_entries(content: bytes, chance: random.Random) -> bytes:
    """Return a JSON file with an entry of another value."""
    entries = json.loads(content)
    entries[chance.choice(sorted(entries))] = chance.choice(VALUES)
    return json.dumps(entries).encode()


def run(name: str, path, load, damages, count: int, folder=None) -> None:
    """Load damaged copies of a file and count the errors with its folder's name; print the table's row.

    Args:
        folder: the one to be named, by default the file's: parts of a pipeline that do not fit name the pipeline's.
    """
    named = str(folder or path.parent)
    content, chance, accepted, refused, wrong = path.read_bytes(), random.Random(17), 0, 0, []
    for number in range(count):
        path.write_bytes(damages[number % len(damages)](content, chance))
        try:
            load()
            accepted += 1
        except (ValueError, OSError) as error:
            refused += named in str(error)
            if named not in str(error):
                wrong.append(repr(error))
        except Exception as error:  # what must not happen
            wrong.append(repr(error))
    print(f"| {name} | {count} tried | {accepted + refused} right | {accepted} of them loaded |")
    path.write_bytes(content)
    assert not wrong, wrong[:5]


@pytest.mark.slow
def test_damaged_tokens_files(tiny_pipeline, tiny_video, tmp_path):
    path = tmp_path / "tokens.safetensors"
    tiny_pipeline.tokenize(tiny_video[0], budget=4).save(path)
    good = TokenizedVideo.load(path)

    def load():
        tokens = TokenizedVideo.load(path)
        assert (tokens.codes == good.codes).all() and tokens.model_hash == good.model_hash

    run("tokens files", path, load, [damage], 2000)


@pytest.mark.slow
@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_damaged_models(tiny_tokenizer, tmp_path, file):
    tiny_tokenizer.save_pretrained(tmp_path)

    def load():
        AdapTokModel.from_pretrained(tmp_path)

    run(file, tmp_path / file, load, [damage, damage_entries] if file.endswith(".json") else [damage], 2000)


@pytest.mark.slow
@pytest.mark.parametrize(
    "file",
    [
        "model_index.json",
        "video_processor/video_preprocessor_config.json",
        "scorer/config.json",
        "fp_model/config.json",
        "ar_model/generation_config.json",
    ],
)
def test_damaged_pipelines(complete_pipeline, tmp_path, file):
    complete_pipeline.save_pretrained(tmp_path)

    def load():
        AdapTokPipeline.from_pretrained(tmp_path)

    run(file, tmp_path / file, load, [damage, damage_entries], 500, tmp_path)

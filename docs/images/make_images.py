"""Makes the pictures of README and quick start with the shipped checkpoints: `python docs/images/make_images.py`.

Those of generation and prediction are the contact sheets of the commands next to them in the README.
"""

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from adaptok_hf import AdapTokPipeline, read_video
from adaptok_hf.cli.main import main as adaptok
from adaptok_hf.cli.reports import write_report

HERE = Path(__file__).parent
EXAMPLE = HERE.parents[1] / "examples" / "surfing.mp4"
BUDGETS = 16, 64, 256
COMMANDS = {
    "generated": "generate --class surfing --class juggling --class cartwheeling --videos 1",
    "predicted": f"predict {EXAMPLE} --condition-frames 5 --videos 2",
}


def label_columns(strip: Image.Image, labels: list[str]) -> Image.Image:
    """Return the picture with a label over each of its columns, which are equally wide."""
    height, width = 20, strip.width // len(labels)
    labeled = ImageOps.expand(strip, (0, height, 0, 0), fill="white")
    for column, label in enumerate(labels):
        position = (column + 0.5) * width, height / 2
        ImageDraw.Draw(labeled).text(position, label, fill="black", anchor="mm", font=ImageFont.load_default(13))
    return labeled


def animate_budgets(pipeline: AdapTokPipeline, path: Path, num_frames: int = 48, step: int = 4) -> None:
    """Write a GIF of two clips, filmed and animated, next to their reconstructions from more and more tokens."""
    rows = []
    for clip in (EXAMPLE, EXAMPLE.with_name("turning_a_cup.mp4")):
        video = read_video(clip, max_frames=num_frames)
        outputs = [pipeline.reconstruct(video, budget=budget, output_type="uint8") for budget in BUDGETS]
        rows.append(np.concatenate([video.frames, *(output.frames[0] for output in outputs)], axis=2))
    pictures = [Image.fromarray(frame) for frame in np.concatenate(rows, axis=1)[::step]]
    labels = ["original", *(f"{budget} tokens" for budget in BUDGETS)]
    pictures = [label_columns(ImageOps.scale(picture, 1.5), labels) for picture in pictures]
    palette = Image.fromarray(np.concatenate(pictures)).quantize(256)  # one for all: still parts do not flicker
    first, *others = (picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures)
    first.save(path, save_all=True, append_images=others, duration=round(1000 * step / video.fps), loop=0, optimize=True)


def main() -> None:
    pipeline = AdapTokPipeline.from_pretrained()
    pipeline.set_progress_bar_config(disable=True)
    animate_budgets(pipeline, HERE / "budgets.gif")
    with tempfile.TemporaryDirectory() as folder:
        output = pipeline.reconstruct(EXAMPLE, budget=32, output_type="uint8")
        write_report(Path(folder) / "report", output, pipeline, {"budget": 32})
        (Path(folder) / "report" / "tokens.png").replace(HERE / "tokens.png")
        for name, command in COMMANDS.items():
            if adaptok([*command.split(), "--output", f"{folder}/{name}"]) != 0:
                raise SystemExit(f"failed: adaptok {command}")
            (Path(folder) / name / "contact_sheet.png").replace(HERE / f"{name}.png")


if __name__ == "__main__":
    main()

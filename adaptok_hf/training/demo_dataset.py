"""The small videos and pictures of the shipped checkpoints, made from public packages by `build_demo_dataset.py`."""

import csv
import gzip
import hashlib
import io
import multiprocessing
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Sequence, Set
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from ..atomic_files import atomic_file

SIZE = 128
PHOTO_SIDE = 192  # of the short side: a window of 128 pixels can move over the picture
SETS = ("action32", "emoji", "photos", "wild")
# Animations that checks of the trained models use, so no plan may have them in any variant: the code points in the names
# of their files (and what they show)
KEPT_BACK = {"1f9b1": "curly_hair", "1f33e": "farmer", "1f3cc": "golfing", "2696": "judge", "1f527": "mechanic",
             "1f93d": "playing_water_polo", "1f473": "wearing_turban", "1f470": "with_veil"}  # fmt: skip
MANIFEST_COLUMNS = ("path", "set", "split", "label", "source_package", "source_version", "source_file",
                    "license_as_declared", "num_frames", "fps", "sha256")  # fmt: skip


@dataclass
class Arguments:
    output_dir: str = field(metadata={"help": "Gets action32/, emoji/, photos/, wild/ and manifest.csv."})
    packages_dir: str | None = field(default=None, metadata={"help": "Keeps the archives; default: OUTPUT_DIR/packages."})
    sets: list[str] = field(default_factory=lambda: list(SETS))
    num_processes: int = field(default=2)

    def __post_init__(self):
        if unknown := set(self.sets) - set(SETS):
            raise ValueError(f"sets are {', '.join(SETS)}, got {sorted(unknown)}")


@dataclass(frozen=True)
class Package:
    """A package of a certain version.

    Args:
        client: "npm", "pip" or "apt".
        archive: the file that the client saves.
        sha256: of that file.
        license: as the package declares it. It is a statement about the package, not always about each clip in it.
    """

    client: str
    name: str
    version: str
    archive: str
    sha256: str
    license: str

    def download(self, folder: Path) -> Path:
        """Return the archive in `folder`; fetch it unless it is there already.

        Raises:
            OSError: if the client is missing or fails, or brings another file.
        """
        path = folder / self.archive
        if not path.exists():
            command = {
                "npm": ["npm", "pack", f"{self.name}@{self.version}"],
                "pip": [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", f"{self.name}=={self.version}"],
                "apt": ["apt-get", "download", f"{self.name}={self.version}"],
            }[self.client]
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder) as partial:
                done = subprocess.run(command, cwd=partial, capture_output=True, text=True)
                files = [file for file in Path(partial).iterdir() if file.is_file()]
                if done.returncode or len(files) != 1:
                    last = (done.stderr.strip().splitlines() or ["no file came"])[-1]
                    raise OSError(f"{' '.join(command[:3])} ... {command[-1]} failed: {last}")
                self._verify(files[0])
                files[0].rename(path)
        self._verify(path)
        return path

    def _verify(self, path: Path) -> None:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != self.sha256:
            raise OSError(f"{path.name} has sha256 {digest}, expected {self.sha256}: not the file that was used before")


def read_members(archive: Path, names: Set[str]) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of some members of a wheel, a .tgz or a .deb, in the archive's order."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for name in wheel.namelist():
                if name in names:
                    yield name, wheel.read(name)
        return
    with tempfile.TemporaryFile() as unpacked:
        if archive.suffix == ".deb":
            subprocess.run(["dpkg-deb", "--fsys-tarfile", str(archive)], stdout=unpacked, check=True)
            unpacked.seek(0)
            tar = tarfile.open(fileobj=unpacked)
        else:
            tar = tarfile.open(archive)
        with tar:
            for member in tar:
                name = member.name.removeprefix("./")
                if member.isfile() and name in names:
                    yield name, tar.extractfile(member).read()


@dataclass(frozen=True)
class Clip:
    """A row of `demo_dataset.csv`: an mp4 file, or a photograph (.jpg).

    Args:
        box: left, top, right and bottom of the part of a photograph that is used; () for all of it.
    """

    path: str
    source_package: str
    source_file: str
    first_frame: int
    num_frames: int
    sha256: str
    box: tuple[int, ...]


def read_plan(path: Path, sets: Sequence[str]) -> list[Clip]:
    """Return the clips of some sets that a csv file lists.

    Raises:
        ValueError: if the file lists one of the animations that are kept back.
    """
    clips = []
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            if kept := KEPT_BACK.keys() & Path(row["source_file"]).stem.split("-"):
                raise ValueError(f"{path}: {row['path']} shows {KEPT_BACK[kept.pop()]}, which is kept for checks")
            numbers = {name: int(row[name]) for name in ("first_frame", "num_frames")}
            clips.append(Clip(**row | numbers | {"box": tuple(map(int, row["box"].split()))}))
    return [clip for clip in clips if clip.path.split("/")[0] in sets]


def read_packages(path: Path) -> dict[str, Package]:
    """Return the packages that a csv file lists, by name."""
    with path.open(newline="") as file:
        return {row["name"]: Package(**row) for row in csv.DictReader(file)}


def decode(name: str, content: bytes) -> tuple[np.ndarray, Fraction]:
    """Return frames, uint8 (frames, 128, 128, 3), and frames per second of a video or an animated WebP."""
    if name.endswith(".webp"):
        frames, milliseconds = [], 0
        with Image.open(io.BytesIO(content)) as image:
            for index in range(image.n_frames):
                image.seek(index)
                image.load()
                milliseconds += image.info.get("duration", 0)
                frames.append(_square(_on_white(image)))
        return np.stack(frames), _tidy_rate(Fraction(1000 * len(frames), milliseconds))
    with av.open(io.BytesIO(gzip.decompress(content) if name.endswith(".gz") else content)) as container:
        stream = container.streams.video[0]
        frames, times = [], []
        for frame in container.decode(stream):
            frames.append(_square(frame.to_image()))
            if frame.pts is not None:
                times.append(frame.pts * stream.time_base)
        rate = _tidy_rate(stream.average_rate)
    if len(times) > 1:
        shown = (len(times) - 1) / (max(times) - min(times))
        if shown < 0.7 * rate:  # frames were dropped: the rate of those that are there
            rate = _tidy_rate(shown)
    return np.stack(frames), rate


def _on_white(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _square(image: Image.Image) -> np.ndarray:
    width, height = image.size
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side)))


def _tidy_rate(rate: Fraction) -> Fraction:
    rate = Fraction(rate).limit_denominator(1001)
    whole = round(rate)
    return Fraction(whole) if whole and abs(float(rate) / whole - 1) < 5e-4 else rate


def encode(frames: np.ndarray, rate: Fraction, path: Path) -> None:
    """Write an mp4 file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as partial_path, av.open(str(partial_path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate)
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1  # the same bytes on any number of cores
        colors = "colorprim=smpte170m:transfer=smpte170m:colormatrix=smpte170m"
        stream.options = {"crf": "18", "preset": "slow", "g": "48", "x264-params": colors}
        for array in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace="ITU601", dst_color_range="MPEG")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def write_photo(content: bytes, box: tuple[int, ...], path: Path) -> None:
    """Write a photograph, or a part of it, as a JPEG file whose short side is `PHOTO_SIDE`."""
    with Image.open(io.BytesIO(content)) as image:
        picture = _on_white(image)
    left, top, right, bottom = box or (0, 0, *picture.size)
    scale = PHOTO_SIDE / min(right - left, bottom - top)
    size = round((right - left) * scale), round((bottom - top) * scale)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as partial_path:
        picture.resize(size, Image.Resampling.LANCZOS, box=(left, top, right, bottom)).save(
            partial_path, "jpeg", quality=88
        )


def make_clips(source: tuple[str, bytes, list[Clip]], folder: Path) -> list[str]:
    """Make the clips of one source file; return what went wrong."""
    name, content, clips = source
    try:
        if clips[0].path.endswith(".jpg"):
            for clip in clips:
                write_photo(content, clip.box, folder / clip.path)
            return []
        frames, rate = decode(name, content)
    except (OSError, ValueError, SyntaxError) as error:  # av's and Pillow's errors are among them
        return [f"{clip.path}: {name} cannot be decoded ({error})" for clip in clips]
    problems = []
    for clip in clips:
        selected = frames[clip.first_frame : clip.first_frame + clip.num_frames]
        if len(selected) != clip.num_frames:
            problems.append(f"{clip.path}: {name} has {len(frames)} frames, too few")
            continue
        encode(selected, rate, folder / clip.path)
    return problems


def write_manifest(clips: list[Clip], packages: dict[str, Package], folder: Path) -> int:
    """List the clips that are in the folder; return how many have other bytes than those made before."""
    others = 0
    with atomic_file(folder / "manifest.csv") as partial_path, partial_path.open("w", newline="") as file:
        writer = csv.DictWriter(file, MANIFEST_COLUMNS, lineterminator="\n")
        writer.writeheader()
        for clip in clips:
            path = folder / clip.path
            if not path.exists():
                continue
            sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
            others += sha256 != clip.sha256
            fps = ""
            if path.suffix == ".mp4":
                with av.open(str(path)) as container:
                    fps = f"{float(container.streams.video[0].average_rate):.3f}"
            folders, package = clip.path.split("/"), packages[clip.source_package]
            label = folders[2] if len(folders) == 4 else ""
            row = (clip.path, folders[0], folders[1], label, package.name, package.version, clip.source_file,
                    package.license, clip.num_frames, fps, sha256)  # fmt: skip
            writer.writerow(dict(zip(MANIFEST_COLUMNS, row, strict=True)))
    return others


def build(args: Arguments, plan: list[Clip], packages: dict[str, Package]) -> tuple[int, int, list[str]]:
    """Make the clips that are missing, and the manifest.

    Returns:
        How many clips there are, how many of them have the bytes made before, and what went wrong.
    """
    folder = Path(args.output_dir)
    archives = Path(args.packages_dir) if args.packages_dir else folder / "packages"
    folder.mkdir(parents=True, exist_ok=True)
    problems: list[str] = []
    missing: dict[str, dict[str, list[Clip]]] = defaultdict(lambda: defaultdict(list))
    for clip in plan:
        if not (folder / clip.path).exists():
            missing[clip.source_package][clip.source_file].append(clip)
    # a forked process may wait forever for a thread of its parent's decoders
    start = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(args.num_processes, mp_context=start) as processes:
        for name, files in missing.items():
            print(f"{name} {packages[name].version}: {len(files)} files")
            try:
                archive = packages[name].download(archives)
            except OSError as error:
                print(f"  {error}")
                problems += [f"{clip.path}: {name} is not available" for clips in files.values() for clip in clips]
                continue
            sources = ((member, content, files[member]) for member, content in read_members(archive, files.keys()))
            jobs = []
            with tqdm(total=len(files), unit="file") as progress:
                for source in sources:
                    jobs.append(processes.submit(partial(make_clips, folder=folder), source))
                    if len(jobs) >= 4 * args.num_processes:  # not all files in memory
                        problems += jobs.pop(0).result()
                        progress.update()
                for job in jobs:
                    problems += job.result()
                    progress.update()
    others = write_manifest(plan, packages, folder)
    made = sum((folder / clip.path).exists() for clip in plan)
    return made, made - others, problems

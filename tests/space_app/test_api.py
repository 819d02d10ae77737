"""The whole Space through its API: results, bad uploads, nothing left over."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from builders.bad_uploads import BAD_FILES, refused, write_sparse
from builders.video_files import make_frames, write_mp4

pytest.importorskip("gradio", reason="the Space needs gradio: pip install adaptok_hf[space]")

from demo import build_demo  # noqa: E402
from theme import page_options  # noqa: E402


@pytest.fixture
def space(complete_pipeline, tmp_path, monkeypatch):
    """(client, upload folder) of a Space on this machine."""
    gradio_client = pytest.importorskip("gradio_client")
    folder = tmp_path / "uploads"
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(folder))
    demo = build_demo(complete_pipeline, "tiny")
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, max_file_size="50mb", **page_options())
    client = gradio_client.Client(url, verbose=False, download_files=str(tmp_path / "downloads"))
    yield client, folder
    client.close()
    demo.close()


def test_the_api_end_to_end(space, clip_file, tmp_path):
    from gradio_client import handle_file
    from gradio_client.exceptions import AppError

    client, folder = space
    video = handle_file(clip_file)
    html, curve, report = client.predict(video, "joint", 4, api_name="/reconstruct")
    assert report["video"] == "clip.mp4" and "<video" in html and curve["columns"][0] == "tokens per block"
    html, report = client.predict(video, video, None, 3, "joint", api_name="/share")
    assert [row["video"] for row in report["videos"]] == ["clip.mp4"] * 2 and report["tokens"] == 30
    for label, name in (
        ("second", "second"),
        ("First-Class", "first_class"),
        (2, "third"),
    ):  # a name in any spelling, or an id
        html, report = client.predict(label, 3, 1.5, 1.0, 6, api_name="/generate")
        assert report["class"] == name and report["status"] == "done" and "<video" in html
    with pytest.raises(AppError, match="secnd.*second"):
        client.predict("secnd", 3, 1.5, 1.0, 6, api_name="/generate")
    html, report = client.predict(video, 5, 1, 2, 0.6, 0, api_name="/predict")
    assert len(report["token_counts"]) == 2 and html.count("<video") == 3
    prefixes, looks, curves = client.predict(video, 2, 3, 6, api_name="/inspect")
    assert (
        "token 6 of block 3 in layer 2" in looks
        and "from the first 6 tokens" in prefixes
        and curves["columns"][0] == "tokens"
    )

    for arguments in ((5, 9, 2), (5, 1, 4)):  # the sliders bound what a caller sends
        with pytest.raises(AppError, match=f"{max(arguments[1:])}"):
            client.predict(video, *arguments, 0.6, 0, api_name="/predict")
    for writer, name, message in BAD_FILES[::5]:  # test_uploads.py has them all
        path = writer(tmp_path / name)
        with pytest.raises(AppError, match=message) as error:
            client.predict(handle_file(path), "joint", 4, api_name="/reconstruct")
        refused(str(error.value), folder)
    # the Space is as well as before
    assert client.predict(video, "joint", 4, api_name="/reconstruct")[2]["tokens"] == 20
    # results are part of the page: there is nothing but what was uploaded, and the examples
    kept = {path.name for path in folder.rglob("*") if path.is_file()}
    assert kept <= {name for _, name, _ in BAD_FILES} | {"clip.mp4", "surfing.mp4", "turning_a_cup.mp4", "yoga.mp4"}


def test_what_a_browser_would_not_send(space, tmp_path):
    """Names with folders in them, files of the server, and more bytes than are accepted."""
    import httpx

    client, folder = space
    address = f"{client.src.rstrip('/')}/gradio_api/upload"
    for name in ("../../evil.mp4", "..\\..\\evil.mp4", "/etc/evil.mp4", "a/b/evil.mp4"):
        answer = httpx.post(address, files={"files": (name, b"x" * 100, "video/mp4")}, timeout=60)
        if answer.status_code == 200:
            assert Path(answer.json()[0]).resolve().is_relative_to(folder.resolve()), name
    assert [path for path in tmp_path.rglob("*evil.mp4") if not path.is_relative_to(folder)] == []

    def call(path: str) -> str:
        data = {"data": [{"path": path, "meta": {"_type": "gradio.FileData"}}, "joint", 4, 1, 0.1]}
        event = httpx.post(f"{client.src.rstrip('/')}/gradio_api/call/reconstruct", json=data)
        if event.status_code != 200:
            return event.text
        return httpx.get(
            f"{client.src.rstrip('/')}/gradio_api/call/reconstruct/{event.json()['event_id']}", timeout=60
        ).text

    assert "evil.mp4: not a video" in call(answer.json()[0])  # what was uploaded is looked at
    for path in ("/etc/passwd", "../../../etc/passwd", __file__):
        answer = call(path)
        assert "error" in answer and "not a video" not in answer and "root:" not in answer and "Traceback" not in answer

    before = shutil.disk_usage(tmp_path).used
    path = write_sparse(tmp_path / "sparse.mp4", 100 << 20)
    try:
        with open(path, "rb") as file:
            answer = httpx.post(address, files={"files": ("sparse.mp4", file, "video/mp4")}, timeout=120)
        assert answer.status_code in (400, 413) and "exceeded maximum allowed size" in answer.text
    except httpx.TransportError:  # the server hung up, as it may
        pass
    assert not list(folder.rglob("sparse.mp4"))
    assert shutil.disk_usage(tmp_path).used - before < 50_000_000


@pytest.mark.slow
def test_memory_and_temporary_space_stay_bounded(complete_pipeline, tmp_path, monkeypatch):
    """50 different uploads: old ones are deleted, memory does not grow with their number."""
    import time

    import demo as demo_module
    from gradio_client import Client, handle_file

    psutil = pytest.importorskip("psutil")
    folder = tmp_path / "uploads"
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(folder))
    monkeypatch.setattr(demo_module, "_CLEANING_SECONDS", 1)
    monkeypatch.setattr(demo_module, "_UPLOAD_LIFETIME", 1)
    demo = build_demo(complete_pipeline)
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, **page_options())
    client = Client(url, verbose=False, download_files=str(tmp_path / "downloads"))
    frames, memory = make_frames(40, 240, 320), []
    for index in range(50):
        path = write_mp4(tmp_path / f"clip{index}.mp4", frames=np.roll(frames, 3 * index, axis=2))
        client.predict(handle_file(path), "joint", 4, api_name="/reconstruct")
        path.unlink()
        memory.append(psutil.Process().memory_info().rss)
    for _ in range(60):
        left = [path for path in folder.rglob("clip*.mp4")]
        if not left:
            break
        time.sleep(1)
    assert left == []
    assert memory[-1] - memory[9] < 60e6, [round(m / 1e6) for m in memory]
    client.close()
    demo.close()

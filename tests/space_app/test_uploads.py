"""What the Space does not read: files that are no videos, too large or too slow, and how it says so."""

import inspect
from functools import partial

import av
import pytest
from builders.bad_uploads import BAD_FILES, refused, write_4k, write_sparse

gr = pytest.importorskip("gradio", reason="the Space needs gradio: pip install adaptok_hf[space]")

import inspect_tab  # noqa: E402
import predict_tab  # noqa: E402
import reconstruct_tab  # noqa: E402
import uploads  # noqa: E402


@pytest.mark.parametrize(("writer", "name", "message"), BAD_FILES)
def test_bad_files_are_refused_in_one_sentence(complete_pipeline, tmp_path, writer, name, message):
    path = writer(tmp_path / name)
    for function in (reconstruct_tab.reconstruct, predict_tab.predict):
        with pytest.raises(ValueError, match=message) as error:
            list(function(complete_pipeline, str(path)))
        refused(str(error.value), tmp_path)
        assert str(error.value).startswith(name)
    with pytest.raises(ValueError, match=message):
        inspect_tab.inspect_clip(complete_pipeline, str(path))


def test_two_gigabytes_are_not_read(complete_pipeline, tmp_path, monkeypatch):
    path = write_sparse(tmp_path / "sparse.mp4")
    monkeypatch.setattr(av, "open", None)  # it must not come so far
    with pytest.raises(ValueError, match=r"sparse\.mp4.*2147"):
        uploads.read_upload(complete_pipeline, str(path))


def test_nothing_chosen_and_nothing_there(complete_pipeline, tmp_path):
    with pytest.raises(ValueError, match="Choose an example"):
        uploads.read_upload(complete_pipeline, None)
    with pytest.raises(ValueError, match="not here any more") as error:
        uploads.read_upload(complete_pipeline, str(tmp_path / "gone.mp4"))
    refused(str(error.value), tmp_path)


def test_decoding_has_a_deadline(complete_pipeline, clip_file, monkeypatch):
    monkeypatch.setattr(uploads, "MAX_DECODING", -1)
    with pytest.raises(ValueError, match="decoding takes longer"):
        uploads.read_upload(complete_pipeline, clip_file)


def test_a_header_that_lies_is_noticed_while_decoding(complete_pipeline, tmp_path, monkeypatch):
    path = write_4k(tmp_path / "a.mp4")
    monkeypatch.setattr(uploads, "_check_header", lambda path, name: None)
    with pytest.raises(ValueError, match="3840×2160"):
        uploads.read_upload(complete_pipeline, str(path))


def test_guarded_errors_are_messages(caplog):
    def fails(pipeline, value):
        raise value

    def fails_later(pipeline, value):
        yield 1
        raise value

    for function in (partial(fails, None), partial(fails_later, None)):
        run = uploads.guarded(function)
        assert list(inspect.signature(run).parameters) == ["value"]
        with pytest.raises(gr.Error) as error:
            list(run(ValueError("<b>bad</b> /srv/secret/place/clip.mp4")))
        assert error.value.message == "&lt;b&gt;bad&lt;/b&gt; clip.mp4" and not error.value.print_exception
        with pytest.raises(gr.Error, match="Something went wrong") as error:
            list(run(RuntimeError("token hf_abc in /srv/x")))
        assert "hf_abc" not in str(error.value)
    assert "fails failed" in caplog.text

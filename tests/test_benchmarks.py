"""Benchmarks that need a machine nobody has at hand are rehearsed at a tiny size."""

import json
import sys

import pytest
from accelerate.state import AcceleratorState
from builders.loaded_scripts import load_script


@pytest.fixture
def gpu():
    """The benchmark of GPUs, with an accelerate that no test has set up."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield load_script("benchmarks/gpu.py")
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def run_gpu(gpu, tmp_path, monkeypatch, capsys):
    """Runs the benchmark into one file; returns its report, what it printed, and its exit status."""

    def run() -> tuple[dict, str, object]:
        output, status = tmp_path / "gpu.json", 0
        command = f"gpu.py -o {output} --device cpu --size tiny --backend eager --repeats 1 --limit 1000".split()
        monkeypatch.setattr(sys, "argv", command)
        try:
            gpu.main()
        except SystemExit as exit:
            status = exit.code
        return json.loads(output.read_text()), "".join(capsys.readouterr()), status

    return run


@pytest.mark.slow
def test_every_section_runs(gpu, run_gpu):
    report, _, status = run_gpu()
    sections = report["sections"]
    assert status == 0 and sections.keys() == gpu.SECTIONS.keys()
    for way in ("eager", "compiled", "graphs"):
        assert len(sections[f"codec_{way}"]) == 3  # encoding, decoding, and the seconds
    assert sections["generation_1"]["lookahead"]["same_tokens"] and "lookahead" not in sections["generation_64"]
    assert sections["parity"]["float32"] == {"equal_codes": 1.0, "largest_pixel_difference": 0.0}
    assert sections["training_base"]["steps"] == 1


def test_a_second_run_takes_up_what_failed(gpu, run_gpu, monkeypatch):
    def fail(section):
        raise RuntimeError("out of memory")

    done = {"rates": lambda section: {"copy_bytes": 7.0}, "after": lambda section: dict(section.rates)}
    monkeypatch.setattr(gpu, "SECTIONS", {"rates": done["rates"], "broken": fail, "after": done["after"]})
    report, _, status = run_gpu()
    first = report["sections"]
    assert "broken" in status and first["broken"]["error"] == "RuntimeError: out of memory"
    assert first["after"]["copy_bytes"] == 7.0

    monkeypatch.setitem(gpu.SECTIONS, "broken", lambda section: {"tokens": 5})
    monkeypatch.setitem(gpu.SECTIONS, "after", fail)
    report, printed, status = run_gpu()
    assert status == 0 and printed.count("done before") == 2
    assert report["sections"]["broken"]["tokens"] == 5
    assert report["sections"]["after"] == first["after"]


def test_a_section_stops_when_its_time_is_up(gpu):
    section = gpu.Section("cpu", gpu.SIZES["tiny"], "eager", 10, {}, end=0.0)
    assert len(section.times(list)) == 1
    assert gpu.measure_codec(section, "eager") == {}


def test_results_of_other_settings_stay(run_gpu, tmp_path):
    (tmp_path / "gpu.json").write_text('{"settings": {"size": "base"}, "sections": {}}')
    _, printed, status = run_gpu()
    assert status == 2 and "{'size': 'base'}" in printed

"""Benchmarks that need a machine nobody has at hand are rehearsed at a tiny size."""

import json
import sys

import pytest
from accelerate.state import AcceleratorState
from builders.loaded_scripts import ROOT, load_script


@pytest.fixture
def gpu(monkeypatch):
    """The benchmark of GPUs, with an accelerate that no test has set up."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
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


def test_every_section_runs_and_a_second_run_takes_up_what_failed(gpu, run_gpu, monkeypatch):
    def fail(section):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setitem(gpu.SECTIONS, "generation_8", fail)
        report, _, status = run_gpu()
    sections = report["sections"]
    assert "generation_8" in status and sections["generation_8"]["error"] == "RuntimeError: out of memory"
    assert sections.keys() == gpu.SECTIONS.keys()
    assert [name for name, section in sections.items() if "error" in section] == ["generation_8"]
    for way in ("eager", "compiled", "graphs"):
        assert len(sections[f"codec_{way}"]) == 7  # encoding and decoding of three sizes, and the seconds
    assert sections["generation_1"]["lookahead"]["same_tokens"] and "lookahead" not in sections["generation_64"]
    assert sections["parity"]["float32"] == {"equal_codes": 1.0, "largest_pixel_difference": 0.0}
    assert sections["training_base"]["steps"] == 1

    second, printed, status = run_gpu()
    assert status == 0 and "generation_8: done before" not in printed
    assert printed.count("done before") == len(sections) - 1
    assert second["sections"].pop("generation_8")["one token"]["tokens_per_second"] > 0
    sections.pop("generation_8")
    assert second["sections"] == sections


def test_a_section_stops_when_its_time_is_up(gpu):
    section = gpu.Section("cpu", gpu.SIZES["tiny"], "eager", 10, {}, end=0.0)
    assert len(section.times(list)) == 1
    assert gpu.measure_codec(section, "eager") == {}


def test_results_of_other_settings_stay(run_gpu, tmp_path):
    (tmp_path / "gpu.json").write_text('{"settings": {"size": "base"}, "sections": {}}')
    _, printed, status = run_gpu()
    assert status == 2 and "{'size': 'base'}" in printed

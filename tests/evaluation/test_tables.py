from builders.evaluations import evaluate

from adaptok_hf.evaluation.tables import markdown


def test_the_papers_numbers_stand_next_to_ours(tiny_pipeline, videos, tmp_path):
    paper = [
        {"model": "tiny", "strategy": "fixed", "budget": 4, "psnr": 25.29, "milliseconds": 50.9},
        {"model": "Other", "psnr": 11.5},
    ]
    report = evaluate(tiny_pipeline, videos, tmp_path, paper=paper)
    lines = markdown(report).splitlines()
    header = [cell.strip() for cell in lines[0].split("|")]
    ours = dict(zip(header, [cell.strip() for cell in lines[2].split("|")], strict=True))
    other = dict(zip(header, [cell.strip() for cell in lines[4].split("|")], strict=True))
    assert ours["PSNR, paper"] == "25.290" and ours["ms per clip, paper"] == "50.9" and float(ours["ms per clip"]) > 0
    assert ours["PSNR (dB) ↑"].startswith(f"{report['results'][0]['metrics']['psnr']['value']:.2f} [")
    assert (other["model"], other["PSNR, paper"], other["PSNR (dB) ↑"]) == ("Other", "11.500", "")
    assert "not measured here" in lines[-1]

"""A finished bundle is measured on labelled images from elsewhere, and its threshold chosen anew on them.

The model's score rises with the brightness of a picture and is 0.5 at half of white. The films here are all dark:
healthy ones a little darker than others.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from image_kit import dicom
from PIL import Image
from serving_kit import logistic, write_bundle

from lightbox import cnn
from lightbox.bundle import Bundle, file_digest, gate
from lightbox.data import Manifest
from lightbox.images import open_image
from lightbox.serving import Engine

GAIN = 12.0


def film(file: Path, level: float, rng: np.random.Generator) -> None:
    """Write a grey picture of that mean level, from 0 to 255, in which no two pixels agree by design."""
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(rng.normal(level, 4, (32, 32)), 0, 255).astype(np.uint8)).save(file)


@pytest.fixture
def films(tmp_path: Path) -> Path:
    """40 healthy and 40 other films, two of each patient."""
    rng = np.random.default_rng(1)
    for patient in range(20):
        for number in range(2):
            film(tmp_path / f"films/NORMAL/IM-{patient:04d}-{number:04d}.png", rng.uniform(30, 64), rng)
            name = f"person{patient}_{'bacteria' if patient % 2 else 'virus'}_{number}.png"
            film(tmp_path / "films/PNEUMONIA" / name, rng.uniform(72, 110), rng)
    return tmp_path / "films"


def evaluate(tmp_path: Path, bundle: Path, films: Path, *more: str) -> Path:
    """Evaluate; return the directory of the results."""
    arguments = ["--evaluate", str(films), "--bundle", str(bundle), "--runs", str(tmp_path / "runs"), *more]
    assert cnn.main(arguments) == 0
    (found,) = (tmp_path / "runs/evaluations").glob("*-recalibrated" if "--recalibrate" in more else "*[!d]")
    return found


def test_a_model_is_measured_on_films_from_elsewhere(tmp_path, bundle, films, capsys):
    before = (bundle / "model.json").read_bytes()
    found = evaluate(tmp_path, bundle, films)
    contract = json.loads((found / "evaluation.json").read_text())
    external = contract["metrics"]["external"]
    # Every film is darker than half of white: what was right elsewhere misses all of them here.
    assert (external["images"], external["sensitivity"], external["specificity"]) == (80, 0.0, 1.0)
    assert external["auroc"] > 0.99
    assert set(external["subgroups"]) == {"bacteria", "virus"}
    assert external["auroc_worst"] == contract["robustness"]["worst"]["auroc"]
    assert contract["robustness"]["images"] == 80
    assert contract["metrics"]["test"] == json.loads(before)["metrics"]["test"]
    assert contract["external"]["counts"]["test"] == {"NORMAL": 40, "PNEUMONIA": 40}
    assert len((found / "predictions.csv").read_text().splitlines()) == 81
    # The model is what it was.
    assert (bundle / "model.json").read_bytes() == before
    assert not (found / "bundle").exists()
    assert "sensitivity 0.0000" in capsys.readouterr().out
    assert json.loads((tmp_path / "runs/progress.json").read_text())["state"] == "done"


def test_the_report_shows_the_worst_mistakes_and_needs_no_other_file(tmp_path, bundle, films):
    page = (evaluate(tmp_path, bundle, films) / "report.html").read_text()
    assert "Of 40 wrong verdicts on the external images the 12 that were most confident." in re.sub(r"\s+", " ", page)
    assert page.count("<li>\n      <div") == 12
    assert page.count("data:image/jpeg;base64,") == page.count("data:image/png;base64,") == 12
    addresses = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", page)
    assert addresses and all(address.startswith("data:") for address in addresses)
    # The darkest of those missed is the most confident mistake.
    darkest = min(
        (films / "PNEUMONIA").iterdir(), key=lambda file: float(np.asarray(Image.open(file)).mean())
    ).relative_to(films)
    assert page.index(str(darkest)) == min(page.index(name) for name in re.findall(r"PNEUMONIA/\S+\.png", page))


def test_the_threshold_is_chosen_on_half_of_the_patients_and_judged_on_the_other(tmp_path, bundle, films):
    found = evaluate(tmp_path, bundle, films, "--recalibrate", "balanced")
    made = Bundle.load(found / "bundle")
    made.verify()
    old = Bundle.load(bundle)
    assert made.version != old.version
    assert made.contract["recalibrated"]["from"] == old.version
    manifest = Manifest.load(found / "manifest.json")
    sides = {side: {sample.patient for sample in manifest.of(side)} for side in ("validation", "test")}
    assert len(sides["validation"]) == len(sides["test"]) == 20
    assert not sides["validation"] & sides["test"]
    test = made.contract["metrics"]["test"]
    assert (test["images"], made.contract["recalibrated"]["before"]["sensitivity"]) == (40, 0.0)
    assert test["sensitivity"] >= 0.9 and test["specificity"] >= 0.9
    # Same network: only what is made of its answer has changed.
    assert file_digest(made.path / "best_model.keras") == file_digest(bundle / "best_model.keras")
    engine = Engine(made.path)
    assert engine.self_test() < 1e-6
    bright = open_image((films / "PNEUMONIA/person0_virus_0.png").read_bytes())
    assert Engine(bundle).assess(bright).verdict.label == "Normal"
    verdict = engine.assess(bright).verdict
    assert verdict.label == "Pneumonia" and verdict.confidence > 0.5
    assert "report.html" in made.contract["files"]
    # The gate compares the two on the same films: on those of before the old one seemed better.
    assert gate(made, old, "auroc", 0.01) == f"auroc {test['auroc']:.4f}, live {test['auroc']:.4f}"
    assert "live 0.0000" in gate(made, old, "sensitivity", 0.01)
    assert any("chosen anew on 40 images" in sentence for sentence in made.contract["limits"])


def test_choosing_anew_twice_is_applied_in_turn(tmp_path, films):
    bundle = write_bundle(tmp_path / "bundle", gain=GAIN, temperature=2.0)
    first = evaluate(tmp_path, bundle, films, "--recalibrate", "balanced") / "bundle"
    second = evaluate(tmp_path / "again", first, films, "--recalibrate", "sensitivity:1.0") / "bundle"
    image = open_image((films / "NORMAL/IM-0003-0001.png").read_bytes())
    once, twice = Engine(first).predict(image)[0], Engine(second).predict(image)[0]
    steps = [json.loads((one / "model.json").read_text()) for one in (first, second)]
    shift = math.log(steps[1]["recalibrated"]["threshold"] / (1 - steps[1]["recalibrated"]["threshold"]))
    temperature = steps[1]["calibration"]["temperature"] / steps[0]["calibration"]["temperature"]
    assert twice == pytest.approx(logistic((math.log(once / (1 - once)) - shift) / temperature), abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--evaluate", "{films}"], "name its directory with --bundle"),
        (["--recalibrate", "balanced"], "name them with --evaluate"),
        (["--evaluate", "{films}", "--bundle", "{bundle}", "--recalibrate", "best"], "no rule for a threshold"),
        (["--evaluate", "{films}/nowhere", "--bundle", "{bundle}"], "there is no data at"),
        (["--evaluate", "{films}", "--bundle", "{films}"], "model.json is missing"),
    ],
)
def test_what_cannot_be_measured_is_said(tmp_path, bundle, films, capsys, arguments, words):
    given = [argument.format(films=films, bundle=bundle) for argument in arguments]
    assert cnn.main([*given, "--runs", str(tmp_path / "runs")]) == 1
    assert words in capsys.readouterr().err


def test_films_of_one_class_measure_nothing(tmp_path, bundle, films, capsys):
    for file in (films / "PNEUMONIA").iterdir():
        file.write_bytes(b"no image")
    assert cnn.main(["--evaluate", str(films), "--bundle", str(bundle), "--runs", str(tmp_path / "runs")]) == 1
    assert "no usable image of PNEUMONIA" in capsys.readouterr().err


def test_films_may_be_dicom(tmp_path, bundle, films):
    for file in films.rglob("*.png"):
        with Image.open(file) as image:
            values = np.asarray(image, dtype="u2") * 16
        file.with_suffix(".dcm").write_bytes(
            dicom(values, PatientID=file.stem[:8], WindowCenter=2048, WindowWidth=4096)
        )
        file.unlink()
    found = evaluate(tmp_path, bundle, films)
    external = json.loads((found / "evaluation.json").read_text())["metrics"]["external"]
    assert (external["images"], external["sensitivity"], external["specificity"]) == (80, 0.0, 1.0)
    assert (found / "report.html").read_text().count("data:image/jpeg;base64,") == 12

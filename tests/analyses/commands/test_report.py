import base64
import json
import re
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

from analyses.commands.options.application import build_app
from analyses.common.study_files import read_study, write_study
from analyses.reports.figures import SIGN_WORDS, figure_bytes, signs, spectrum_figure
from analyses.reports.sections import percent, scientific
from analyses.studies.network.study import Question, analyze
from analyses.studies.page import write_report
from analyses.studies.trajectory import follow
from analyses.subjects.subject import subject_of
from analyses.training.trainer import TrainingPlan, train
from manifold.errors import InputError, OutputExistsError

HOSTILE = '<script>alert("1")</script>&$x^{$'


class Page(HTMLParser):
    """Tags, image sources and text of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.sources, self.text = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in {"src", "href"}]

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    plan = TrainingPlan("Z3", width=8, optimizer="sgd", steps=40, seed=1)
    return train(plan, tmp_path_factory.mktemp("run") / "z3", save_every=20)


@pytest.fixture(scope="module")
def studies(run):
    subject = subject_of(run.read(40), run.layout, run)
    return [follow(run), analyze(subject, Question(count=None)).dataset]


@pytest.fixture(scope="module")
def page(studies, tmp_path_factory):
    path = write_report(studies, tmp_path_factory.mktemp("page") / "report.html")
    return path.read_text("utf-8")


def test_page_is_self_contained_and_tells_the_numbers(page, studies):
    parsed = Page(page)
    assert "script" not in parsed.tags
    assert "link" not in parsed.tags
    assert all(source.startswith(("data:image/svg+xml;base64,", "#")) for source in parsed.sources)
    assert parsed.tags.count("img") == 5
    text = "".join(parsed.text)
    document = json.loads(studies[1].attrs["summary"])
    assert scientific(document["loss"]) in text
    assert f"{document['spectrum']['smallest'][0]:.6g} ±" in text
    assert percent(document["accuracy"]) in text
    assert "λ > 0 contracts" in text
    assert document["checkpoint"]["sha256"] in text


def test_images_are_svg_without_dates(page):
    for source in Page(page).sources:
        if source.startswith("data:"):
            image = base64.b64decode(source.partition("base64,")[2])
            assert b"<svg" in image
            assert b"<dc:date>" not in image


def test_report_of_a_study_read_back_is_the_same(studies, page, tmp_path):
    back = [read_study(write_study(study, tmp_path / f"{i}.nc")) for i, study in enumerate(studies)]
    again = write_report(back, tmp_path / "again.html").read_text("utf-8")
    assert again == page


def test_hostile_names_are_escaped(studies, tmp_path):
    documents = [json.loads(study.attrs["summary"]) for study in studies]
    documents[0]["run"] = documents[0]["task"]["group"] = documents[0]["training"]["optimizer"] = HOSTILE
    documents[1]["checkpoint"]["path"] = documents[1]["task"]["loss"] = HOSTILE
    documents[1]["notes"] = [HOSTILE]
    documents[1]["fixed_point"]["kind"] = documents[1]["spectrum"]["operator"] = HOSTILE
    hostile = [
        study.assign_attrs(summary=json.dumps(document))
        for study, document in zip(studies, documents, strict=True)
    ]
    text = write_report(hostile, tmp_path / "h.html", title=HOSTILE).read_text("utf-8")
    assert "script" not in Page(text).tags
    assert "<script" not in text
    assert "".join(Page(text).text).count(HOSTILE) >= 8


def test_hostile_frequency_labels_do_not_break_figures(studies, tmp_path):
    study = studies[1].assign_coords(frequency=[HOSTILE, "$\\bad{"])
    assert write_report([study], tmp_path / "f.html").exists()


def test_nothing_is_overwritten_without_force(studies, tmp_path):
    path = tmp_path / "report.html"
    path.write_text("mine")
    with pytest.raises(OutputExistsError, match="--force"):
        write_report(studies, path)
    assert path.read_text() == "mine"
    write_report(studies, path, force=True)
    assert path.read_text("utf-8").startswith("<!DOCTYPE html>")
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]


def test_pdf_figures_lie_beside_the_page_and_are_checked_before_anything_is_written(studies, tmp_path):
    blocked = tmp_path / "r-2-neurons.pdf"
    blocked.write_text("mine")
    with pytest.raises(OutputExistsError, match="neurons"):
        write_report(studies, tmp_path / "r.html", figure_format="pdf")
    assert [file.name for file in tmp_path.iterdir()] == [blocked.name]
    blocked.unlink()
    text = write_report(studies, tmp_path / "r.html", figure_format="pdf").read_text("utf-8")
    files = sorted(file.name for file in tmp_path.glob("*.pdf"))
    assert len(files) == 5
    assert all((tmp_path / file).read_bytes().startswith(b"%PDF") for file in files)
    assert set(files) <= set(Page(text).sources)
    assert text.count("data:image/png;base64,") == 5


@pytest.mark.parametrize(
    ("datasets", "figure_format", "message"),
    [
        ([], "svg", "at least one study"),
        ([xr.Dataset(attrs={"study": "poem"})], "svg", "poem"),
        ([xr.Dataset()], "gif", "gif"),
    ],
)
def test_bad_input_is_one_clear_error(datasets, figure_format, message, tmp_path):
    with pytest.raises(InputError, match=message):
        write_report(datasets, tmp_path / "r.html", figure_format=figure_format)
    assert not list(tmp_path.iterdir())


def test_signs_are_claimed_only_beyond_the_bound():
    values = np.array([-1.0, -1e-12, 0.0, 0.5, 2.0])
    errors = np.array([1e-12, 1e-11, 1e-12, 0.6, 0.1])
    found = {name: np.flatnonzero(mask).tolist() for name, mask in signs(values, errors).items()}
    assert found == {"negative": [0], "positive": [4], "undetermined": [1, 2, 3]}
    assert set(found) < set(SIGN_WORDS)


@pytest.mark.parametrize("values", [[], [0.0], [-2.0, -1e-9, 0.0, 1.0, 50.0], [1e-3, 1.0, 20.0]])
def test_spectrum_figure_of_odd_spectra(values):
    errors = np.full(len(values), 1e-13)
    study = xr.Dataset({"eigenvalue": ("eigen", np.array(values)), "eigenvalue_error": ("eigen", errors)})
    figure = spectrum_figure(study, dimension=len(values) + 7)
    assert figure_bytes(figure, "png").startswith(b"\x89PNG")
    assert "7 between the ends not computed" in figure.axes[0].get_xlabel()


def test_figures_leave_global_settings_alone(studies, tmp_path):
    before = dict(matplotlib.rcParams)
    write_report(studies, tmp_path / "r.html", figure_format="png")
    assert dict(matplotlib.rcParams) == before


def test_numbers_for_reading():
    assert scientific(3.608e-5) == "3.61\u00a0×\u00a010⁻⁵"
    assert scientific(0.5) == "0.5"
    assert scientific(0) == "0"
    assert scientific(None) == "–"
    assert percent(1.0) == "100\u00a0%"
    assert percent(0.2778) == "27.8\u00a0%"


def test_command_writes_the_page_once(run, tmp_path):
    out = tmp_path / "page.html"
    arguments = ["report", str(run.path), "--out", str(out), "--json", "--quiet"]
    result = CliRunner().invoke(build_app(), arguments)
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["report"] == str(out)
    assert document["steps"] == [0, 20, 40]
    assert re.search(r"<h2>Training on Z3</h2>", out.read_text("utf-8"))
    again = CliRunner().invoke(build_app(), arguments)
    assert isinstance(again.exception, OutputExistsError)

import base64
import hashlib
import json
import re
import struct
import tomllib
import zlib
from html.parser import HTMLParser

import numpy as np
import pytest
from suites.fake_run import CHUNKS, FakeRun, arm, ring_mesh, training_line, write_predictions

from forebay.pipeline.errors import RunError
from forebay.pipeline.report import _json_for_html, write_report
from forebay.pipeline.report_fields import sample_views
from forebay.pipeline.report_images import FIELD, LARGEST, SIGNED, picture, raster
from forebay.pipeline.toml import to_toml

NASTY = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


class Page(HTMLParser):
    """What a browser would load, run and show."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.scripts, self.figures, self.alts = [], [], [], [], []
        self.policy, self.shown, self._script, self._style = "", [], None, False
        self.feed(text)
        self.text = re.sub(r"\s+", " ", " ".join(self.shown))

    def handle_starttag(self, tag, attributes):
        known = dict(attributes)
        self.tags.append(tag)
        self.links += [value for key, value in attributes if key in ("src", "href", "srcset", "data", "action")]
        self.alts += [known["alt"]] if "alt" in known else []
        assert not [key for key in known if key.startswith("on")], known
        if known.get("http-equiv") == "Content-Security-Policy":
            self.policy = known["content"]
        self._script = known if tag == "script" else None
        self._style = tag == "style"

    def handle_endtag(self, tag):
        self._script, self._style = None, False

    def handle_data(self, data):
        if self._script is None:
            self.shown += [] if self._style else [data]
        elif self._script.get("type") == "application/json":
            self.figures.append(json.loads(data, parse_constant=float("inf").__getattribute__))
        else:
            self.scripts.append(data)


def page_of(run):
    return Page(write_report(run).read_text(encoding="utf-8"))


@pytest.fixture
def fake(tmp_path, monkeypatch):
    # Five megabytes of script make each report slow to parse; `whole` has them.
    monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "/* plotly */")
    run = FakeRun(tmp_path / "run")
    yield run
    run.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A complete run, which the tests only look at."""
    run = FakeRun(tmp_path_factory.mktemp("whole") / "run").complete().folder
    write_predictions(run, "grid")
    write_report(run)
    return run


@pytest.fixture(scope="module")
def page(whole):
    return Page((whole / "report.html").read_text(encoding="utf-8"))


def test_the_report_of_a_complete_run_shows_its_figures(page):
    for expected in (
        "darcy-test complete",
        "Validation error 3.16 % relative L2, mean; p99 6.32 %, max 7.90 %",
        "Training samples 237 of 240 requested, 3 dropped",
        "Solves per second 80 while solving; 11.4 over the streaming time",
        "Overlap efficiency 83 %",
        "Bottleneck learner",
        "The learner: it worked 83 % of the streaming time, while the solver worked 14 %",
        "with samples = 1280 every draw would be of a fresh sample",
        "direct:petsc-cholesky 203 201 0 0 8 ms 1.62 s 2.4e-10",
        "cg+gamg 67 66 15 17 16 ms 1.07 s 2.4e-10",
        "Solvers 240 samples 80 /s 11.4 /s 3 s 3 s 14 %",
        "PROBLEM_RAISED train 2 57, 58 the problem's own code raised: see message of the record in journal.jsonl "
        "ValueError: conductivity < 0 & not finite",
        "Best validation sample: relative L2 error 1.23 % sample 4",
        "Worst validation sample: relative L2 error 8.42 % sample 29",
        "forebay run darcy.toml",
        "5630696abcde",
        "numpy 2.5.0",
        "Test CPU",
        "-div(a grad u) = f on the unit square",
    ):
        assert expected in page.text, expected


def test_the_report_is_one_small_file_that_loads_nothing(whole, page):
    assert (whole / "report.html").stat().st_size < 6e6
    assert page.links
    assert all(link.startswith(("data:image/png;base64,", "data:,")) for link in page.links)
    assert not {"iframe", "object", "embed", "base", "form"} & set(page.tags)
    assert not [file for file in whole.iterdir() if file.name.startswith(".report")]


def test_the_policy_lets_the_two_known_scripts_run_and_nothing_be_loaded(page):
    assert len(page.scripts) == 2
    hashes = {f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in page.scripts}
    rules = dict(rule.strip().split(" ", 1) for rule in page.policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert set(rules["script-src"].split()) == hashes
    assert rules["img-src"] == "data:"
    assert "Plotly.newPlot" in page.scripts[1]


def test_curves_hold_what_was_measured(page):
    by_batch, by_wall, buffer, reuse = page.figures
    loss, mean, p99, largest = by_batch["data"]
    assert loss["x"] == list(range(5, 81, 5))
    assert loss["y"] == [float(f"{training_line(batch)['loss']:.6g}") for batch in loss["x"]]
    assert [curve["x"] for curve in (mean, p99, largest)] == [[20, 40, 60, 80]] * 3
    assert p99["y"] == pytest.approx([2 * value for value in mean["y"]], rel=1e-5)
    assert by_batch["layout"]["yaxis"]["type"] == by_wall["layout"]["yaxis"]["type"] == "log"
    assert by_wall["data"][0]["y"] == loss["y"]
    assert by_wall["data"][1]["x"] == [12.5, 17.5, 22.5, 27.5]
    unseen, seen, capacity = buffer["data"]
    assert (unseen["y"][0], seen["y"][0], capacity["y"][0]) == (217, 20, 240)
    assert (reuse["data"][0]["x"], reuse["data"][0]["y"]) == ([0, 1, 2, 3], [7, 30, 120, 80])


def test_labels_of_a_logarithmic_axis_are_whole_numbers(page):
    axis = page.figures[0]["layout"]["yaxis"]
    assert dict(zip(axis["ticktext"], axis["tickvals"], strict=True))["0.05"] == pytest.approx(0.05)
    assert [float(text) for text in axis["ticktext"]] == pytest.approx(axis["tickvals"])


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (3e-4, 0.9, ["0.001", "0.01", "0.1"]),
        (0.03, 0.3, ["0.05", "0.1", "0.2"]),
        (0.26, 0.47, ["0.3", "0.35", "0.4", "0.45"]),
        (0.551, 0.5584, ["0.552", "0.554", "0.556", "0.558"]),
        (0.5, 0.5, ["0.5"]),
        (0.3456, 0.3456, ["0.3456"]),
    ],
)
def test_a_logarithmic_axis_has_labels_however_narrow_its_range(fake, low, high, labels):
    fake.begin()
    fake.measure("train", 1.0, batch=1, loss=low)
    fake.measure("train", 2.0, batch=2, loss=high)
    axis = page_of(fake.folder).figures[0]["layout"]["yaxis"]
    assert axis["ticktext"] == labels
    assert [float(label) for label in labels] == pytest.approx(axis["tickvals"])


@pytest.mark.usefixtures("fake")
def test_text_from_strangers_cannot_become_markup(tmp_path):
    fake = FakeRun(tmp_path / "strange", {"name": NASTY, "problem": {"name": NASTY, NASTY: f'"{NASTY}"'}})
    study = json.loads((fake.folder / "study.json").read_text())
    study |= {"problem_summary": NASTY, "commit": NASTY, "versions": {NASTY: NASTY}, "hardware": {NASTY: NASTY}}
    study["study"]["learner"]["loss"] = NASTY
    (fake.folder / "study.json").write_text(json.dumps(study))
    fake.begin()
    fake.event("run_started", 0.0, executor=NASTY, command=NASTY, attempt=1, cores=1, solvers=1, learner_threads=1)
    fake.validation_set()
    fake.produce(range(CHUNKS))
    fake.train(0, 20)
    fake.event("run_finished", 30.0, status="failed", reason=NASTY)
    fake.close()
    np.savez(
        fake.folder / "predictions.npz",
        labels=np.array([NASTY]),
        sample_ids=np.array([1]),
        errors=np.array([0.1]),
        **{
            "input/<b onclick=alert(3)>": np.zeros((1, 2)),
            "input/<i>": np.zeros((1, 40)),
            "reference/<img>": np.zeros((1, 4, 4)),
            "prediction/<img>": np.ones((1, 4, 4)),
            "coordinates/<u>": np.linspace(0, 1, 40),
        },
    )
    page = page_of(fake.folder)
    assert page.tags.count("script") == 2 + len(page.figures)
    assert {"b", "u"}.isdisjoint(page.tags)
    assert page.tags.count("img") == 3
    assert page.text.count(NASTY) >= 8
    assert "<" not in json.dumps([f["layout"] for f in page.figures] + [f["data"] for f in page.figures])


def test_json_inside_a_script_element_cannot_end_it():
    text = _json_for_html({"title": NASTY + "<!-- &amp;"})
    assert not {"<", ">", "&"} & set(text)
    assert json.loads(text) == {"title": NASTY + "<!-- &amp;"}


def test_a_run_that_has_just_started_has_a_report(fake):
    fake.begin()
    page = page_of(fake.folder)
    assert "This run is running; the figures are those recorded so far." in page.text
    assert "No evaluation has been made yet." in page.text
    assert "Predictions are written when training ends." in page.text
    assert "Nothing has been solved yet." in page.text
    assert page.figures == []


def test_a_run_without_an_evaluation_shows_its_loss_alone(fake):
    fake.begin()
    fake.validation_set()
    fake.produce(range(2))
    fake.train(0, 15)
    page = page_of(fake.folder)
    assert [[curve["name"] for curve in figure["data"]] for figure in page.figures[:2]] == [["training loss"]] * 2
    assert "– not evaluated yet" in page.text


def test_a_study_that_never_ran_has_a_report(fake):
    fake.close()
    assert write_report(fake.folder) == fake.folder / "report.html"
    assert "This run is not started" in page_of(fake.folder).text


def test_a_loss_that_is_not_finite_is_a_gap_in_the_curve(fake):
    fake.begin()
    fake.produce(range(1))
    for batch, loss in ((10, 0.5), (20, float("nan")), (30, float("inf")), (40, 0.25)):
        fake.measure("train", 7.0 + batch, **(training_line(batch) | {"loss": loss}))
    assert page_of(fake.folder).figures[0]["data"][0]["y"] == [0.5, None, None, 0.25]


def test_faults_of_the_run_are_in_the_report(fake):
    fake.begin()
    fake.event("solver_lost", 3.0, solver="solver-0", reason="SIGKILL")
    fake.flow(4.0, spilled_bytes=5 * 2**20, writer_busy_s=0.0)
    fake.close()
    text = page_of(fake.folder).text
    assert "Lost and started again: 1 solver." in text
    assert "Ray spilled 5 MiB of blocks to disk" in text
    assert "This run is interrupted (its process ended without a word: killed" in text


def test_long_curves_are_thinned_but_keep_their_ends(fake):
    fake.begin()
    fake.produce(range(1))
    for batch in range(1, 4001):
        fake.measure("train", 8.0 + batch, batch=batch, loss=1 / batch, frames=16 * batch)
    curve = page_of(fake.folder).figures[0]["data"][0]
    assert len(curve["x"]) == 1500
    assert (curve["x"][0], curve["x"][-1]) == (1, 4000)


def test_the_study_in_the_report_can_be_run_again(whole):
    shown = re.search(r"Resolved study</h3><pre[^>]*><code>(.*?)</code>", (whole / "report.html").read_text(), re.S)[1]
    again = tomllib.loads(shown.replace("&#34;", '"'))
    assert again == json.loads((whole / "study.json").read_text())["study"]


def test_toml_keeps_every_kind_of_value():
    tree = {
        "text": 'quotes " and \\ and\nlines, µ, \x7f',
        "none": None,
        "number": 1e-8,
        "count": 2**62,
        "flag": True,
        "list": [1, 2.5, ["a", {"b": None, "c d": False}]],
        "table": {"inner": {"deep": 1}, "odd key": 3, "empty": {}},
    }
    expected = tree | {"list": [1, 2.5, ["a", {"c d": False}]]}
    del expected["none"]
    assert tomllib.loads(to_toml(tree)) == expected


def test_a_value_without_a_toml_form_is_named():
    with pytest.raises(TypeError, match=r"\{1\} of type set has no TOML form"):
        to_toml({"odd": {1}})


def test_pictures_of_a_grid_share_one_scale_and_stand_upright(whole):
    (first, second, third) = sample_views(whole / "predictions.npz")
    assert [view.label for view in (first, second, third)] == ["best", "median", "worst"]
    assert (third.sample_id, third.error, third.time) == (29, 0.0842, None)
    titles = ["input a", "reference u", "prediction u", "prediction − reference u"]
    assert [panel.title for panel in third.panels] == titles
    _, reference, prediction, difference = third.panels
    assert (reference.low, reference.high) == (prediction.low, prediction.high)
    assert difference.low == f"-{difference.high}"
    arrays = np.load(whole / "predictions.npz")
    exact, guess = arrays["reference/u"][2], arrays["prediction/u"][2]
    low, high = min(exact.min(), guess.min()), max(exact.max(), guess.max())
    for panel, values in ((reference, exact), (prediction, guess)):
        levels = np.round((values[::-1] - low) / (high - low) * 254).astype(int) + 1
        assert np.array_equal(decode(panel.image), levels)
    assert panel.ratio == pytest.approx(1.0)
    assert "values from" in reference.alt


def test_a_picture_has_the_proportions_of_its_coordinates(tmp_path):
    field = np.zeros((1, 10, 40))
    np.savez(
        tmp_path / "p.npz",
        labels=["best"],
        sample_ids=[1],
        errors=[0.1],
        **{"reference/u": field, "prediction/u": field},
        **{"coordinates/x": (np.arange(40) + 0.5) / 40, "coordinates/y": (np.arange(10) + 0.5) / 5},
    )
    assert sample_views(tmp_path / "p.npz")[0].panels[0].ratio == pytest.approx(0.5)


def test_fields_on_a_line_are_drawn_as_curves(fake):
    write_predictions(fake.folder, "line")
    view = sample_views(fake.folder / "predictions.npz")[1]
    given, both, difference = (panel.figure["data"] for panel in view.panels)
    assert view.time == 0.5
    arrays = np.load(fake.folder / "predictions.npz")
    assert [curve["name"] for curve in both] == ["reference", "prediction"]
    assert both[1]["x"] == pytest.approx(arrays["coordinates/x"], rel=1e-5)
    assert both[1]["y"] == pytest.approx(arrays["prediction/u"][1], rel=1e-5)
    assert difference[0]["y"] == pytest.approx(arrays["prediction/u"][1] - arrays["reference/u"][1], rel=1e-5)
    assert given[0]["name"] == "input u0"
    fake.begin()
    assert "Median validation sample: relative L2 error 2.71 % sample 17, t = 0.5 s" in page_of(fake.folder).text


def test_fields_on_a_mesh_are_drawn_with_their_hole_and_parameters_are_listed(fake):
    write_predictions(fake.folder, "nodes")
    view = sample_views(fake.folder / "predictions.npz")[2]
    assert list(view.numbers) == [("parameters[0]", "4"), ("parameters[1]", "5")]
    assert [panel.title for panel in view.panels] == ["reference u", "prediction u", "prediction − reference u"]
    image = decode(view.panels[0].image)
    middle = image.shape[0] // 2
    assert image.shape == (LARGEST, LARGEST)
    assert image[middle, middle] == 0
    assert image[middle, 12] > 0
    assert image[2, 2] == 0


def test_vectors_at_nodes_are_drawn_by_their_length(fake):
    write_predictions(fake.folder, "nodes")
    path = fake.folder / "predictions.npz"
    arrays = dict(np.load(path))
    for name in ("reference/u", "prediction/u"):
        arrays[name] = np.abs(arrays[name])[..., None] * np.array([0.6, 0.0, -0.8])
    np.savez(path, **arrays)
    view = sample_views(path)[0]
    assert [panel.title for panel in view.panels] == ["reference |u|", "prediction |u|", "prediction − reference |u|"]
    assert "u is a vector; its length is shown." in view.notes
    lengths = {**arrays, **{name: np.linalg.norm(arrays[name], axis=-1) for name in ("reference/u", "prediction/u")}}
    np.savez(path, **lengths)
    assert [panel.image for panel in sample_views(path)[0].panels] == [panel.image for panel in view.panels]


def test_triangles_may_come_as_a_coordinate_of_the_problem(fake):
    write_predictions(fake.folder, "nodes")
    path = fake.folder / "predictions.npz"
    with np.load(path) as archive:
        arrays = dict(archive)
    expected = [panel.image for panel in sample_views(path)[0].panels]
    triangles = arrays.pop("triangles")
    np.savez(path, **arrays, **{"coordinates/triangles": triangles.astype(float)})
    assert [panel.image for panel in sample_views(path)[0].panels] == expected


def test_parameters_are_listed_by_name_where_the_file_has_names(tmp_path):
    field = np.zeros((1, 4, 4))
    np.savez(
        tmp_path / "p.npz",
        labels=["best"],
        sample_ids=[1],
        errors=[0.1],
        parameters=[[300.0, 1e-4]],
        parameter_names=["T_left", "alpha"],
        **{"reference/u": field, "prediction/u": field},
    )
    assert sample_views(tmp_path / "p.npz")[0].numbers == [("T_left", "300"), ("alpha", "1.00e-04")]


def test_a_linear_field_on_a_mesh_is_shown_exactly():
    points, triangles = ring_mesh()
    found = raster(points, triangles)
    low, high = points.min(axis=0), points.max(axis=0)
    pixel = (high - low).max() / LARGEST
    j, i = np.indices(found.triangle.shape)
    x, y = low[0] + (i + 0.5) * pixel, low[1] + (j + 0.5) * pixel
    inside = found.triangle >= 0
    assert np.abs(found.of_nodes(2 * points[:, 0] - 3 * points[:, 1] + 1) - (2 * x - 3 * y + 1))[inside].max() < 1e-12
    # The polygons with 24 sides have the area 12 sin(2π/24) r² each.
    area = 12 * np.sin(2 * np.pi / 24) * (1 - 0.25)
    assert inside.sum() * pixel**2 == pytest.approx(area, rel=0.01)


def test_a_field_on_cells_takes_the_value_of_the_triangle():
    points, triangles = ring_mesh()
    found = raster(points, triangles)
    shown = found.of_cells(np.arange(len(triangles)) * 10.0)
    inside = found.triangle >= 0
    assert np.array_equal(shown[inside], 10.0 * found.triangle[inside])
    assert np.isnan(shown[~inside]).all()
    assert set(np.unique(found.triangle[inside])) == set(range(len(triangles)))


def test_points_without_triangles_are_shown_near_themselves_only():
    points, _ = ring_mesh(around=60, layers=12)
    found = raster(points, None)
    shown = found.of_nodes(points[:, 0])
    middle = LARGEST // 2
    assert np.isnan(shown[middle, middle])
    inside = np.isfinite(shown)
    columns = -1 + (np.indices(shown.shape)[1] + 0.5) * 2 / LARGEST
    assert np.abs(shown - columns)[inside].max() < 0.1
    assert 0.6 < inside.mean() < 0.75


def test_a_degenerate_triangle_covers_nothing():
    points = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    found = raster(points, np.array([[0, 1, 2], [1, 3, 2]]))
    assert set(np.unique(found.triangle)) == {-1, 0}


def test_a_picture_marks_what_is_not_finite_and_a_constant_field_has_no_range():
    values = np.array([[0.0, np.nan], [1.0, np.inf]])
    assert decode(picture(values, 0.0, 1.0, FIELD)).tolist() == [[255, 0], [1, 0]]
    assert decode(picture(np.full((2, 2), 3.0), 3.0, 3.0, FIELD)).tolist() == [[1, 1], [1, 1]]


def test_zero_is_white_in_a_difference():
    image = picture(np.array([[-2.0, 0.0, 2.0]]), -2.0, 2.0, SIGNED)
    colours = palette(image)
    low, zero, high = (colours[index] for index in decode(image)[0])
    assert zero.min() > 240
    assert low[2] > low[0] + 50
    assert high[0] > high[2] + 50


def test_a_fine_field_is_thinned_for_its_picture():
    values = np.arange(500.0 * 400).reshape(500, 400)
    image = decode(picture(values, 0.0, values.max(), FIELD))
    assert image.shape == (167, 134)
    assert image[-1, 0] == 1


def test_fields_with_three_axes_show_their_middle_slice_and_others_are_named(tmp_path):
    solid = np.zeros((1, 5, 6, 7))
    solid[0, 2] = np.arange(42.0).reshape(6, 7)
    odd = np.zeros((1, 2, 2, 2, 2))
    np.savez(
        tmp_path / "p.npz",
        labels=["best"],
        sample_ids=[1],
        errors=[0.1],
        **{"reference/u": solid, "prediction/u": solid, "reference/w": odd, "prediction/w": odd},
    )
    (view,) = sample_views(tmp_path / "p.npz")
    assert decode(view.panels[0].image)[-1, 0] == 1
    assert decode(view.panels[0].image)[0, -1] == 255
    assert view.notes == [
        "u has 3 axes; its middle slice along the first one is shown.",
        "w of shape (2, 2, 2, 2) is neither a line, a grid nor a mesh, so it is not drawn.",
    ]


@pytest.mark.parametrize("content", [b"no archive", b"PK\x03\x04 torn"])
def test_damaged_predictions_are_named(fake, content):
    fake.begin()
    (fake.folder / "predictions.npz").write_bytes(content)
    with pytest.raises(RunError, match=r"predictions\.npz' does not hold predictions .* delete the file"):
        write_report(fake.folder)


def test_predictions_that_lack_a_prediction_are_named(fake):
    fake.begin()
    path = fake.folder / "predictions.npz"
    np.savez(path, labels=["best"], sample_ids=[1], errors=[0.1], **{"reference/u": np.zeros((1, 4, 4))})
    with pytest.raises(RunError, match="prediction/u"):
        write_report(fake.folder)


def test_a_folder_without_a_run_gets_no_report(tmp_path):
    with pytest.raises(RunError, match="is no run folder"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_every_picture_says_in_words_what_it_shows(page):
    assert page.tags.count("img") == len(page.alts) == 12
    assert all("values from" in text for text in page.alts)


def chunks_of(image):
    data = base64.b64decode(image.removeprefix("data:image/png;base64,"))
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        assert struct.unpack(">I", data[at + 8 + size : at + 12 + size])[0] == zlib.crc32(kind + body)
        chunks[kind], at = body, at + 12 + size
    return chunks


def decode(image):
    chunks = chunks_of(image)
    width, height, depth, colour_type = struct.unpack(">IIBB", chunks[b"IHDR"][:10])
    assert (depth, colour_type, chunks[b"tRNS"]) == (8, 3, b"\x00")
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, width + 1)
    assert not lines[:, 0].any()
    return lines[:, 1:]


def palette(image):
    return np.frombuffer(chunks_of(image)[b"PLTE"], np.uint8).reshape(-1, 3).astype(int)


def test_the_choice_of_method_is_a_table_and_a_method_that_never_won_has_a_dash(fake):
    fake.begin()
    fake.choose(0, 7.0, "solver-0", (10.0, 4.0), [arm("gmres+ilu", 0, 2, 1, None), arm("direct", 38, 0, 0, 0.0125)])
    page = write_report(fake.folder).read_text(encoding="utf-8")
    table = page.split('id="table-arms"')[1].split("</table>")[0]
    rows = re.findall(r"<tr><th[^>]*><code>(.*?)</code></th>(.*?)</tr>", table)
    assert [(name, re.findall(r">([^<]+)</td>", cells)) for name, cells in rows] == [
        ("direct", ["38", "0", "0", "12.5 ms"]),
        ("gmres+ilu", ["0", "2", "1", "–"]),
    ]
    assert "moved 0.40 times as far" in page

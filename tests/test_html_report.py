"""Reports: pages that are whole, show every row, load nothing, take names for text, and are the same each time."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Ran, TinyTeachers
from tests.test_evaluate import constant_teacher, write_images
from tests.test_report import COMPARISON
from wfcli import html_page, html_plots, html_report
from wfcli.core.metrics import Agreement, Bin
from wfcli.engine.align import Alignment
from wfcli.engine.compare import CompareResult
from wfcli.engine.draws import Line as Drawn
from wfcli.engine.draws import summarise
from wfcli.engine.evaluate import Comparison
from wfcli.engine.fuse import FuseResult
from wfcli.engine.pictures import Agreements, File, Line, Lines, Pictures, Reliability
from wfcli.engine.train_generator import Learned, TrainGeneratorResult
from wfcli.errors import WfError

pytest.importorskip("matplotlib")
Cli = Callable[..., Ran]
ABOUT = html_report.About("wfcli eval s.safetensors \\\n  --data digits", "2026-01-31")
VOID = {"meta", "link", "br", "img", "input", "hr"}
EVIL = "<script>alert(1)</script>&\"'$x$\u202e\n.safetensors"


class Page(HTMLParser):
    """A page read back; fails where a tag is closed that is not open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.rows: list[list[str]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if self.open and {"td", "th"} & set(self.open[-2:]):
            self.rows[-1][-1] += data

    def values(self, *names: str) -> list[str]:
        return [value for _, name, value in self.attributes if name in names]


def pictures_of(comparison: Comparison) -> Comparison:
    """Add pictures with figures out of nothing."""
    named = [(row.name, row.kind) for row in comparison.rows if row.kind not in ("mean", "best")]
    shares = tuple(tuple(1.0 if i == j else 0.5 + 0.01 * (i + j) for j in range(len(named))) for i in range(len(named)))
    bins = (Bin(0.4, 0.5, 3, 0.45, 1 / 3, (0.06, 0.79)), Bin(0.9, 1.0, 40, 0.97, 0.95, (0.84, 0.99)))
    line = Line(*(row.name for row in comparison.rows[:2]), (0.0, 0.5, 1.0), (0.2, 1.7, 0.3), (0.9, 0.4, 0.8))
    names, kinds = zip(*named, strict=True)
    taken = Pictures(
        data="digits",
        files=tuple(File(name, f"{place:064x}") for place, name in enumerate(names)),
        reliability=tuple(Reliability(name, kind, bins) for name, kind in named),
        agreement=Agreements(names, kinds, Agreement(shares, shares)),
        lines=Lines(1000, 64, False, (line,)),
    )
    return replace(comparison, data="/data/of/somebody/digits", pictures=taken)


def fused(comparison: Comparison, **changes: Any) -> FuseResult:
    usual: dict[str, Any] = {
        "output": Path("/data/of/somebody/s.safetensors"), "digest": "ab" * 32, "method": "weightformer",
        "generator": "universal", "generator_digest": "cd" * 32, "teachers": ("a.safetensors", "b.safetensors"),
        "base": None, "origin": None, "weights": (0.8, 0.2), "alignment": None, "regime": "the teachers share a base",
        "calibrated": True, "learned": 0, "probes": 0, "unlabelled": 0, "guard": None, "seconds": 2.34,
        "comparison": comparison, "mixing": {"features.0": (0.7, 0.3), "head": (0.9, 0.1)},
    }  # fmt: skip
    return FuseResult(**{**usual, **changes})


def compared() -> CompareResult:
    lines = [
        Drawn(count, seed, ("a", "b"), method, top1, top1, 1.5, 10**8, "")
        for count in (2, 3)
        for seed in range(2)
        for method, top1 in (("best single", 0.7), ("soup", 0.6 + 0.02 * seed), ("auto", 0.75 + 0.01 * seed))
    ]
    folder = Path("/data/of/somebody/comparison")
    teachers = pictures_of(COMPARISON)
    return CompareResult(folder, tuple(lines), tuple(summarise(lines)), "net", "/x/digits", "test", 9.0, teachers)


def trained() -> TrainGeneratorResult:
    rows = [(0, 0.5, 0.55, 0.0), (10, 0.6, 0.6, 0.075), (20, 0.58, 0.61, 0.07)]
    history = tuple(
        {"step": step, "gain": gain, "data_free": free, "calibrated": calibrated, "soup_data_free": 0.5,
         "soup_calibrated": 0.55, **({"loss": 1.5 - step / 40} if step else {})}
        for step, free, calibrated, gain in rows
    )  # fmt: skip
    zoos = (Learned("zoo-a", "net(width=0.25)", "digits", 10, 7, 3),)
    settings = {"preset": "universal", "steps": 20, "flow": True, "init": None}
    return TrainGeneratorResult(Path("/x/generator"), "ef" * 32, 22_400, 20, 10, 0.075, history, 3.0, zoos, settings)


PAGES: dict[str, Callable[[], str]] = {
    "eval": lambda: html_report.evaluated(pictures_of(COMPARISON), ABOUT),
    "fuse": lambda: html_report.fused(fused(pictures_of(COMPARISON)), ABOUT),
    "compare": lambda: html_report.methods_compared(compared(), ABOUT),
    "train-generator": lambda: html_report.generator_trained(trained(), ABOUT),
}


@cache
def page_of(name: str) -> str:
    return PAGES[name]()


# What holds for every page ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=PAGES)
def text(request: pytest.FixtureRequest) -> str:
    return page_of(request.param)


def test_it_is_balanced_and_no_id_is_there_twice(text: str) -> None:
    page = Page(text)
    ids = Counter(page.values("id"))
    assert max(ids.values()) == 1
    wanted = [value[1:] for value in page.values("href", "xlink:href") if value.startswith("#")]
    wanted += re.findall(r"url\(#([^)]*)\)", text)
    assert wanted
    assert set(wanted) <= set(ids)


def test_it_loads_nothing_and_runs_nothing(text: str) -> None:
    page = Page(text)
    assert {value for value in page.values("href", "src", "xlink:href") if not value.startswith("#")} == {"data:,"}
    assert re.findall(r"url\((?!#)|@import|https?:", text) == []
    assert page.tags["script"] == page.tags["img"] == page.tags["iframe"] == page.tags["object"] == 0
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert "default-src 'none'" in page.values("content")[0] or "default-src 'none'" in page.values("content")[1]


def test_it_is_made_for_phones_and_for_the_dark(text: str) -> None:
    page = Page(text)
    assert {"width=device-width, initial-scale=1", "light dark"} <= set(page.values("content"))
    assert "prefers-color-scheme: dark" in text
    assert re.findall(r"#fe00|#000000|#ffffff;? ?[;\"]stroke", text.partition("</style>")[2]) == []
    assert "var(--ink)" in text.partition("</style>")[2]


def test_every_picture_says_what_is_to_be_seen_and_has_its_numbers(text: str) -> None:
    page = Page(text)
    assert page.tags["svg"] == page.tags["figure"] == page.tags["figcaption"] == page.tags["details"] > 0
    labels = [value for tag, name, value in page.attributes if (tag, name) == ("svg", "aria-label")]
    assert len(labels) == len({*labels}) == page.tags["svg"]
    assert all(re.search(r"\d", label) for label in labels)
    heads = [value for tag, name, value in page.attributes if (tag, name) == ("th", "scope")]
    assert len(heads) == page.tags["th"]


def test_it_names_no_folder_of_this_machine(text: str) -> None:
    assert not re.search(r"/data/|somebody|/x/", text)


def test_it_says_how_it_was_made(text: str) -> None:
    page = Page(text)
    said = "".join(page.texts)
    assert ABOUT.command in said
    assert all(part in said for part in ("2026-01-31", "wfcli 0.", "torch ", "Python 3."))
    assert any(re.fullmatch("[0-9a-f]{64}", text) for text in page.texts)


@pytest.mark.parametrize("name", PAGES)
def test_the_same_result_gives_the_same_bytes(name: str) -> None:
    assert PAGES[name]() == page_of(name)


# What the pages show ----------------------------------------------------------------------------------------------


def test_the_table_is_that_of_the_terminal() -> None:
    rows = Page(page_of("eval")).rows
    start = rows.index(["", "top-1 %", "95 %", "vs best", "NLL", "ECE %", "params", "size", "images/s"])
    table = rows[start + 1 : start + 1 + len(COMPARISON.rows)]
    assert table[0] == ["teacher-00", "61.00", "59.9–61.9", "-6.00", "1.200", "5.0", "9.2 M", "37 MB", "1,234"]
    assert [row[0] for row in table] == [
        "teacher-00", "teacher-01", "mean teacher", "best: teacher-01", "ensemble",
        "student-with-a-name-that-is-rather-long",
    ]  # fmt: skip
    assert "<b>70.12</b>" in page_of("eval")
    assert "student-with-a-name-that-is-rather-long: a note" in page_of("eval")


def test_the_numbers_of_the_pictures_are_there() -> None:
    rows = Page(page_of("eval")).rows
    assert ["teacher-00", "61.00", "59.90–61.90"] in rows
    assert ["mean teacher", "64.00", ""] in rows  # the mean of intervals is none
    assert ["ensemble", "40–50", "3", "45.0", "33.3", "6.0–79.0"] in rows
    assert ["teacher-00.safetensors → teacher-01.safetensors", "50", "1.700", "40.00"] in rows
    assert ["2 teacher-01", "51.0", "100.0", "53.0", "54.0"] in rows


def test_the_page_of_fuse_has_the_weights_of_every_layer() -> None:
    text = page_of("fuse")
    assert ["features.0", "70.0", "30.0"] in Page(text).rows
    assert "weight of the teachers: a 80 %, b 20 %" in text
    assert "most uneven in head, from 10.0 to 90.0 %" in text
    plain = html_report.fused(fused(pictures_of(COMPARISON), mixing=None), ABOUT)
    assert "layer by layer" not in plain
    moved = Alignment("weights", ("b",), 8, 0.998, (), 2e-15)
    assert "aligned by weights: b" in html_report.fused(fused(pictures_of(COMPARISON), alignment=moved), ABOUT)


def test_the_page_of_compare_has_methods_for_every_number_and_the_teachers() -> None:
    text = page_of("compare")
    rows = Page(text).rows
    assert ["", "K = 2: top-1 %", "K = 3: top-1 %", "time", "memory"] in rows
    assert ["auto", "75.50 ± 6.35", "75.50 ± 6.35", "1.5 s", "100 MB"] in rows
    assert ["soup", "61.00", "48.29–73.71"] in rows  # 0.61 ± 12.706 * 0.01
    assert all(f"Every method, K = {number}" in text for number in (2, 3))
    assert "Equal answers" in text
    assert "Equal answers" not in html_report.methods_compared(replace(compared(), teachers=None), ABOUT)


def test_the_page_of_train_generator_has_curves_baselines_zoos_and_settings() -> None:
    text = page_of("train-generator")
    page = Page(text)
    assert ["10", "60.00", "50.00", "60.00", "55.00", "+7.50"] in page.rows
    assert ["20", "1.0000"] in page.rows
    assert ["zoo-a", "net(width=0.25)", "digits", "10", "7", "3"] in page.rows
    said = " ".join(page.texts)
    assert all(part in said for part in ("soup, data-free", "soup, calibrated", "preset universal", "flow yes"))
    only_start = replace(trained(), history=trained().history[:1], best_step=0)
    assert "Training loss" not in html_report.generator_trained(only_start, ABOUT)


def test_names_are_text_everywhere() -> None:
    rows = tuple(replace(row, name=EVIL) if row.kind == "checkpoint" else row for row in COMPARISON.rows)
    odd = pictures_of(replace(COMPARISON, rows=rows, architecture="<b>net</b>"))
    result = fused(odd, teachers=(EVIL, "b"), mixing={"<i>": (0.5, 0.5), "head": (0.1, 0.9)})
    for text in (html_report.evaluated(odd, html_report.About(EVIL, EVIL)), html_report.fused(result, ABOUT)):
        page = Page(text)
        assert page.tags["script"] == page.tags["i"] == 0
        assert "\u202e" not in text
        assert any("<script>alert(1)</script>&\"'$x$��" in said for said in page.texts)
    assert html_page.escape("a\tb\x00<'") == "a�b�&lt;&#x27;"


def test_names_that_look_like_ours_or_like_none() -> None:
    for name in ("run#fe0005.safetensors", 'id="x url(#a', "_hidden.safetensors"):
        rows = tuple(replace(row, name=name) if row.kind == "checkpoint" else row for row in COMPARISON.rows)
        odd = pictures_of(replace(COMPARISON, rows=rows))
        result = fused(odd, teachers=(name, "_b"), mixing={"one": (0.5, 0.5), "head": (0.1, 0.9)})
        said = [text.strip() for text in Page(html_report.fused(result, ABOUT)).texts]
        assert sum(text.startswith(name.removesuffix(".safetensors")) for text in said) > 2, name


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_no_panel_of_reliability_is_empty(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    seen: list[Figure] = []
    draw = Figure.savefig

    def save(figure: Figure, *args: Any, **options: Any) -> None:
        seen.append(figure)
        draw(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", save)
    bins = pictures_of(COMPARISON).pictures.reliability[0].bins  # type: ignore[union-attr]
    html_plots.reliability([(f"net {n}", "below", 0, bins) for n in range(count)], "key", "label")
    assert sum(axes.get_visible() for axes in seen[0].axes) == count


def test_a_date_that_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "99999999999999")
    with pytest.raises(WfError, match="SOURCE_DATE_EPOCH: got 99999999999999"):
        html_report.check_report(tmp_path / "page.html")


def test_answers_that_are_no_numbers_do_not_stop_the_page() -> None:
    broken = tuple(replace(row, nll=float("nan"), ece=float("nan")) for row in COMPARISON.rows)
    whole = pictures_of(replace(COMPARISON, rows=broken))
    assert whole.pictures is not None
    assert whole.pictures.lines is not None
    nothing = float("nan")
    line = replace(whole.pictures.lines.lines[0], nll=(nothing, nothing, nothing))
    empty = tuple(replace(one, bins=()) for one in whole.pictures.reliability)
    taken = replace(whole.pictures, reliability=empty, lines=replace(whole.pictures.lines, lines=(line,)))
    text = html_report.evaluated(replace(whole, pictures=taken), ABOUT)
    assert "Reliability" not in text
    assert "Along straight lines" in text
    Page(text)


def test_colours_can_be_told_from_their_ground() -> None:
    """Contrast by WCAG 2: 4.5 for text, 3 for what is drawn, in the light and in the dark."""
    css = files("wfcli").joinpath("report.css").read_text(encoding="utf-8")
    for block in re.findall(r":root \{([^}]*)\}", css):
        colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", block))
        assert len(colours) == 11
        for ground in ("bg", "card"):
            assert min(contrast(colours[name], colours[ground]) for name in ("ink", "dim", "s0")) >= 4.5
            assert min(contrast(colours[f"s{number}"], colours[ground]) for number in range(6)) >= 3


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


# The command line -------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny_eval(tmp_path: Path) -> list[str | Path]:
    """Return the arguments of an eval that takes no time: two nets that say one word, and one with an odd name."""
    data = write_images(tmp_path / "data", {"train": (3, 3), "validation": (7, 3), "test": (2, 8)})
    nets = [constant_teacher(tmp_path / f"{name}.safetensors", place) for place, name in enumerate(("no", "yes"))]
    odd = constant_teacher(tmp_path / '<script>x & "y".safetensors', 1)
    teachers = [part for net in nets for part in ("--teachers", net)]
    arch = ["--arch", "vgg11_cifar", "--arch-arg", "width=0.125"]
    return ["eval", odd, *teachers, *arch, "--data", data.source, "--device", "cpu"]


def test_eval_writes_a_page(
    wfcli: Cli, tiny_eval: list[str | Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1800000000")
    ran = wfcli(*tiny_eval, "--report", tmp_path / "report.html")
    assert ran.code == 0, ran.stderr
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.tags["script"] == 0
    assert page.tags["svg"] == 5
    assert '<script>x & "y" beside 2 teachers' in page.texts
    assert str(tmp_path) not in text
    said = "".join(page.texts)
    assert "2027-01-15" in said
    assert "wfcli eval '<script>x & \"y\".safetensors' \\\n  --data data \\\n  --arch vgg11_cifar" in said
    assert "--teachers no.safetensors \\\n  --teachers yes.safetensors" in said
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]


@pytest.mark.parametrize(
    ("report", "told"),
    [
        ("missing/report.html", ["missing/report.html: its folder does not exist", "mkdir -p"]),
        ("report.pdf", ["report.pdf: suffix: got .pdf, expected .html"]),
        ("data", ["data: is a folder"]),
    ],
)
def test_a_place_that_will_not_do_is_told_before_the_work(
    wfcli: Cli,
    tiny_eval: list[str | Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    report: str,
    told: list[str],
) -> None:
    monkeypatch.setattr("wfcli.engine.evaluate.evaluate", lambda *_: pytest.fail("it has begun"))
    ran = wfcli(*tiny_eval, "--report", tmp_path / report)
    assert ran.code == 1
    assert all(part in ran.stderr for part in told)
    assert not (tmp_path / report).is_file()


@pytest.mark.parametrize(
    "args",
    [
        ("eval", "a", "--arch", "resnet18", "--data", "digits"),
        ("fuse", "a", "b", "--arch", "resnet18", "--data", "digits", "-o", "s.safetensors"),
        ("compare", "a", "b", "--arch", "resnet18", "--data", "digits", "-o", "c"),
        ("train-generator", "--zoo", "z", "-o", "g"),
    ],
    ids=lambda args: args[0],
)
def test_without_matplotlib_it_says_so_first(
    wfcli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(html_report, "find_spec", lambda name: None)
    ran = wfcli(*args, "--report", "report.html")
    assert ran == Ran(
        1, "", "error: --report: matplotlib is not installed\nhint: pip install 'wfcli[plot]', or leave it out\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_fuse_writes_a_page(
    wfcli: Cli, tiny_teachers: TinyTeachers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wfcli.engine.pictures.SHARES", (0.0, 1.0))
    args = ("--data", "digits", "--calibration-images", "32", "--method", "soup", "--device", "cpu")
    out, report = tmp_path / "s.safetensors", tmp_path / "report.htm"
    ran = wfcli("fuse", *tiny_teachers.paths[:2], *tiny_teachers.arch, *args, "-o", out, "--report", report)
    assert ran.code == 0, ran.stderr
    text = report.read_text(encoding="utf-8")
    assert "s: soup of 2 teachers" in text
    assert "anew from 32 training images" in text
    assert Page(text).tags["svg"] == 5


@pytest.mark.parametrize(
    ("verb", "args", "result", "title"),
    [
        ("compare", ("compare", "a", "b", "--arch", "resnet18", "--data", "digits"), compared, "Every method, K = 3"),
        ("train_generator", ("train-generator", "--zoo", "z"), trained, "Students of held-out teachers"),
    ],
)
def test_a_report_may_lie_in_the_folder_that_the_command_makes(
    wfcli: Cli,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    args: tuple[str, ...],
    result: Callable[[], Any],
    title: str,
) -> None:
    folder, asked = tmp_path / "new", []

    def run(config: Any, hooks: object) -> Any:
        asked.append(getattr(config, "pictures", None))
        folder.mkdir()
        return result()

    monkeypatch.setattr(f"wfcli.engine.{verb}.{verb}", run)
    ran = wfcli(*args, "-o", folder, "--report", folder / "report.html")
    assert ran.code == 0, ran.stderr
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert title in text
    assert "--output new" in text
    assert asked == [True if verb == "compare" else None]
    assert "sha256" in ran.stdout or "comparison" in ran.stdout  # the tables all the same


def test_what_was_found_is_shown_even_where_the_page_cannot_be_written(
    wfcli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wfcli.engine.evaluate.evaluate", lambda *_: pictures_of(COMPARISON))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()

    def gone(result: Comparison, about: html_report.About) -> str:
        (tmp_path / "here").rmdir()
        return "page"

    monkeypatch.setattr(html_report, "evaluated", gone)
    ran = wfcli("eval", "a", "--arch", "resnet18", "--data", "digits", "--report", "here/report.html")
    assert ran.code == 1
    assert "teacher-00" in ran.stdout
    assert "here/report.html: its folder does not exist" in ran.stderr

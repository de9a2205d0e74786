"""The report of a training or an evaluation, and the model card: the figures, and that data in them stays data."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from huggingface_hub import ModelCard
from playwright.sync_api import sync_playwright
from samples import rows

from model.scores import MULTI, SINGLE, Calibration, judge
from service.cli import main
from training.answers import Answers
from training.comparison import Comparison
from training.data import Columns, DataError, Dataset, Example, read_dataset
from training.evaluate import score_answers
from training.figures import by_length, confused_pairs, slices, worst_mistakes
from training.intervals import Interval
from training.report_page import make_report, report_files

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from model.scores import Array

HOSTILE = "</td><script>alert(1)</script> $x^ | **b** &amp;"


def single(scores: Array, truth: Sequence[int], labels: Sequence[str], texts: Sequence[str] = ()) -> Answers:
    """Answers about texts of one label each."""
    texts = texts or [f"text {i}" for i in range(len(truth))]
    examples = [
        Example(text, (labels[i],), line, (f"column {i}",))
        for line, (text, i) in enumerate(zip(texts, truth, strict=True), 1)
    ]
    return answers_of(Dataset("data.jsonl", examples, SINGLE, [], "", slices=("source",)), labels, scores, truth)


def answers_of(dataset: Dataset, labels: Sequence[str], scores: Array, truth: Any) -> Answers:
    """Answers with these scores, which a temperature of 2 has made of the logits."""
    is_multi = dataset.problem_type == MULTI
    scores = np.clip(scores, 1e-6, 1 - 1e-6)
    logits = 2 * (np.log(scores) - np.log(1 - scores) if is_multi else np.log(scores))
    calibration = Calibration(temperature=2.0, coverage=0.9, quantile=0.8)
    return Answers(
        dataset=dataset,
        labels=labels,
        logits=logits,
        judged=judge(logits, dataset.problem_type, calibration),
        truth=np.array(truth),
        tokens=[len(text) for text in dataset.texts],
        calibration=calibration,
        outside=logits[:0],
    )


def many(labels: int, n: int) -> Answers:
    """Answers that are mostly right, about texts of so many labels with long names."""
    rng = np.random.default_rng(0)
    truth = rng.integers(labels, size=n)
    logits = rng.normal(size=(n, labels)) + 2 * (np.arange(labels) == truth[:, None])
    scores = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(np.float32)
    return single(scores, truth.tolist(), [f"{HOSTILE} {i} " + "name " * 30 for i in range(labels)])


def files_of(answers: Answers, **options: Any) -> dict[str, str]:
    return report_files(make_report("name", "today", {"dev": score_answers(answers)}, answers, **options))


class Elements(HTMLParser):
    """Names and attributes of a page's elements, and its words."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data


@pytest.mark.parametrize("labels", [2, 3, 25])
def test_labels_and_texts_are_never_markup(labels: int) -> None:
    answers = many(labels, 300)
    answers.dataset.examples[:] = [
        Example(f"<img src=x onerror=alert(1)> {HOSTILE}", e.labels, e.line, (HOSTILE,))
        for e in answers.dataset.examples
    ]
    files = files_of(answers, with_texts=True)
    page = Elements(files["report.html"])
    assert not {"script", "img"} & {tag for tag, _ in page.found}
    assert HOSTILE in page.words
    assert "<img src=x onerror" in page.words
    for name, text in files.items():
        assert "<script" not in text, name
        assert name == "report.html" or "<img" not in text
    rows_of_tables = [line.replace(r"\|", "") for line in files["report.md"].splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows_of_tables} <= {4, 5, 6, 7, labels + 2}


def test_a_page_needs_nothing_beside_it() -> None:
    for tag, attributes in Elements(files_of(many(25, 500))["report.html"]).found:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)


@pytest.mark.parametrize(("labels", "n"), [(2, 1), (30, 1), (2, 3), (30, 40)])
def test_the_smallest_data_has_a_report_too(labels: int, n: int) -> None:
    assert "labelled right" in files_of(many(labels, n))["report.html"]


def test_a_report_stays_small_with_151_labels() -> None:
    files = files_of(many(151, 4000), with_texts=True)
    assert sum(map(len, files.values())) < 2_000_000


def test_the_report_in_a_bundle_names_lines_and_quotes_no_text(bundle_folder: Path) -> None:
    texts = {str(row["text"]) for row in rows(1500) if len(str(row["text"]).split()) > 4}
    report = bundle_folder / "report"
    for file in report.iterdir():
        content = file.read_text()
        assert not [text for text in texts if text in content], file.name
    assert "Settings" in (report / "report.html").read_text()
    metrics = json.loads((report / "metrics.json").read_text())
    assert metrics["cost"]["parameters"] > 0
    epoch = metrics["history"][0]
    assert np.mean(epoch["losses"]) == pytest.approx(epoch["loss"], rel=0.2)


def test_evaluate_writes_a_report_that_quotes_mistakes_and_tells_columns_apart(
    bundle_folder: Path, write_jsonl: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = [{**row, "origin": "web" if i % 3 else "app"} for i, row in enumerate(rows(200, seed=5))]
    content[41] |= {"text": "what a lovely warm good day", "label": "negative"}
    data = write_jsonl(content)
    assert main(["evaluate", str(bundle_folder), "--data", str(data), "--report", str(tmp_path / "r"), "--json"]) == 0
    page = Elements((tmp_path / "r" / "report.html").read_text()).words
    assert "what a lovely warm good day" in page
    assert "Column origin" not in page
    arguments = ["--data", str(data), "--slice", "origin", "--report", str(tmp_path / "r")]
    assert main(["evaluate", str(bundle_folder), *arguments]) == 0
    assert "Column origin" in Elements((tmp_path / "r" / "report.html").read_text()).words
    assert "| 42 | what a lovely warm good day | negative | positive |" in (tmp_path / "r" / "report.md").read_text()
    capsys.readouterr()
    assert json.loads((tmp_path / "r" / "metrics.json").read_text())["n"] == 200


def test_the_linear_line_stands_beside_the_encoder_where_there_is_one() -> None:
    answers = many(2, 300)
    evaluation = score_answers(answers)
    line = Comparison(
        figure="accuracy", encoder=0.7, linear=0.72, difference=Interval(-0.02, -0.05, 0.01), verdict="neither"
    )
    evaluation = replace(evaluation, linear=line)
    files = report_files(make_report("name", "today", {"dev": evaluation}, answers))
    assert "has accuracy 72.0%. The encoder has -2.0 points (-5.0 to +1.0)" in files["report.html"]
    assert "no clear difference" in files["report.md"]


def test_a_report_says_how_often_the_model_abstains_and_on_how_many_texts_of_no_class() -> None:
    answers = many(4, 300)
    unsure = np.tile(np.array([0.1, 0.0, 0.05, 0.0], np.float32), (40, 1))
    sure = answers.logits[:10] * 3
    cautious = replace(answers.calibration, false_alarms=0.1, scope_threshold=1.5)
    judged = judge(answers.logits, SINGLE, cautious)
    answers = replace(answers, calibration=cautious, judged=judged, outside=np.concatenate([unsure, sure]))
    files = files_of(answers)
    assert judged.abstained is not None
    assert f"It answers {100 * (1 - judged.abstained.mean()):.1f}%" in files["report.md"]
    assert "of 50 texts that are of no class" in files["report.md"]
    assert "Texts of no class found" in files["report.html"]
    assert "abstains" not in files_of(many(4, 300))["report.md"]


def test_a_column_that_no_row_has_is_refused(write_jsonl: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match="no row has a field to slice by that is named origin"):
        read_dataset(write_jsonl(rows(10)), Columns(slices=("origin",)))


def test_the_worst_mistakes_are_the_most_confident_wrong_answers() -> None:
    scores = np.array([[0.6, 0.4], [0.9, 0.1], [0.2, 0.8], [0.3, 0.7]], dtype=np.float32)
    found = worst_mistakes(single(scores, [1, 0, 0, 1], ["a", "b"]), with_texts=True)
    assert [(m.line, m.text, m.true, m.said) for m in found] == [(3, "text 2", "a", "b"), (1, "text 0", "b", "a")]
    assert [m.score for m in found] == pytest.approx([0.8, 0.6])


def test_a_missed_label_is_a_mistake_too_where_there_are_several() -> None:
    scores = np.array([[0.1, 0.7]], dtype=np.float32)
    answers = answers_of(Dataset("d", [Example("x", ("a",), 7)], MULTI, [], ""), ["a", "b"], scores, [[1.0, 0.0]])
    assert [(m.said, round(m.score, 3)) for m in worst_mistakes(answers, with_texts=False)] == [
        ("not a", 0.9),
        ("b", 0.7),
    ]
    [pair] = confused_pairs(answers)
    assert (pair.true, pair.said, pair.n, pair.share) == ("a", "b", 1, 1)
    assert "All labels right" in files_of(answers)["report.html"]


def test_pairs_are_those_of_the_confusion_matrix_most_frequent_first() -> None:
    scores = np.eye(3, dtype=np.float32)[[0, 1, 1, 2, 0, 2]]
    pairs = confused_pairs(single(scores, [0, 0, 0, 0, 1, 2], ["a", "b", "c"]))
    assert [(p.true, p.said, p.n, p.share) for p in pairs] == [
        ("a", "b", 2, 0.5),
        ("a", "c", 1, 0.25),
        ("b", "a", 1, 1),
    ]


def test_a_slice_is_below_all_only_where_its_whole_interval_is() -> None:
    truth = [0] * 100 + [1] * 100
    scores = np.full((200, 2), 0.5, dtype=np.float32) + np.array([0.1, -0.1], dtype=np.float32)
    scores[140:] = scores[140:, ::-1]  # of the second label, 40 of 100 are wrong
    [parts] = [parts for title, parts in slices(single(scores, truth, ["a", "b"])).items() if title == "Column source"]
    assert {(s.name, s.n, s.right.value, s.verdict) for s in parts} == {
        ("column 0", 100, 1.0, "above"),
        ("column 1", 100, 0.6, "below"),
    }


def test_texts_of_one_length_are_one_part() -> None:
    parts = [(low, high, int(part.sum())) for low, high, part in by_length([5] * 90 + [7, 8, 9, 30], 4)]
    assert sum(n for *_, n in parts) == 94
    assert parts[0] == (5, 5, 90)


def test_the_hub_reads_the_figures_of_a_model_card(bundle_folder: Path) -> None:
    card = ModelCard.load(bundle_folder / "README.md")
    figures = {result.metric_name: result for result in card.data.eval_results or []}
    manifest = json.loads((bundle_folder / "heed.json").read_text())
    assert figures["Accuracy"].metric_value == pytest.approx(manifest["metrics"]["dev"]["accuracy"], abs=1e-4)
    assert figures["Macro-F1"].metric_args == {"average": "macro"}
    assert (card.data.license, card.data.language, card.data.model_name) == (None, None, "mood")
    assert "| dev |" in card.text


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_is_accessible_and_fits_a_phone(scheme: Any, tmp_path: Path) -> None:
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if not found:
        pytest.skip("no browser: neither chromium nor google-chrome is installed")
    answers = many(12, 400)
    (tmp_path / "report.html").write_text(files_of(answers, with_texts=True)["report.html"])
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 360, "height": 740}, color_scheme=scheme)
        page.goto((tmp_path / "report.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        violations = Axe().run(page).response["violations"]
        browser.close()
    assert [(v["id"], v["nodes"][0]["html"]) for v in violations] == []


def test_the_tables_of_a_card_are_tables(bundle_folder: Path) -> None:
    lines = (bundle_folder / "README.md").read_text().splitlines()
    heads = [i for i, line in enumerate(lines) if line.startswith("| ---")]
    assert len(heads) == 4  # figures, against the linear line, data, epochs
    for i in heads:
        assert "\\" not in lines[i]
        assert lines[i - 1].count("|") == lines[i].count("|") == lines[i + 1].count("|")

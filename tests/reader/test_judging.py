"""A reader as judge: question files, the two metrics with their bounds, and the choice among candidates."""

import json
from pathlib import Path

import numpy as np
import pytest

from builders.tiny_reader_run import make_reader_run, tiny_reader
from builders.tiny_run import make_run
from t2i.cli import app
from t2i.data import View, open_dataset
from t2i.data.published.question_files import questions_about_captions, read_questions
from t2i.data.questions import Question
from t2i.errors import InputError
from t2i.metrics import Inputs, find_metric
from t2i.metrics.score import read_scores
from t2i.reader.judging import JudgingReader
from t2i.reader.scores import ask
from t2i.sampling.reranking import BestOf, open_chooser

TIFA = [
    {"id": "a", "caption": "a red star", "question": "is there a star?", "choices": ["yes", "no"], "answer": "yes"}
    | {"element_type": "object", "element": "star"},
    {
        "id": "a",
        "caption": "a red star",
        "question": "what shape is it?",
        "choices": ["Star", "ring"],
        "answer": "star",
    },
    {"id": "b", "caption": "two rings", "question": "how many rings?", "choices": ["1", "2"], "answer": "two"},
]
DSG = """item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,question_natural_language
x_1,a red star,star,1,0,entity,whole,entity - whole (star),Is there a star?
x_1,a red star,"star, red",2,1,attribute,color,"attribute - color (star, red)",Is the star red?
x_1,a red star,"star, big",3,"1,2",attribute,size,size,Is the red star big?
"""


def test_tifa_and_dsg_are_read_as_published(tmp_path: Path) -> None:
    (tmp_path / "tifa.json").write_text(json.dumps(TIFA))
    (tmp_path / "dsg.csv").write_text(DSG)
    tifa, dsg = read_questions(tmp_path / "tifa.json"), read_questions(tmp_path / "dsg.csv")
    assert tifa["a red star"][0] == Question("is there a star?", {"yes": 1.0}, "object", (), ("yes", "no"))
    assert tifa["two rings"][0].answers == {"2": 1.0}
    assert [q.parents for q in dsg["a red star"]] == [(), (0,), (0, 1)]
    assert [q.kind for q in dsg["a red star"]] == ["entity", "attribute", "attribute"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (
            "q.json",
            json.dumps([{k: v for k, v in TIFA[0].items() if k != "answer"}]),
            "entry 1 .*no answer.*complete it",
        ),
        ("q.json", json.dumps([{**TIFA[0], "answer": " "}]), "no answer"),
        ("q.json", '["a"]', "entry 1 needs caption"),
        ("q.json", '{"a": 1}', "is not a list of entries"),
        ("q.json", "[]", "holds no questions"),
        ("q.json", "{", "is not valid JSON"),
        ("q.csv", "item_id,text\nx,a\n", "has no column 'proposition_id'"),
        ("q.csv", DSG.replace('"1,2"', '"1,9"'), "depends on question 9, which does not exist"),
        ("q.txt", "", "name a TIFA file"),
    ],
)
def test_bad_question_files_are_told_in_one_line(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=said) as caught:
        read_questions(tmp_path / name)
    assert "\n" not in str(caught.value)


class Parrot:
    """Answers by a table, so that credit can be counted by hand."""

    answers = ("no", "yes", "red", "2")

    def answer_scores(self, cells, image_Q, questions):
        told = {"Is there a star?": "no", "Is the star red?": "yes"}
        return np.array([[float(told.get(q, "yes") == a) for a in self.answers] for q in questions], np.float32)


def test_a_child_counts_nothing_when_its_parent_is_answered_wrongly() -> None:
    import torch

    several = [
        Question("Is there a star?", {"yes": 1.0}, "entity"),
        Question("Is the star red?", {"yes": 1.0}, "attribute", (0,)),
        Question("Is the red star big?", {"yes": 1.0}, "attribute", (1,)),
        Question("Is it day?", {"yes": 0.5}, "global"),
        Question("Which?", {"red": 1.0}, "global", (), ("blue",)),
    ]
    found = ask(Parrot(), torch.zeros(1, 1, 1), [several])  # type: ignore[arg-type]
    assert found.credit.tolist() == [0, 0, 0, 0.5, 0] and found.given[-1] == ""
    alone = ask(Parrot(), torch.zeros(1, 1, 1), [several[1:2]])  # type: ignore[arg-type]
    assert alone.credit.tolist() == [1.0]


def test_the_metrics_count_what_the_reader_says() -> None:
    judged = {
        "fake": {"": np.array([1.0, 0.5, np.nan]), "count": np.array([1.0, np.nan, np.nan])},
        "real": {"": np.array([1.0, 1.0, 1.0]), "count": np.array([1.0, np.nan, np.nan])},
        "shuffled": {"": np.array([0.0, 0.5, 0.1])},
    }
    empty = np.empty((0, 0), np.float32)
    scores = find_metric("questions").measure(Inputs(empty, empty, ["a", "b", "c"], judged=judged))
    whole, count = scores
    assert whole.protocol.metric == "questions" and whole.value == 0.75 and whole.protocol.n_fake == 2
    assert dict(whole.bounds) == {"real": 1.0, "shuffled": pytest.approx(0.2)} and whole.interval is not None
    assert count.protocol.metric == "questions-count" and dict(count.bounds) == {"real": 1.0}
    assert whole.samples is not None and np.isnan(whole.samples[2])


def test_a_judge_gives_each_image_the_same_in_any_company() -> None:
    reader = tiny_reader()
    judge, dataset = JudgingReader(reader), open_dataset("shapes-2", "val", View(24, limit=6))
    images, captions = dataset.images(range(6)), [options[0] for options in dataset.captions]
    features = judge.features(images)
    assert features.shape == (6, judge.dim) and judge.features(images[:0]).shape == (0, judge.dim)
    np.testing.assert_allclose(judge.features(images[2:3])[0], features[2], atol=1e-4)
    np.testing.assert_allclose(
        judge.likelihoods(features, captions), reader.likelihood(list(images), captions), atol=1e-3
    )
    questions = questions_about_captions(captions, None)
    right = judge.right(features, questions)
    flat = [(row, q) for row, several in enumerate(questions) for q in several]
    given = reader.answer([images[row] for row, _ in flat], [q.text for _, q in flat])
    for row in range(6):
        own = [float(q.answers.get(answer, 0)) for (k, q), answer in zip(flat, given, strict=True) if k == row]
        assert right[""][row] == pytest.approx(np.mean(own))
    with pytest.raises(InputError, match="not from 'a dog'; name a TIFA or DSG file"):
        questions_about_captions(["a dog"], None)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("judged")
    return {"gan": make_run(root / "gan"), "reader": make_reader_run(root / "reader")}


def test_eval_score_reports_both_with_ceiling_floor_and_interval(runs: dict[str, Path], tmp_path: Path, capsys) -> None:
    out = tmp_path / "scores.json"
    words = ["eval", "score", str(runs["gan"]), "--data", "shapes-1", "-n", "24", "--reader", str(runs["reader"])]
    assert app.main([*words, "--metrics", "caption-likelihood,questions", "--out", str(out)]) == 0
    scores = {score.protocol.metric: score for score in read_scores(out)}
    assert {"caption-likelihood", "questions", "questions-count", "questions-colour"} <= set(scores)
    for score in scores.values():
        assert score.interval is not None and {"real", "shuffled"} <= set(score.bounds)
        assert str(score.protocol.extractor).startswith("reader-") and score.protocol.extractor_digest
    assert scores["caption-likelihood"].value < 0 <= scores["questions"].value <= 1
    table = capsys.readouterr().out
    assert "caption-likelihood-reader-" in table and "questions-relation" not in table
    assert app.main([*words, "--metrics", "fid-reader"]) == 2  # its cells are nobody's features
    capsys.readouterr()


def test_questions_of_a_file_bring_their_captions(runs: dict[str, Path], tmp_path: Path, capsys) -> None:
    (tmp_path / "tifa.json").write_text(json.dumps(TIFA))
    words = ["eval", "score", str(runs["gan"]), "--reader", str(runs["reader"])]
    file = ["--questions", str(tmp_path / "tifa.json")]
    out = tmp_path / "scores.json"
    assert app.main([*words, *file, "--metrics", "questions", "--out", str(out)]) == 0
    first = read_scores(out)[0]
    assert first.protocol.n_fake == 2 and first.protocol.data.startswith("prompts:")
    capsys.readouterr()
    assert app.main([*words, *file, "--data", "shapes-1", "-n", "4", "--metrics", "questions"]) == 2
    assert "has no questions about 4 of 4 captions" in capsys.readouterr().err
    assert app.main(["eval", "score", str(runs["gan"]), *file]) == 2
    assert "has no effect without a reader" in capsys.readouterr().err
    assert app.main(["eval", "score", str(runs["gan"]), "-n", "4", "--metrics", "questions"]) == 2
    assert "name a run of t2i train reader with --reader" in capsys.readouterr().err


def test_the_best_of_several_is_the_one_whose_caption_is_likeliest(
    runs: dict[str, Path], tmp_path: Path, capsys
) -> None:
    judge = open_chooser(str(runs["reader"]), "cpu")
    assert (
        isinstance(judge, JudgingReader) and judge.digest() == open_chooser(f"reader:{runs['reader']}", "cpu").digest()
    )
    images = open_dataset("shapes-2", "val", View(16, limit=6)).images(range(6))
    captions = ["a red circle", "a blue star"]
    best = BestOf(judge, captions, 3)
    best.add(images[:2])
    best.add(images[2:])
    expected = judge.likelihoods(judge.features(images), [captions[k // 3] for k in range(6)]).reshape(2, 3)
    np.testing.assert_allclose(best.scores, expected, atol=1e-3)
    assert best.chosen() == expected.argmax(axis=1).tolist()
    words = ["sample", str(runs["gan"]), "a small red circle", "--best-of", "2", "--scorer", str(runs["reader"])]
    assert app.main([*words, "--out", str(tmp_path / "out")]) == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert judge.name in json.dumps(manifest)
    answers_only = make_reader_run(tmp_path / "vqa", tasks={"caption": 0, "answer": 1})
    with pytest.raises(InputError, match="only answers questions and cannot score captions; name one"):
        open_chooser(str(answers_only), "cpu")


def test_one_command_scores_what_a_reader_writes_and_answers(runs: dict[str, Path], tmp_path: Path, capsys) -> None:
    out = tmp_path / "scores.json"
    words = ["eval", "captions", str(runs["reader"]), "--data", "shapes-2", "--split", "heldout", "-n", "12"]
    assert app.main([*words, "--out", str(out)]) == 0
    scores = {score.protocol.metric: score for score in read_scores(out)}
    assert {"bleu-4", "cider-d", "caption-strict", "answers", "answers-relation"} <= set(scores)
    assert "shuffled" in scores["answers"].bounds and scores["answers"].interval is not None
    assert scores["caption-strict"].protocol.split == "heldout" and scores["caption-strict"].protocol.n_fake == 12
    assert "shuffled images" in capsys.readouterr().out
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"candidate": "a", "references": ["b"]}) + "\n")
    assert app.main(["eval", "captions", str(tmp_path / "pairs.jsonl"), "--split", "val"]) == 2
    assert "--split val has no effect for captions in" in capsys.readouterr().err
    answers_only = make_reader_run(tmp_path / "vqa", tasks={"caption": 0, "answer": 1})
    folder = tmp_path / "folder"
    assert app.main(["data", "export", "shapes-2", str(folder), "-n", "6", "--size", "16", "--split", "val"]) == 0
    assert app.main(["eval", "captions", str(answers_only), "--data", str(folder), "--split", "train"]) == 2
    assert "has no questions with answers" in capsys.readouterr().err

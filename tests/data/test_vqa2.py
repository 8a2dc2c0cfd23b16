"""VQAv2 as published: questions, credit, splits, and missing files."""

import json
from pathlib import Path

import pytest

from builders.published_layouts import colour, vqa2
from t2i.data import View, open_dataset, parse_address
from t2i.data.questions import questions_of
from t2i.errors import InputError


@pytest.mark.parametrize("below", [False, True])
def test_questions_and_their_credit(tmp_path: Path, below: bool) -> None:
    root = vqa2(tmp_path, below)
    dataset = open_dataset(f"vqa2:{root}", "train", View(16))
    assert len(dataset) == 20 and dataset.ids[0] == "train2014/COCO_train2014_000000000000.jpg"
    for key, (several, captions) in enumerate(zip(questions_of(dataset), dataset.captions, strict=True)):
        color, day = several
        assert color.text == "what color is it?" and color.kind == "other"
        assert color.answers == {"none": pytest.approx(2 / 3), colour(key): 1.0} and day.answers == {"yes": 1.0}
        assert list(captions) == [f"what color is it? {colour(key)}", "is it day? yes"]
    assert len(questions_of(open_dataset(f"vqa2:{root}", "val", View(16)))) == 4
    assert parse_address(str(root)).kind == "vqa2"


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    root = vqa2(tmp_path)
    (root / "train2014" / "COCO_train2014_000000000001.jpg").unlink()
    with pytest.warns(UserWarning, match="without an image.*000000000001"):
        dataset = open_dataset(f"vqa2:{root}", "train", View(16))
    assert len(dataset) == 19 == len(questions_of(dataset))
    for path in (root / "train2014").iterdir():
        path.unlink()
    with pytest.raises(
        InputError, match="none is there: looked for 'COCO_train2014_0.*put the images into that folder"
    ):
        open_dataset(f"vqa2:{root}", "train", View(16))
    annotations = root / "v2_mscoco_val2014_annotations.json"
    content = json.loads(annotations.read_text())
    annotations.write_text(json.dumps({**content, "annotations": content["annotations"][1:]}))
    with pytest.raises(InputError, match="question 100000 has no answers in v2_mscoco_val2014_annotations.json"):
        open_dataset(f"vqa2:{root}", "val", View(16))
    annotations.write_text(json.dumps({"annotations": [{"question_id": 1}]}))
    with pytest.raises(InputError, match="no annotations with question_id and answers"):
        open_dataset(f"vqa2:{root}", "val", View(16))
    annotations.unlink()
    with pytest.raises(InputError, match="has no answers beside it; put v2_mscoco_val2014_annotations.json there"):
        open_dataset(f"vqa2:{root}", "val", View(16))
    with pytest.raises(InputError, match="no questions: looked for v2_OpenEnded"):
        open_dataset(f"vqa2:{tmp_path / 'train2014'}", "train", View(16))


def test_questions_without_answers_are_refused(tmp_path: Path) -> None:
    root = vqa2(tmp_path)
    annotations = root / "v2_mscoco_train2014_annotations.json"
    content = json.loads(annotations.read_text())
    number = content["annotations"][3]["question_id"]
    content["annotations"][3]["answers"] = []
    annotations.write_text(json.dumps(content))
    with pytest.raises(
        InputError, match=f"question {number} has an empty list of answers; download the published file"
    ):
        open_dataset(f"vqa2:{root}", "train", View(16))

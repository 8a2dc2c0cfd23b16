"""Prompt files of published sets of prompts, spreadsheets and pandas."""

import csv
import io
import json
import os

import pytest

from t2i.errors import InputError
from t2i.sampling.prompts import IMAGE_SEED, image_seed, read_prompts

ODD = ['"STOP" reads the sign', "a cat, a dog; a fish", "tab\there", "two\nlines", 'he said "no"', "plain", "'quoted'"]
CLEAN = ['"STOP" reads the sign', "a cat, a dog; a fish", "tab here", "two lines", 'he said "no"', "plain", "'quoted'"]


def table(rows: list[list[str]], **options) -> str:
    """Writes a table like pandas' `to_csv`, i.e. the csv module with other names for its options."""
    out = io.StringIO()
    csv.writer(out, **({"lineterminator": "\n"} | options)).writerows(rows)
    return out.getvalue()


def read(tmp_path, name: str, content: str | bytes) -> list[str]:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_prompts(path)


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
@pytest.mark.parametrize(("suffix", "delimiter"), [("tsv", "\t"), ("csv", ","), ("csv", ";"), ("csv", "\t")])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_what_pandas_wrote_is_read_back(tmp_path, quoting, suffix, delimiter, end):
    rows = [["", "Prompt", "Category"], *([str(k), prompt, "x"] for k, prompt in enumerate(ODD))]
    text = table(rows, delimiter=delimiter, quoting=quoting, lineterminator=end)
    assert read(tmp_path, f"p.{suffix}", text) == CLEAN
    assert read(tmp_path, f"bom.{suffix}", "\ufeff" + text) == CLEAN


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("plain.txt", "a red circle\na blue star\n"),
        ("no_end.txt", "a red circle\n\n  \na blue star"),
        ("no_suffix", "a red circle\na blue star\n"),
        ("drawbench.csv", "Prompts,Category\na red circle,Colors\na blue star,Colors\n"),
        ("drawbench.tsv", "Prompts\tCategory\na red circle\tColors\na blue star\tColors\n"),
        ("coco_captions.csv", "prompt\na red circle\na blue star\n"),
        ("llamagen.csv", "Prompt\tCategory\tChallenge\na red circle\tx\ty\na blue star\tx\ty\n"),
        ("excel.csv", "id;caption\n1;a red circle\n2;a blue star\n"),
        (
            "evaluation_metadata.jsonl",
            '{"tag": "x", "prompt": "a red circle"}\n{"include": [], "prompt": "a blue star"}\n',
        ),
        ("list.json", '["a red circle",\n"a blue star"]'),
        ("objects.json", '[{"Prompt": "a red circle"}, {"Prompt": "a blue star"}]'),
        ("held.json", '{"prompts": ["a red circle", "a blue star"]}'),
        ("ids.json", '{"1": "a red circle", "2": "a blue star"}'),
        ("mjhq.json", '{"1": {"category": "x", "prompt": "a red circle"}, "2": {"prompt": "a blue star"}}'),
        (
            "coco.json",
            '{"info": {}, "annotations": [{"id": 1, "caption": "a red circle"}, {"caption": "a blue star"}]}',
        ),
        ("nested.json", '{"data": {"prompts": ["a red circle", "a blue star"]}}'),
        ("nested.json", '{"data": [{"prompt": "a red circle"}, {"prompt": "a blue star"}]}'),
        ("quoted.tsv", 'Prompt\tCategory\n"a red circle"\tx\n"a blue star"\ty\n'),
        ("lists.csv", "text,n\n\"['a red circle', 'another']\",1\n\"['a blue star']\",2\n"),
        ("lists.tsv", 'caption\n["a red circle", "another"]\n["a blue star"]\n'),
        ("several.json", '[{"captions": ["a red circle", "another"]}, {"captions": ["a blue star"]}]'),
    ],
)
def test_published_layouts_and_line_ends(tmp_path, name, content, end):
    text = content.replace("\n", end)
    for data in (text.encode(), b"\xef\xbb\xbf" + text.encode(), text.encode("utf-16")):
        assert read(tmp_path, name, data) == ["a red circle", "a blue star"]


def test_quotes_of_partiprompts_stay(tmp_path):
    text = 'Prompt\tCategory\n"STOP" reads the sign\tx\n"hello\tx\nthe word "yes"\tx\n'
    assert read(tmp_path, "parti.tsv", text) == ['"STOP" reads the sign', '"hello', 'the word "yes"']
    assert read(tmp_path, "whole.tsv", 'Prompt\tCategory\n"STOP"\tx\n') == ['"STOP"']


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", 'prompt\n"open\n', "a.csv line 2 is not a row of a table"),
        ("a.csv", 'prompt,x\n"a" b,c\n', "a.csv line 2 is not a row of a table"),
        ("a.csv", "words\nred\n", "a.csv has no column prompt, text, caption"),
        ("a.csv", "prompt,x\n,1\n", "a.csv line 2: the prompt '' is empty"),
        ("a.csv", "", "a.csv has no column"),
        ("a.csv", "prompt\n" + "x" * 200_000 + "\n", "a.csv line 2"),
        (
            "a.csv",
            "prompt\na red circle, large\n",
            "a.csv line 2 has 2 cells but the first line has 1; put quotes around",
        ),
        ("a.tsv", "Prompt\tn\na\tb\tc\n", "a.tsv line 2 has 3 cells"),
        ("a.csv", "prompt\n\"['a' 'b']\"\n", "a.csv line 2 must be a string or a list of strings"),
        ("a.csv", "prompt\n[]\n", "a.csv line 2: the prompt '' is empty"),
        ("a.jsonl", '{"prompt": ["a", "b"]}\n', "a.jsonl line 1 has 2 prompts; write one prompt in each entry"),
        ("a.json", '[{"prompts": ["a", "b"]}]', "a.json entry 1 has 2 prompts"),
        ("a.json", "{", r"a.json is not JSON \(line 1\)"),
        ("a.json", "[" * 100_000, "a.json is not JSON"),
        ("a.json", "[1]", "a.json entry 1 has no text under prompt, text, caption"),
        ("a.json", '{"1": ["a"]}', "a.json entry 1 has no text"),
        ("a.json", "7", "a.json holds no prompt"),
        ("a.json", "", "a.json holds no prompt"),
        ("a.jsonl", '{"prompt": null}\n', "a.jsonl line 1 has no text"),
        ("a.xlsx", "PK", "is not a .txt, .jsonl, .json, .tsv, .csv file"),
        ("a.txt", b"caf\xe9", "is not UTF-8 text"),
    ],
)
def test_bad_files_are_one_line(tmp_path, name, content, says):
    with pytest.raises(InputError, match=says) as error:
        read(tmp_path, name, content)
    assert "\n" not in str(error.value)


def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "p.txt")
    with pytest.raises(InputError, match="it is a pipe, not a plain file; name a text file"):
        read_prompts(tmp_path / "p.txt")


def test_json_round_trip_of_odd_prompts(tmp_path):
    assert read(tmp_path, "p.json", json.dumps(ODD)) == CLEAN


def test_seeds_of_images():
    assert image_seed(3, "a", 0) != image_seed(3, "a", 1) != image_seed(3, "b", 1)
    own = image_seed(3, "a", 2)
    assert own >= IMAGE_SEED and image_seed(own, "a", 0) == own and image_seed(own, "a", 1) != own

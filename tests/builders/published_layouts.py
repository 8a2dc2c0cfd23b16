"""Tiny data sets in the layouts that their authors publish; every oddity here is one of the originals."""

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = ("red", "green", "blue", "yellow")
RGB = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (30, 60, 220), "yellow": (230, 220, 40)}


def colour(key: int) -> str:
    return COLOURS[key % len(COLOURS)]


def picture(key: int, width: int = 48, height: int = 36) -> bytes:
    """Returns a JPEG of one colour with some noise, different for each key."""
    grain = np.random.default_rng(key).integers(-20, 20, (height, width, 3))
    pixels = np.clip(np.array(RGB[colour(key)]) + grain, 0, 255).astype(np.uint8)
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "JPEG", quality=90)
    return sink.getvalue()


def captions(key: int, count: int = 5) -> list[str]:
    forms = (
        "A {} field .",
        "A {} thing is seen from above .",
        "Something {} , and grain .",
        "{} .",
        "It is {} all over .",
    )
    return [form.format(colour(key)) for form in forms[:count]]


def put(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))


# ---- VQAv2 ---------------------------------------------------------------------------------------------------------


def vqa2(root: Path, below: bool = False) -> Path:
    """Writes questions and answers of train2014 and val2014, two per image, in the folder itself or in two subfolders."""
    for part, keys in (("train", range(20)), ("val", range(100, 104))):
        questions, annotations = [], []
        for key in keys:
            put(root / f"{part}2014" / f"COCO_{part}2014_{key:012d}.jpg", picture(key))
            asked = [("What color is it?", ["none"] * 2 + [colour(key).title()] * 8), ("Is it day?", ["yes"] * 10)]
            for k, (text, answers) in enumerate(asked):
                number = 1000 * key + k
                questions.append({"image_id": key, "question": text, "question_id": number})
                told = [{"answer": one, "answer_confidence": "yes", "answer_id": i} for i, one in enumerate(answers)]
                kind = ("other", "yes/no")[k]
                annotations.append({"question_id": number, "image_id": key, "answers": told, "answer_type": kind})
        head = {"info": {}, "license": {}, "data_subtype": f"{part}2014", "data_type": "mscoco"}
        folders = ("Questions", "Annotations") if below else ("", "")
        name = f"v2_OpenEnded_mscoco_{part}2014_questions.json"
        put(root / folders[0] / name, json.dumps({**head, "questions": questions}))
        name = f"v2_mscoco_{part}2014_annotations.json"
        put(root / folders[1] / name, json.dumps({**head, "annotations": annotations}))
    return root


# ---- COCO ----------------------------------------------------------------------------------------------------------


def coco(root: Path, year: int = 2017, train: int = 24, val: int = 6) -> Path:
    """Writes annotations/captions_{train,val}YEAR.json and the folders of images; in 2014 file names contain the split."""
    for part, keys in (("train", range(train)), ("val", range(100, 100 + val))):
        prefix = f"COCO_{part}2014_" if year == 2014 else ""
        names = {9 + 7 * key: f"{prefix}{9 + 7 * key:012d}.jpg" for key in keys}
        for key, name in zip(keys, names.values(), strict=True):
            put(root / f"{part}{year}" / name, picture(key))
        put(
            root / "annotations" / f"captions_{part}{year}.json",
            json.dumps(
                {
                    "info": {"description": f"COCO {year} Dataset", "year": year, "version": "1.0"},
                    "licenses": [{"url": "http://creativecommons.org/licenses/by/2.0/", "id": 4, "name": "CC BY"}],
                    "images": [
                        {"license": 4, "file_name": name, "height": 36, "width": 48, "id": number}
                        for number, name in reversed(names.items())
                    ],
                    "annotations": [
                        {"image_id": number, "id": 10 * number + k, "caption": caption}
                        for k in range(5)
                        for number, key in zip(names, keys, strict=True)
                        for caption in [captions(key)[k]]
                    ],
                }
            ),
        )
    return root


def karpathy_rows(rows: Sequence[tuple[int, str, str, str | None]]) -> str:
    """Returns the JSON for (key, file name, split, folder)."""
    images = []
    for number, (key, name, split, folder) in enumerate(rows):
        sentences = [
            {"tokens": c.lower().split(), "raw": c, "imgid": number, "sentid": 5 * number + k}
            for k, c in enumerate(captions(key))
        ]
        image = {"filename": name, "imgid": number, "split": split, "sentences": sentences}
        images.append(image | ({"filepath": folder, "cocoid": number} if folder else {}))
    return json.dumps({"images": images, "dataset": "tiny"})


def karpathy_coco(root: Path) -> Path:
    """Writes dataset_coco.json for the images of 2014: train, restval (from val2014), val and test."""
    rows = []
    for key in range(24):
        part, split = (
            ("train2014", "train") if key < 14 else ("val2014", ("restval", "val", "test", "restval")[key % 4])
        )
        name = f"COCO_{part}_{key:012d}.jpg"
        put(root / part / name, picture(key))
        rows.append((key, name, split, part))
    put(root / "dataset_coco.json", karpathy_rows(rows))
    return root


# ---- Flickr --------------------------------------------------------------------------------------------------------


def flickr_names(count: int) -> list[str]:
    return [f"{1000268201 + 977 * key}_{693 + key:x}b08cb0e.jpg" for key in range(count)]


def flickr8k(root: Path, lists: bool = True) -> Path:
    """Writes the authors' two archives, unpacked side by side; one caption belongs to an image that never existed."""
    names = flickr_names(24)
    for key, name in enumerate(names):
        put(root / "Flicker8k_Dataset" / name, picture(key))
    lines = [f"{name}#{k}\t{text}" for key, name in enumerate(names) for k, text in enumerate(captions(key))]
    lines += [f"2258277193_586949ec62.jpg.1#{k}\tpeople waiting for the subway" for k in range(5)]
    put(root / "Flickr8k_text" / "Flickr8k.token.txt", "\n".join(lines) + "\n")
    put(root / "Flickr8k_text" / "readme.txt", "If you publish work based on the data ...\n")
    if lists:
        for part, own in (("train", names[:16]), ("dev", names[16:20]), ("test", names[20:])):
            put(root / "Flickr8k_text" / f"Flickr_8k.{part}Images.txt", "\n".join(own) + "\n")
    return root


def flickr8k_kaggle(root: Path) -> Path:
    """Writes captions.txt, a CSV with quotes, and Images/."""
    lines = ["image,caption"]
    for key, name in enumerate(flickr_names(24)):
        put(root / "Images" / name, picture(key))
        lines += [f'{name},"{text}"' if "," in text else f"{name},{text}" for text in captions(key)]
    lines.append(f'{flickr_names(24)[0]},"A man says ""hello"" , twice ."')
    put(root / "captions.txt", "\n".join(lines) + "\n")
    return root


def flickr30k(root: Path) -> Path:
    """Writes the token file and the images, without splits."""
    lines = []
    for key in range(40):
        put(root / "flickr30k-images" / f"{1000092795 + key}.jpg", picture(key))
        lines += [f"{1000092795 + key}.jpg#{k}\t{text}" for k, text in enumerate(captions(key))]
    put(root / "results_20130124.token", "\n".join(lines) + "\n")
    return root


def flickr30k_csv(root: Path) -> Path:
    """Writes results.csv of Kaggle: separators with blanks, one row without its second separator; images in a nested folder."""
    lines = ["image_name| comment_number| comment"]
    for key in range(24):
        name = f"{1000092795 + key}.jpg"
        put(root / "flickr30k_images" / "flickr30k_images" / name, picture(key))
        rows = [f"{name}| {k}| {text}" for k, text in enumerate(captions(key))]
        if key == 3:
            rows[4] = f"{name}| 4   A dog runs across the grass ."
        lines += rows
    put(root / "flickr30k_images" / "results.csv", "\n".join(lines) + "\n")
    for part, keys in (("train", range(16)), ("val", range(16, 20)), ("test", range(20, 24))):
        put(root / f"{part}.txt", "\n".join(str(1000092795 + key) for key in keys) + "\n")
    return root


def flickr30k_karpathy(root: Path) -> Path:
    """Writes dataset_flickr30k.json and the images."""
    rows = []
    for key in range(24):
        name = f"{1000092795 + key}.jpg"
        put(root / "flickr30k-images" / name, picture(key))
        rows.append((key, name, "train" if key < 16 else ("val", "test")[key % 2], None))
    put(root / "dataset_flickr30k.json", karpathy_rows(rows))
    return root


# ---- birds and flowers ---------------------------------------------------------------------------------------------

BIRDS = ("001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross", "004.Groove_billed_Ani")


def cub(root: Path, classes: bool = True) -> Path:
    """Writes CUB_200_2011/ and the captions of Reed et al. beside it, with or without the lists of classes."""
    images, flags, number = [], [], 0
    for of_class, bird in enumerate(BIRDS):
        for k in range(8):
            number += 1
            stem = f"{bird[4:]}_{k + 1:04d}_{796000 + number}"
            put(root / "CUB_200_2011" / "images" / bird / f"{stem}.jpg", picture(of_class))
            put(root / "text" / bird / f"{stem}.txt", "\n".join(captions(of_class)) + "\n")
            images.append(f"{number} {bird}/{stem}.jpg")
            flags.append(f"{number} {int(k % 2 == 0)}")
    put(root / "CUB_200_2011" / "images.txt", "\n".join(images) + "\n")
    put(root / "CUB_200_2011" / "train_test_split.txt", "\n".join(flags) + "\n")
    put(root / "CUB_200_2011" / "classes.txt", "\n".join(f"{n} {bird}" for n, bird in enumerate(BIRDS, 1)) + "\n")
    if classes:
        put(root / "trainvalclasses.txt", "\n".join(BIRDS[:3]) + "\n")
        put(root / "testclasses.txt", BIRDS[3] + "\n")
    return root


def flowers(root: Path, classes: bool = True) -> Path:
    """Writes jpg/ and text_c10/class_NNNNN/image_NNNNN.txt."""
    for key in range(40):
        own = f"class_{key % 4 + 1:05d}"
        put(root / "jpg" / f"image_{key + 1:05d}.jpg", picture(key))
        put(root / "text_c10" / own / f"image_{key + 1:05d}.txt", "\n".join(captions(key)) + "\n")
    if classes:
        put(root / "trainvalclasses.txt", "class_00001\nclass_00002\nclass_00003\n")
        put(root / "testclasses.txt", "class_00004\n")
    return root


# ---- MIRFlickr -----------------------------------------------------------------------------------------------------


def mirflickr(root: Path) -> Path:
    """Writes mirflickr/im1.jpg with meta/tags/tags1.txt, and annotations/ with the numbers of the images of each word."""
    numbers: dict[str, list[int]] = {word: [] for word in ("animals", "animals_r1", "sky", "water")}
    for key in range(40):
        number = key + 1
        put(root / "mirflickr" / f"im{number}.jpg", picture(key))
        tags = [colour(key), "wall", "nikon"] if number != 7 else []  # as many have none
        put(root / "mirflickr" / "meta" / "tags" / f"tags{number}.txt", "".join(f"{tag}\r\n" for tag in tags))
        for word, every in (("animals", 2), ("animals_r1", 4), ("sky", 3)):
            if key % every == 0:
                numbers[word].append(number)
    numbers["water"] = [1, 2, 3, 5, 8, 13, 21, 25001]
    for word, own in numbers.items():
        put(root / "annotations" / f"{word}.txt", "".join(f"{number}\r\n" for number in own))
    put(root / "annotations" / "README.txt", "The annotations of MIRFLICKR-25000.\n")
    return root


# ---- Visual Genome -------------------------------------------------------------------------------------------------


def visual_genome(root: Path, version: float = 1.2) -> Path:
    """Writes region_descriptions.json and image_data.json, and images in two folders; boxes extend over the border."""
    entries, data = [], []
    for key in range(40):
        number, folder = 2315353 + key, ("VG_100K", "VG_100K_2")[key % 2]
        other = Image.open(io.BytesIO(picture(key + 1, 120, 80)))
        whole = Image.open(io.BytesIO(picture(key, 240, 160)))
        whole.paste(other, (120, 0))
        sink = io.BytesIO()
        whole.save(sink, "JPEG", quality=95)
        put(root / folder / f"{number}.jpg", sink.getvalue())
        boxes = [(0, 0, 110, 160, f"a {colour(key)} wall"), (125, 0, 130, 78, f"a {colour(key + 1)} window.")]
        boxes.append((5, 5, 9, 9, "a knob"))
        regions = [
            {"region_id": 10 * number + k, "x": x, "y": y, "width": w, "height": h, "phrase": text, "image_id": number}
            for k, (x, y, w, h, text) in enumerate(boxes)
        ]
        entries.append({"regions": regions, ("id" if version > 1 else "image_id"): number})
        url = f"https://cs.stanford.edu/people/rak248/{folder}/{number}.jpg"
        data.append({"width": 240, "url": url, "height": 160, "image_id": number, "coco_id": None, "flickr_id": None})
    put(root / "region_descriptions.json", json.dumps(entries))
    put(root / "image_data.json", json.dumps(data))
    return root


# ---- packed --------------------------------------------------------------------------------------------------------


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def shards(root: Path, count: int = 2, each: int = 20, in_tar: bool = True) -> Path:
    """Writes the files of `img2dataset --output_format webdataset`: NNNNN.tar, NNNNN.parquet and NNNNN_stats.json."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    root.mkdir(parents=True, exist_ok=True)
    for shard in range(count):
        rows = []
        with tarfile.open(root / f"{shard:05d}.tar", "w") as tar:
            for k in range(each):
                key, number = f"{shard:05d}{k:04d}", shard * each + k
                row = {
                    "caption": captions(number)[0],
                    "url": f"http://example.org/{number}.jpg",
                    "key": key,
                    "status": "success" if k != 7 else "failed_to_download",
                    "error_message": None if k != 7 else "HTTP Error 404",
                    "width": 48,
                    "height": 36,
                    "original_width": 480,
                    "original_height": 360,
                    "exif": "{}",
                    "sha256": "0" * 64,
                }
                rows.append(row)
                if k == 7:
                    continue
                add(tar, f"{key}.jpg", picture(number))
                add(tar, f"{key}.json", json.dumps(row if in_tar else {"key": key}).encode())
                if in_tar:
                    add(tar, f"{key}.txt", captions(number)[0].encode())
        pq.write_table(pa.Table.from_pylist(rows), root / f"{shard:05d}.parquet")
        put(root / f"{shard:05d}_stats.json", json.dumps({"count": each, "successes": each - 1}))
    return root


def rows(count: int) -> list[dict]:
    return [
        {"image": {"bytes": picture(key), "path": f"{key}.jpg"}, "text": captions(key)[0], "likes": key}
        for key in range(count)
    ]


def parquet(root: Path) -> Path:
    """Writes the files of a data set on the hub: data/train-00000-of-00002.parquet, ..."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (root / "data").mkdir(parents=True)
    own = rows(30)
    for name, part in (
        ("train-00000-of-00002", own[:12]),
        ("train-00001-of-00002", own[12:24]),
        ("validation-00000-of-00001", own[24:]),
    ):
        pq.write_table(pa.Table.from_pylist(part), root / "data" / f"{name}.parquet", row_group_size=5)
    put(root / "README.md", "---\nlicense: mit\n---\n")
    return root


def saved_to_disk(root: Path) -> Path:
    """Writes the files of `DatasetDict.save_to_disk`."""
    import datasets

    features = datasets.Features(
        {"image": datasets.Image(), "text": datasets.Value("string"), "likes": datasets.Value("int64")}
    )
    parts = {"train": rows(24), "validation": rows(30)[24:]}
    splits = {name: datasets.Dataset.from_list(own, features=features) for name, own in parts.items()}
    datasets.DatasetDict(splits).save_to_disk(str(root))
    return root


def folder(root: Path) -> Path:
    """Writes images with a .txt beside each."""
    for key in range(40):
        put(root / f"{key:03d}.jpg", picture(key))
        put(root / f"{key:03d}.txt", "\n".join(captions(key)) + "\n")
    return root


# kind -> what writes a data set of it, the pictures of `train`
LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "folder": folder,
    "coco": coco,
    "flickr8k": flickr8k,
    "flickr30k": flickr30k,
    "cub": cub,
    "flowers": flowers,
    "mirflickr": mirflickr,
    "vg": visual_genome,
    "vqa2": vqa2,
    "shards": shards,
    "parquet": parquet,
    "hub": saved_to_disk,
}

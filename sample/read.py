"""Captions images with a trained reader, or answers questions about them.

t2i read runs/reader photos/
t2i read runs/vqa a.png b.png --ask "what colour is the star?" --ask "how many objects are there?"
"""

import json
import warnings

from t2i.cli import run_program
from t2i.data.questions import label_question
from t2i.errors import InputError
from t2i.files import refuse_unwritable, write_text
from t2i.hardware import device, prepare_cpu
from t2i.names import counted, some
from t2i.reader.captioning import Item, decode_readable, image_files
from t2i.reader.options import ReadOptions
from t2i.reader.reading import BATCH, Reader


def main(options: ReadOptions) -> None:
    prepare_cpu()
    if options.ask and options.beams != 1:
        raise InputError(
            f"--beams {options.beams} has no effect with --ask, as answers are chosen, not written; remove it"
        )

    # Images, the reader, and a place for the results
    refuse_unwritable(options.out, "a JSONL file", "--out")
    files = image_files(options.images)
    reader = Reader.from_pretrained(options.run, device())
    asked = {question: question for question in options.ask}
    if reader.vocabulary.label and not options.ask:
        asked = {reader.vocabulary.label: label_question(reader.vocabulary.label)}

    # Answers to each question, or a class, a caption and its likelihood, one line for each image
    rows, broken = list[dict[str, object]](), list[tuple[str, str]]()
    items = [Item(str(file), lambda file=file: file) for file in files]
    for start in range(0, len(items), BATCH):
        readable, failed = decode_readable(items[start : start + BATCH], reader.resolution)
        broken += failed
        batch = list(readable.values())
        batch_rows: list[dict[str, object]] = [{"file": file} for file in readable]
        for name, question in asked.items():
            for row, answer in zip(batch_rows, reader.answer(batch, [question]), strict=True):
                row[name] = answer
        if not options.ask and (reader.writes or not asked):
            for row, (text, likelihood) in zip(batch_rows, reader.write(batch, options.beams), strict=True):
                row |= {"caption": text, "likelihood": round(likelihood, 4)}
        for row in batch_rows:
            print("\t".join(map(str, row.values())))
        rows += batch_rows
    if not rows:
        raise InputError(f"{broken[0][0]}: {broken[0][1]}; name an image that can be read")
    if broken:
        lost = some([f"{file} ({reason})" for file, reason in broken])
        warnings.warn(f"{counted(len(broken), 'image')} of {len(files):,} cannot be read: {lost}", stacklevel=2)

    # The same as a file
    if options.out is not None:
        write_text(options.out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        print(f"wrote {options.out}")


if __name__ == "__main__":  # python -m t2i.sample.read
    run_program("read")

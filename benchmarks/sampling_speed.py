"""Measures the time in which a shipped model samples an image, from a caption to pixels.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive python benchmarks/sampling_speed.py
    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=passive python benchmarks/sampling_speed.py runs/cvae --rounds 9

Prints CPU milliseconds per image for one image and for 64 at once, the median of all rounds; each round runs all models.
Captions are those of `val` of shapes-3, others in each round. Loading is not counted. benchmarks/cgan_speed.py compares the
GAN with DF-GAN.
"""

import argparse
import statistics
import time

from t2i.data import View, open_dataset
from t2i.hardware import prepare_cpu
from t2i.pipeline import TextToImagePipeline
from t2i.weights import shipped

BATCHES = {1: 10, 64: 1}  # images at once -> calls a round


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(shipped()), help="runs, saved pipelines, shipped models")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    threads = prepare_cpu()
    captions = [options[0] for options in open_dataset("shapes-3", "val", View(16, limit=1000)).captions]
    pipes = {name: TextToImagePipeline.from_pretrained(name) for name in given.models}
    taken: dict[tuple[str, int], list[float]] = {(name, batch): [] for name in pipes for batch in BATCHES}
    for turn in range(given.rounds + 1):  # the first warms up
        for (name, batch), times in taken.items():
            start = time.process_time()
            for call in range(BATCHES[batch]):
                first = (turn * 67 + call) % (len(captions) - batch)
                pipes[name](captions[first : first + batch], seed=turn, output_type="uint8", batch_size=batch)
            times.append((time.process_time() - start) / BATCHES[batch] / batch)
    print(f"{threads} threads, {given.rounds} rounds\n")
    print("| model | at once | CPU ms an image (least to most) | images a CPU second |\n|---|---|---|---|")
    for (name, batch), times in taken.items():
        kept = sorted(1000 * one for one in times[1:])
        middle = statistics.median(kept)
        print(f"| {name} | {batch} | {middle:.1f} ({kept[0]:.1f} to {kept[-1]:.1f}) | {1000 / middle:.0f} |")


if __name__ == "__main__":
    main()

"""Miniature of UCIT."""

from __future__ import annotations

from dmole.benchmarks.shared.miniature import (
    QUESTION,
    Miniature,
    coco_captions,
    color,
    question,
    talk,
)


def write_ucit(miniature: Miniature) -> None:
    """Write UCIT under the names of MCITlib; captions have two references per image."""
    names = {
        "ImageNet-R": ("train", "ImageNet-R"),
        "ArxivQA": ("train_4w", "ArxivQA/images"),
        "VizWiz-caption": ("train", "VizWiz"),
        "IconQA": ("train", "IconQA/iconqa_data/iconqa"),
        "CLEVR-Math": ("train_4w", "CLEVR/images"),
        "Flickr30k-cap": ("train_brief_4w", "Flickr30k"),
    }
    for task, (train_name, folder) in names.items():
        captions = task in ("VizWiz-caption", "Flickr30k-cap")
        for split in ("train", "test"):
            items = []
            for n in miniature.numbers(split):
                image = f"datasets/{folder}/{split}/{task}_{n}.jpg"
                miniature.picture(".", image, n)
                text = "Describe the picture." if captions else f"{QUESTION}\nOne word."
                answer = f"a {color(n)} picture" if captions else color(n)
                made = talk if split == "train" else question
                reply = (answer,) if split == "train" else ()
                more = {} if split == "train" else {"answer": answer}
                items.append(made(n, image, text, *reply, **more))
            miniature.json(f"{task}/{train_name if split == 'train' else 'test_3000'}.json", items)
        if captions:
            miniature.json(
                f"{task}/val_coco_type_3000.json", coco_captions(miniature, f"{task}_{{}}.jpg")
            )

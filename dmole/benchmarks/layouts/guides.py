"""What a user of a benchmark has to obtain: the folders it wants and where each part comes from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Guide:
    """How the data of a benchmark are put together.

    Args:
        title: Name and paper.
        folders: Folders below the root.
        parts: What is obtained where and goes to which place, one line each.
        notes: What to know beforehand.
    """

    title: str
    folders: tuple[str, ...]
    parts: tuple[str, ...]
    notes: tuple[str, ...]


_SIZES = "`dmole data check` examines all files and compares their sizes with the published ones."

GUIDES: dict[str, Guide] = {
    "coin": Guide(
        title="CoIN (Chen et al., 2024, arXiv 2403.08350)",
        folders=(
            *(
                f"playground/Instructions_Original/{task}"
                for task in (
                    *("ScienceQA", "TextVQA", "ImageNet", "GQA"),
                    *("VizWiz", "Grounding", "VQAv2", "OCRVQA"),
                )
            ),
            *("cl_dataset/COCO2014/train2014", "cl_dataset/COCO2014/val2014"),
            *("cl_dataset/GQA/images", "cl_dataset/OCR-VQA/images", "cl_dataset/ImageNet"),
            *("cl_dataset/TextVQA/train_images", "cl_dataset/TextVQA/test_images"),
            *("cl_dataset/ScienceQA", "cl_dataset/VizWiz"),
        ),
        parts=(
            "Instructions: data set `Zacks-Chen/CoIN` on the Hugging Face hub; `train.json` and "
            "`test.json` (`val.json` for TextVQA, VizWiz, VQAv2) of each task into "
            "`playground/Instructions_Original/<task>/`.",
            "COCO 2014 train and val images (cocodataset.org): Grounding and VQAv2.",
            "GQA images and `testdev_balanced_questions.json` (Stanford, GQA download page): "
            "`cl_dataset/GQA/`.",
            "TextVQA images and `TextVQA_0.5.1_val.json` (textvqa.org): `cl_dataset/TextVQA/`.",
            "ScienceQA images, `problems.json`, `pid_splits.json` (repository "
            "lupantech/ScienceQA): `cl_dataset/ScienceQA/`.",
            "VizWiz images (vizwiz.org, VQA challenge): `cl_dataset/VizWiz/`.",
            "ImageNet ILSVRC (image-net.org, needs an account): `cl_dataset/ImageNet/`.",
            "OCR-VQA images (ocr-vqa.github.io): `cl_dataset/OCR-VQA/images/`.",
        ),
        notes=(
            "Most image addresses in OCR-VQA's own list are dead (CoIN issue 31, LLaVA pull "
            "request 1458): take the archive that CoIN's README links to instead.",
            "`Instruction_Original` and `Instruction_Type1`, and instructions without "
            "`playground/`, are found as well.",
            "Image names inside the instructions are relative to `cl_dataset`.",
        ),
    ),
    "ucit": Guide(
        title="UCIT (Guo et al., 2025, arXiv 2503.12941)",
        folders=(
            *("ImageNet-R", "ArxivQA", "VizWiz-caption", "IconQA", "CLEVR-Math", "Flickr30k-cap"),
            *("datasets/ArxivQA/images", "datasets/CLEVR/images", "datasets/Flickr30k"),
            *("datasets/IconQA/iconqa_data/iconqa", "datasets/ImageNet-R", "datasets/VizWiz"),
        ),
        parts=(
            "Instructions and images: named in the README of repository Ghy0501/HiDe-LLaVA.",
            "`train*.json` and `test_3000.json` of each task into its folder; for VizWiz-caption "
            "and Flickr30k-cap `val_coco_type_3000.json` too.",
            "Images as the archive has them, into `datasets/`.",
        ),
        notes=(
            "Folders `CLEVR`, `VizWiz`, `Flickr30k`, files `train.json` and `test.json`, and a "
            "folder `instructions` around them are found as well.",
            "Image names inside the instructions are relative to the root.",
        ),
    ),
    "mllm_dcl": Guide(
        title="MLLM-DCL, the domain tasks of MLLM-CL (Zhao et al., 2025, arXiv 2506.05453)",
        folders=tuple(f"Domain_data/{task}" for task in ("RS", "Med", "AD", "Sci", "Fin")),
        parts=(
            "Instructions and images: named in the README of repository bjzhb666/MLLM-CL; "
            "`train.json`, `test.json` and the images of each domain into its folder.",
        ),
        notes=(
            "Users found one archive of the ability part (VP_test) empty (MLLM-CL issue 3); the "
            "domain part does not need it.",
            "The names of Sci's test images tell its sources apart (AI2D_, TQA_, VQA_, "
            "SciVerse_, else MapQA): keep them.",
        ),
    ),
    "cmit": Guide(
        title="The nine tasks of D-MoLE (Ge et al., ICML 2025, arXiv 2506.11672)",
        folders=(
            *("data/vizwiz-caption/images", "data/sk-vg", "data/textcaps/images", "data/iconqa"),
            *("data/ocrvqa", "data/flickr30k", "data/vizwiz", "data/kvqa", "data/pmcvqa"),
        ),
        parts=(
            "All of it: the archive that the README of repository gcd19/D-MoLE links to; `data/` "
            "of that archive is `data/` here.",
            "Or each from its authors: VizWiz and VizWiz-Captions (vizwiz.org), TextCaps "
            "(textvqa.org), IconQA (iconqa.github.io), OCR-VQA (ocr-vqa.github.io), Flickr30k with "
            "Karpathy's split, KVQA, PMC-VQA (hub data set `xmcmic/PMC-VQA`), SK-VG (repository "
            "zhjohnchan/SK-VG); train files as LLaVA conversations, an object a line.",
        ),
        notes=(
            "Users have asked for the processed files (D-MoLE issue 1); the link came after.",
            "Most image addresses in OCR-VQA's own list are dead.",
            "Image names are relative to the root, those of caption tests to the folder that "
            "`test_image_root` names.",
            "Meta files (`shell/dmole/*.json`) can be given as `train` of a task, too.",
        ),
    ),
}
"""Guides by the name that `dmole data init` takes."""


def readme(name: str) -> str:
    """Return what a user is to read, in Markdown."""
    guide = GUIDES[name]
    parts = "".join(f"- {line}\n" for line in guide.parts)
    notes = "".join(f"- {line}\n" for line in (*guide.notes, _SIZES))
    return (
        f"# {guide.title}\n\n## What to obtain\n{parts}\n## What to know\n{notes}\n## Then\n"
        f"    dmole data check --config {name}.yaml --data.data_root <this folder>\n"
        f"    dmole fit --config {name}.yaml --data.data_root <this folder>\n"
    )

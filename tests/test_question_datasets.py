"""VQAv2, GQA and COCO captions: files in the official formats, made from scenes, load to known questions."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image
from pydantic import ValidationError

from harness import data
from harness.data.__main__ import main
from harness.data.datasets import coco_captions, gqa, mix, refer, scenes, vqav2
from harness.data.example import Example, Question
from harness.errors import DataError
from tests import datasets

SCENES = scenes.Config(seed=7, test_images=3, asks=("questions", "captions"))
MADE = list(scenes.load(SCENES, "test"))
QUESTIONS = [[one for one in example.questions if one.family != "caption"] for example in MADE]
CAPTIONS = [next(one.answer for one in example.questions if one.family == "caption") for example in MADE]


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def write_picture(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(MADE[number].image).save(path, format="JPEG")


def ten(answer: str) -> list[dict[str, Any]]:
    """The answers of ten annotators; two of them have another spelling."""
    words = [answer] * 8 + [answer.upper(), f"{answer}?"]
    return [{"answer": word, "answer_confidence": "yes", "answer_id": i} for i, word in enumerate(words, start=1)]


def write_vqav2(root: Path) -> None:
    """Questions 1010, 1011, ... about image 101, in reverse order; the last contains caf\xe9."""
    for split in ("train", "val"):
        questions, annotations = [], []
        for number, questions_of_image in enumerate(QUESTIONS):
            image = {"image_id": 101 + number}
            for k, one in enumerate(questions_of_image):
                key = {**image, "question_id": 10 * (101 + number) + k}
                questions.append({**key, "question": f"{one.text} caf\xe9?"})
                kind = "yes/no" if one.answer in ("yes", "no") else "other"
                chosen = {"multiple_choice_answer": one.answer, "answer_type": kind, "question_type": "what"}
                annotations.append({**key, **chosen, "answers": ten(one.answer)})
            write_picture(root / f"{split}2014" / f"COCO_{split}2014_{101 + number:012d}.jpg", number)
        write(root / f"v2_OpenEnded_mscoco_{split}2014_questions.json", {"questions": questions[::-1]})
        write(root / f"v2_mscoco_{split}2014_annotations.json", {"annotations": annotations})


def write_gqa(root: Path) -> None:
    for split in ("train", "val", "testdev"):
        content = {}
        for number, questions_of_image in enumerate(QUESTIONS):
            for k, one in enumerate(questions_of_image):
                content[f"0{number}{k}"] = {
                    "imageId": f"n{number}",
                    "question": f"{one.text} caf\xe9?",
                    "answer": one.answer,
                    "fullAnswer": f"It is {one.answer}.",
                    "types": {"structural": "query", "semantic": "attr", "detailed": "colour"},
                    "isBalanced": True,
                }
            write_picture(root / "images" / f"n{number}.jpg", number)
        write(root / f"{split}_balanced_questions.json", content)


def write_coco_captions(root: Path) -> None:
    """Two captions per image; Karpathy's split of the same captions."""
    for split in ("train", "val"):
        images, annotations = [], []
        for number, caption in enumerate(CAPTIONS):
            name = f"COCO_{split}2014_{101 + number:012d}.jpg"
            images.append({"id": 101 + number, "file_name": name, "height": 1, "width": 1})
            for k, text in enumerate((f" {caption}\n", f"Caf\xe9 with  {caption}.")):
                annotations.append({"id": 10 * number + k, "image_id": 101 + number, "caption": text})
            write_picture(root / f"{split}2014" / name, number)
        write(root / "annotations" / f"captions_{split}2014.json", {"images": images, "annotations": annotations})
    split_of = ("train", "restval", "test")
    karpathy = [
        {
            "filepath": "val2014",
            "filename": f"COCO_val2014_{101 + number:012d}.jpg",
            "cocoid": 101 + number,
            "imgid": number,
            "split": split_of[number],
            "sentences": [{"raw": caption, "tokens": caption.split()}, {"raw": f"{caption}.", "tokens": []}],
        }
        for number, caption in enumerate(CAPTIONS)
    ]
    write(root / "dataset_coco.json", {"images": karpathy, "dataset": "coco"})


def short(text: str) -> str:
    return f"{text}\nAnswer the question using a single word or phrase."


def test_vqav2_loads_to_known_questions(tmp_path: Path) -> None:
    write_vqav2(tmp_path)
    for split in ("train", "val"):
        found = vqav2.load(vqav2.Config(root=tmp_path), split)
        assert [example.image_id for example in found] == ["coco/101", "coco/102", "coco/103"]
        assert [len(example.questions) for example in found] == [
            len(questions_of_image) for questions_of_image in QUESTIONS
        ]
        first = found[0].questions[0]
        wanted = QUESTIONS[0][0]
        assert first == Question(
            short(f"{wanted.text} caf\xe9?"),
            "yes/no" if wanted.answer in ("yes", "no") else "other",
            wanted.answer,
            (*[wanted.answer] * 8, wanted.answer.upper(), f"{wanted.answer}?"),
            "vqa_accuracy",
        )
        assert found[0].size == MADE[0].size
        assert found[0].image.shape == MADE[0].image.shape
        assert found[0].expressions == found[0].objects == ()


def test_gqa_loads_to_known_questions(tmp_path: Path) -> None:
    write_gqa(tmp_path)
    found = gqa.load(gqa.Config(root=tmp_path, template="{question}"), "testdev")
    assert [example.image_id for example in found] == ["gqa/n0", "gqa/n1", "gqa/n2"]
    assert [[one.text for one in example.questions] for example in found] == [
        [f"{one.text} caf\xe9?" for one in questions_of_image] for questions_of_image in QUESTIONS
    ]
    assert found[0].questions[0].references == (QUESTIONS[0][0].answer,)
    assert {one.family for example in found for one in example.questions} == {"query"}
    assert {one.scoring for example in found for one in example.questions} == {"accuracy"}


def test_captions_are_separate_training_examples_and_joint_references(tmp_path: Path) -> None:
    write_coco_captions(tmp_path)
    training, validation = (coco_captions.load(coco_captions.Config(root=tmp_path), s) for s in ("train", "val"))
    both = (CAPTIONS[0], f"Caf\xe9 with {CAPTIONS[0]}.")
    assert [one.answer for one in training[0].questions] == list(both)
    assert [one.references for one in training[0].questions] == [(both[0],), (both[1],)]
    assert [one.references for one in validation[0].questions] == [both]
    assert {one.text for one in validation[0].questions} == {"Provide a one-sentence caption for the provided image."}


def test_restval_is_part_of_the_training_split_of_karpathy(tmp_path: Path) -> None:
    write_coco_captions(tmp_path)
    config = coco_captions.Config(root=tmp_path, split_by="karpathy")
    assert config.splits == ("train", "val", "test")
    assert [example.image_id for example in coco_captions.load(config, "train")] == ["coco/101", "coco/102"]
    [scored] = coco_captions.load(config, "test")
    assert scored.questions[0].references == (CAPTIONS[2], f"{CAPTIONS[2]}.")
    assert coco_captions.load(config, "val") == []


def test_a_mix_excludes_scored_images_of_refcoco_from_questions(tmp_path: Path) -> None:
    """Both have the same id for an image of COCO."""
    write_vqav2(tmp_path / "vqa")
    for file in (tmp_path / "vqa").glob("*val2014*.json"):
        write(file, {"questions": [], "annotations": []})
    datasets.write_refer(tmp_path / "refer", datasets.made(), ["train", "val", "testA", "testB"])
    config = mix.Config(
        train=[{"name": "vqav2", "root": str(tmp_path / "vqa")}],
        score={
            "name": "refer",
            "root": str(tmp_path / "refer"),
            "images": datasets.IMAGES,
            "dataset": "refcoco",
            "split_by": "unc",
        },
    )
    assert [example.image_id for example in mix.load(config, "train")] == ["coco/101"]
    assert isinstance(mix.load(config, "val")[0], Example)
    assert refer.load(refer.Config.model_validate(config.score), "val")[0].image_id == "coco/102"


def rewrite(path: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    write(path, content)


def test_braces_of_a_template_and_of_a_question_are_literal(tmp_path: Path) -> None:
    write_vqav2(tmp_path)
    change = lambda content: content["questions"][-1].update(question="what is {0} {x}?")  # noqa: E731
    rewrite(tmp_path / "v2_OpenEnded_mscoco_train2014_questions.json", change)
    config = vqav2.Config(root=tmp_path, template="{0} {answer} {question} {")
    assert vqav2.load(config, "train")[0].questions[0].text == "{0} {answer} what is {0} {x}? {"


def test_a_question_that_is_no_string_is_refused(tmp_path: Path) -> None:
    write_vqav2(tmp_path)
    path = tmp_path / "v2_OpenEnded_mscoco_train2014_questions.json"
    rewrite(path, lambda content: content["questions"][0].update(question=None))
    with pytest.raises(DataError, match=r"question \d+ of train is malformed \(TypeError"):
        vqav2.load(vqav2.Config(root=tmp_path), "train")


@pytest.mark.parametrize("split_by", ["official", "karpathy"])
def test_a_caption_that_is_no_string_is_refused(tmp_path: Path, split_by: str) -> None:
    write_coco_captions(tmp_path)
    rewrite(
        tmp_path / "annotations" / "captions_train2014.json",
        lambda content: content["annotations"][0].update(caption=None),
    )
    rewrite(tmp_path / "dataset_coco.json", lambda content: content["images"][0]["sentences"][0].update(raw=None))
    with pytest.raises(DataError, match="found None instead of a string"):
        coco_captions.load(coco_captions.Config(root=tmp_path, split_by=split_by), "train")


def test_an_image_without_a_caption_is_refused(tmp_path: Path) -> None:
    write_coco_captions(tmp_path)
    rewrite(tmp_path / "dataset_coco.json", lambda content: content["images"][2].update(sentences=[]))
    with pytest.raises(DataError, match=r"dataset_coco.json: image 103 has no sentences, but at least one is required"):
        coco_captions.load(coco_captions.Config(root=tmp_path, split_by="karpathy"), "test")


def test_check_counts_reference_captions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_coco_captions(tmp_path)
    for references, is_right in ((6, True), (7, False)):
        monkeypatch.setattr(
            coco_captions, "PUBLISHED", {("official", "val"): coco_captions.QuestionCounts(3, 3, references)}
        )
        counted, files = coco_captions.check(tmp_path)
        assert counted.is_right is is_right
        assert counted.text.startswith("3 questions about 3 images, 6 references")
        assert files.is_right


WRITERS: dict[str, tuple[ModuleType, Callable[[Path], None], str]] = {
    "vqav2": (vqav2, write_vqav2, "v2_mscoco_train2014_annotations.json"),
    "gqa": (gqa, write_gqa, "train_balanced_questions.json"),
    "coco_captions": (coco_captions, write_coco_captions, "annotations/captions_train2014.json"),
}
every_dataset = pytest.mark.parametrize("name", WRITERS)


@every_dataset
def test_a_missing_or_truncated_file_is_refused(tmp_path: Path, name: str) -> None:
    module, writer, file = WRITERS[name]
    writer(tmp_path)
    config, path = module.Config(root=tmp_path), tmp_path / file
    path.write_text(path.read_text()[:-20])
    with pytest.raises(DataError, match=f"{path.name} is truncated or invalid JSON .*; download it again"):
        module.load(config, "train")
    path.unlink()
    with pytest.raises(DataError, match=f"{path.name} is missing; correct the path, or download the file"):
        module.load(config, "train")


@every_dataset
def test_a_missing_or_damaged_image_is_refused(tmp_path: Path, name: str) -> None:
    module, writer, _ = WRITERS[name]
    writer(tmp_path)
    path = module.load(module.Config(root=tmp_path), "train")[0].picture.path
    path.write_bytes(b"no image")
    with pytest.raises(DataError, match=f"{path.name} cannot be read as an image"):
        module.load(module.Config(root=tmp_path), "train")
    path.unlink()
    with pytest.raises(DataError, match=f"{path.name} is missing"):
        module.load(module.Config(root=tmp_path), "train")


@every_dataset
def test_an_unknown_split_is_refused(tmp_path: Path, name: str) -> None:
    module, writer, _ = WRITERS[name]
    writer(tmp_path)
    with pytest.raises(DataError, match=f"{name} has no split 'test'"):
        module.load(module.Config(root=tmp_path), "test")


@every_dataset
def test_an_entry_without_its_fields_is_refused(tmp_path: Path, name: str) -> None:
    module, writer, file = WRITERS[name]
    writer(tmp_path)
    path = tmp_path / file
    path.write_text(
        path.read_text().replace('"answers"', '"replies"').replace('"answer"', '"a"').replace("caption", "c")
    )
    with pytest.raises(DataError, match=r"KeyError: '(answers|answer|caption)'"):
        module.load(module.Config(root=tmp_path), "train")


def test_questions_and_annotations_of_vqav2_must_correspond(tmp_path: Path) -> None:
    write_vqav2(tmp_path)
    path = tmp_path / "v2_mscoco_val2014_annotations.json"
    content = json.loads(path.read_text())
    missing = content["annotations"].pop(0)
    write(path, content)
    with pytest.raises(DataError, match=f"val has a question {missing['question_id']} without its annotation"):
        vqav2.load(vqav2.Config(root=tmp_path), "val")
    write(path, {"annotations": [*content["annotations"], missing, {**missing, "question_id": 1}]})
    with pytest.raises(DataError, match="val has an annotation 1 without its question"):
        vqav2.load(vqav2.Config(root=tmp_path), "val")
    write(path, {"annotations": [{**missing, "answers": missing["answers"][:9]}, *content["annotations"]]})
    with pytest.raises(DataError, match=r"has 9 answers instead of 10"):
        vqav2.load(vqav2.Config(root=tmp_path), "val")


def test_a_caption_of_an_unlisted_image_is_refused(tmp_path: Path) -> None:
    write_coco_captions(tmp_path)
    path = tmp_path / "annotations" / "captions_val2014.json"
    content = json.loads(path.read_text())
    content["annotations"].append({"id": 99, "image_id": 999, "caption": "nothing"})
    write(path, content)
    with pytest.raises(DataError, match="a caption belongs to image 999, which the file does not list"):
        coco_captions.load(coco_captions.Config(root=tmp_path), "val")


def test_a_template_without_a_question_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"must contain \{question\}"):
        vqav2.Config(root=Path(), template="what?")


@every_dataset
def test_check_compares_counts_with_the_published_ones(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, writer, file = WRITERS[name]
    assert name in data.names()
    writer(tmp_path)
    assert main(["check", name, "--root", str(tmp_path)]) == 2
    output = capsys.readouterr().out
    wanted = next(iter(module.PUBLISHED.values()))
    assert f"published are {wanted}; use the official file" in output
    (tmp_path / file).unlink()
    assert main(["check", name, "--root", str(tmp_path)]) == 2
    assert f"{Path(file).name} is missing" in capsys.readouterr().out
    writer(tmp_path)
    counts = {
        split: type(one)(sum(map(len, QUESTIONS)) if name != "coco_captions" else None, 3 if one.images else None)
        for split, one in module.PUBLISHED.items()
    }
    if name != "coco_captions":
        monkeypatch.setattr(module, "PUBLISHED", counts)
        assert main(["check", name, "--root", str(tmp_path)]) == 0
        assert "as published" in capsys.readouterr().out

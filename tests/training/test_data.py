"""Examples from every kind of file, each on a small one of the same form."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from typing import Any

import pytest
from PIL import ExifTags, Image

from foveate.errors import InputError, UnknownName
from foveate.evaluation.data import (
    Dialogue,
    Turn,
    from_clips,
    from_reference,
    from_tiles,
    pixels,
)
from foveate.evaluation.stored import Stored
from foveate.training import data
from foveate.training.corpora import FRAMES, read
from tests.films import film


def picture(path: Path, colour: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), (colour, 0, 0)).save(path)
    return path


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def video(folder: Path, count: int) -> None:
    for i in range(count):
        picture(folder / f"{i:05d}.jpg")


# ---------------------------------------------------------------- layouts


def gqa(root: Path) -> dict[str, Any]:
    for name in ("n1", "n2"):
        picture(root / "images" / f"{name}.jpg")
    questions = {
        f"q{i}": {
            "imageId": "n1" if i < 7 else "n2",
            "question": f"What is {i}?",
            "answer": f"a{i}",
        }
        for i in range(9)
    }
    write(root / "train_balanced_questions.json", questions)
    return questions


def test_gqa_becomes_dialogues_of_three_turns(tmp_path: Path) -> None:
    questions = gqa(tmp_path)
    found = read("gqa", tmp_path, seed=1)
    # Seven questions about n1 are two dialogues and one left over; two about n2 are none.
    assert [d.name for d in found] == ["n1-0", "n1-1"]
    assert all(len(d.turns) == 3 and d.pictures[0].name == "n1.jpg" for d in found)
    asked = [t.question for d in found for t in d.turns]
    assert len(set(asked)) == 6 and {t.question[8] for d in found for t in d.turns} <= set(
        "0123456"
    )
    assert all(t.answers == (f"a{t.question[8]}",) for d in found for t in d.turns)
    assert read("gqa", tmp_path, seed=1) == found
    assert read("gqa", tmp_path, seed=2) != found
    write(
        tmp_path / "train_balanced_questions.json",
        {key: {**each, "types": None} for key, each in questions.items()},
    )
    assert read("gqa", tmp_path, seed=1) == found
    assert read("gqa", tmp_path / "train_balanced_questions.json", seed=1) == found


def test_a_further_picture_leaves_the_other_dialogues_as_they_are(tmp_path: Path) -> None:
    questions = gqa(tmp_path)
    before = read("gqa", tmp_path)
    more = {"q9": {"imageId": "n2", "question": "And?", "answer": "yes"}, **questions}
    write(tmp_path / "train_balanced_questions.json", more)
    assert set(map(str, before)) <= set(map(str, read("gqa", tmp_path)))


def vqav2(root: Path) -> None:
    picture(root / "train2014" / "COCO_train2014_000000000009.jpg")
    ids = [90, 91, 92]
    questions = [{"image_id": 9, "question_id": i, "question": f"Is it {i}?"} for i in ids]
    notes = [
        {"question_id": i, "multiple_choice_answer": "yes", "answer_type": "yes/no", "image_id": 9}
        for i in ids
    ]
    write(root / "v2_OpenEnded_mscoco_train2014_questions.json", {"questions": questions})
    write(root / "v2_mscoco_train2014_annotations.json", {"annotations": notes})


def test_vqav2(tmp_path: Path) -> None:
    vqav2(tmp_path)
    (found,) = read("vqav2", tmp_path)
    assert {t.question for t in found.turns} == {"Is it 90?", "Is it 91?", "Is it 92?"}
    assert {t.answers for t in found.turns} == {("yes",)} and found.turns[0].kind == "yes/no"


def llava(extra: dict[str, Any]) -> dict[str, Any]:
    said = [
        {"from": "human", "value": "<image>\nWhat is it?"},
        {"from": "gpt", "value": "A dog."},
        {"from": "human", "value": "Where?"},
        {"from": "gpt", "value": "At home."},
    ]
    return {"id": "7", "conversations": said, **extra}


def test_llava_instruct(tmp_path: Path) -> None:
    picture(tmp_path / "train2017" / "007.jpg")
    text_only = {"id": "8", "conversations": llava({})["conversations"]}
    write(tmp_path / "llava_instruct_150k.json", [llava({"image": "007.jpg"}), text_only])
    (found,) = read("llava-instruct", tmp_path)
    assert found.turns == (Turn("What is it?", ("A dog.",)), Turn("Where?", ("At home.",)))


def test_a_mixture_names_the_folders_of_its_pictures(tmp_path: Path) -> None:
    names = ["coco/train2017/1.jpg", "gqa/images/1.jpg", "ocr_vqa/images/1.jpg", "1.jpg", "2.jpg"]
    picture(tmp_path / "coco/train2017/2.jpg")
    for name in [*names[:3], "images/1.jpg"]:
        picture(tmp_path / name)
    text_only = {"id": "8", "conversations": llava({})["conversations"]}
    entries = [llava({"image": name}) for name in names]
    file = write(tmp_path / "llava_v1_5_mix665k.json", [*entries, text_only])
    found = read("llava-instruct", file)
    assert [each.pictures for each in found] == [
        (tmp_path / name,) for name in [*names[:3], "images/1.jpg", "coco/train2017/2.jpg"]
    ]
    write(file, [llava({"image": "coco/train2017/3.jpg"})])
    with pytest.raises(InputError, match=r"entry 0: no picture coco/train2017/3.jpg") as error:
        read("llava-instruct", file)
    assert "Looked into images, train2017, coco/train2017, ." in str(error.value)


def test_places_of_pictures_in_a_conversation_are_left_out(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "1.jpg")
    entry = llava({"image": "1.jpg"})
    entry["conversations"][1]["value"] = "A dog <image>\nin a <video> of it."
    write(tmp_path / "llava_instruct_150k.json", [entry])
    (found,) = read("llava-instruct", tmp_path)
    assert found.turns[0] == Turn("What is it?", ("A dog in a of it.",))
    entry["conversations"][1]["value"] = "<image>"
    write(tmp_path / "llava_instruct_150k.json", [entry])
    with pytest.raises(InputError, match="entry 0: an answer holds nothing but"):
        read("llava-instruct", tmp_path)


def test_llava_video_takes_frames_at_even_distances(tmp_path: Path) -> None:
    video(tmp_path / "academic" / "v1", 17)
    write(tmp_path / "0_30_s_oe.json", [llava({"video": "academic/v1.mp4"})])
    (found,) = read("llava-video", tmp_path)
    assert found.is_video and len(found.pictures) == FRAMES and len(found.turns) == 2
    assert [int(p.stem) for p in found.pictures] == [1, 3, 5, 7, 9, 11, 13, 15]


def test_frames_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in range(1, 17):
        picture(tmp_path / "v1" / f"frame{number}.jpg")
    write(tmp_path / "0_30_s_oe.json", [llava({"video": "v1.mp4"})])
    (found,) = read("llava-video", tmp_path)
    assert [int(Path(str(p)).stem[5:]) for p in found.pictures] == list(range(2, 17, 2))


@pytest.mark.parametrize(("entry", "file"), [("a/v1.mp4", "a/v1.mp4"), ("v.1", "videos/v.1.avi")])
def test_a_video_may_be_a_file(tmp_path: Path, entry: str, file: str) -> None:
    film(tmp_path / file, [0, 120, 240])
    write(tmp_path / "0_30_s_oe.json", [llava({"video": entry})])
    (found,) = read("llava-video", tmp_path)
    assert found.is_video and len(found.pictures) == FRAMES
    assert [round(each.getpixel((0, 0))[0] / 120) for each in found.load()] == [0] * 3 + [
        *[1] * 2,
        *[2] * 3,
    ]
    video(tmp_path / file.removesuffix(Path(file).suffix), 1)  # a folder of frames comes first
    assert len(read("llava-video", tmp_path)[0].pictures) == 1


def nextqa(root: Path, rows: list[dict[str, Any]]) -> None:
    with (root / "train.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def test_nextqa_with_choices_and_without(tmp_path: Path) -> None:
    video(tmp_path / "videos" / "4010", 3)
    row = {"video": "4010", "question": "why did he jump", "answer": 2, "qid": 0, "type": "CW"}
    nextqa(tmp_path, [{**row, **{f"a{i}": f"reason {i}" for i in range(5)}}])
    (found,) = read("nextqa", tmp_path)
    assert found.turns == (Turn("why did he jump?", ("reason 2",), "CW"),)
    assert len(found.pictures) == 3
    nextqa(tmp_path, [{**row, "answer": "for joy"}])
    assert read("nextqa", tmp_path)[0].turns[0].answers == ("for joy",)


@pytest.mark.parametrize("mapped", [True, False])
def test_nextqa_in_folders_of_its_own(tmp_path: Path, mapped: bool) -> None:
    """`map_vid_vidorID.json` says where a video lies; the folder of all has any name."""
    name = "1164/3238737531" if mapped else "4010"
    video(tmp_path / "NExTVideo" / name, 3)
    nextqa(tmp_path, [{"video": "4010", "question": "q", "answer": "a"}])
    if mapped:
        with pytest.raises(InputError, match="no video"):
            read("nextqa", tmp_path)
        write(tmp_path / "map_vid_vidorID.json", {"4010": name})
    (found,) = read("nextqa", tmp_path)
    assert [Path(str(each)).parent for each in found.pictures] == [
        tmp_path / "NExTVideo" / name
    ] * 3


def activitynetqa(root: Path, name: str = "okC18bPTils", **asked: Any) -> None:
    """As published: entries without v_ before the video's name, questions that end in a space."""
    key = f"v_{name.removeprefix('v_')}_1"
    question = {"video_name": name, "question_id": key, "question": "is he outside "}
    write(root / "train_q.json", [question | asked])
    write(root / "train_a.json", [{"question_id": key, "answer": "yes", "type": 3}])


@pytest.mark.parametrize("file", ["v_okC18bPTils", "okC18bPTils", "v_okC18bPTils.mkv"])
@pytest.mark.parametrize("name", ["okC18bPTils", "v_okC18bPTils"])
def test_activitynetqa(tmp_path: Path, name: str, file: str) -> None:
    if file.endswith(".mkv"):
        film(tmp_path / "videos" / file, [0, 240])
    else:
        video(tmp_path / "videos" / file, FRAMES)
    activitynetqa(tmp_path, name)
    (found,) = read("activitynetqa", tmp_path)
    assert found.turns == (Turn("is he outside?", ("yes",), "3"),) and found.is_video
    assert found.name == "v_okC18bPTils_1" and len(found.pictures) == FRAMES


@pytest.mark.parametrize(
    "asked", [{"video_name": 5}, {"question": ["is he"]}, {"question_id": ["v_1"]}]
)
def test_an_entry_of_another_type_is_named(tmp_path: Path, asked: dict[str, Any]) -> None:
    video(tmp_path / "videos" / "v_okC18bPTils", 2)
    activitynetqa(tmp_path, **asked)
    with pytest.raises(InputError, match=r"train_q\.json, question 0") as error:
        read("activitynetqa", tmp_path)
    assert next(iter(asked)) in str(error.value)


def broken(root: Path, kind: str) -> str:
    """A data set with one bad entry; returns its layout."""
    if kind == "no picture":
        gqa(root)
        (root / "images" / "n2.jpg").unlink()
    elif kind == "no annotation":
        vqav2(root)
        write(root / "v2_mscoco_train2014_annotations.json", {"annotations": []})
        return "vqav2"
    elif kind == "no frames":
        nextqa(root, [{"video": "1", "question": "q", "answer": "a"}])
        return "nextqa"
    elif kind == "roles":
        picture(root / "images" / "1.jpg")
        entry = llava({"image": "1.jpg"})
        entry["conversations"] = entry["conversations"][1:]
        write(root / "llava_instruct_150k.json", [entry])
        return "llava-instruct"
    elif kind == "no json":
        (root / "train_balanced_questions.json").write_text('{"a":\n 1,,}')
    elif kind == "no number":
        vqav2(root)
        question = {"image_id": "x", "question_id": 90, "question": "?"}
        questions = {"questions": [question]}
        write(root / "v2_OpenEnded_mscoco_train2014_questions.json", questions)
        return "vqav2"
    elif kind == "empty answer":
        questions = gqa(root)
        questions["q3"]["answer"] = ""
        write(root / "train_balanced_questions.json", questions)
    return "gqa"


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("no picture", "train_balanced_questions.json, question q7: no picture"),
        ("no annotation", "question 0: question_id 90 has no annotation"),
        ("no frames", "train.csv:2: no video "),
        ("roles", "entry 0: expected conversations of human and gpt in turn"),
        ("no json", "train_balanced_questions.json:2 is no JSON"),
        ("empty answer", "question q3: expected"),
        ("no number", "question 0: no picture"),
        ("no file", "No file"),
    ],
)
def test_a_bad_entry_is_named_with_its_file_and_place(
    tmp_path: Path, kind: str, words: str
) -> None:
    layout = broken(tmp_path, kind)
    with pytest.raises(InputError) as error:
        read(layout, tmp_path)
    assert words in str(error.value) and len(str(error.value).splitlines()) <= 4


# ---------------------------------------------------------------- rows


def test_rows_of_a_dataset_in_each_form(tmp_path: Path) -> None:
    image, file = Image.new("RGB", (3, 3)), str(picture(tmp_path / "a.png"))
    messages = [
        {"role": "system", "content": "be short"},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "That."},
    ]
    rows = [
        {"image": image, "question": "What?", "answer": "That."},
        {"images": [image, file], "turns": [{"question": "What?", "answers": ["That."]}]},
        {"frames": [file, file], "messages": messages},
        {
            "image": image,
            "conversations": llava({})["conversations"],
            "messages": None,
            "video": None,
        },
    ]
    found = data.from_dataset(rows)
    assert [d.turns[0].question for d in found] == ["What?", "What?", "What?", "What is it?"]
    assert [len(d.pictures) for d in found] == [1, 2, 2, 1]
    assert [d.is_video for d in found] == [False, False, True, False]


def test_rows_of_videos_show_frames_of_their_files(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4", [0, 240])
    asked = {"question": "What?", "answer": "That."}
    as_stored = {"bytes": None, "path": str(path)}
    frames = [str(picture(tmp_path / "a.png"))] * 3
    found = data.from_dataset([{"video": each, **asked} for each in (str(path), as_stored, frames)])
    assert all(each.is_video for each in found)
    assert found[0].pictures == found[1].pictures and len(found[2].pictures) == 3
    assert found[0].load()[0].getpixel((0, 0)) != found[0].load()[-1].getpixel((0, 0))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"question": "q", "answer": "a"}, "row 1 has no picture"),
        ({"video": "no.mp4", "question": "q", "answer": "a"}, "row 1: expected a video's path"),
        ({"image": "absent.png", "question": "q", "answer": "a"}, "row 1: no picture absent.png"),
        ({"image": 3, "question": "q", "answer": "a"}, "row 1: expected a picture"),
        ({"image": Image.new("RGB", (2, 2)), "question": "q"}, "row 1: expected"),
        ({"image": Image.new("RGB", (2, 2)), "messages": []}, "row 1: expected conversations"),
        ({"image": Image.new("RGB", (2, 2)), "messages": [3]}, "row 1: expected conversations"),
        ({"image": Image.new("RGB", (2, 2)), "messages": 3}, "row 1: expected conversations"),
        ({"image": Image.new("RGB", (2, 2)), "turns": 3}, 'row 1: "turns" must be a list'),
        ({"image": Image.new("RGB", (2, 2)), "turns": []}, 'row 1: "turns" must be a list'),
    ],
)
def test_a_bad_row_is_named(row: dict[str, Any], words: str) -> None:
    good = {"image": Image.new("RGB", (2, 2)), "question": "q", "answer": "a"}
    with pytest.raises(InputError, match=words):
        data.from_dataset([good, row])


def test_a_dataset_on_disk(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {"image": [Image.new("RGB", (3, 3), (9, 9, 9))] * 2, "question": ["a?", "b?"]}
    rows["answer"] = ["x", "y"]
    datasets.Dataset.from_dict(rows).save_to_disk(str(tmp_path / "set"))
    found = data.examples(f"hf:{tmp_path / 'set'}")
    assert [d.turns[0].question for d in found] == ["a?", "b?"]
    assert found[0].load()[0].getpixel((0, 0)) == (9, 9, 9)
    with pytest.raises(InputError, match="one dataset without splits; got the split 'held'"):
        data.examples(f"hf:{tmp_path / 'set'}:held")


def test_questions_without_answers_are_enough_where_the_model_gives_them(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    asked = {"image": "a.png", "turns": [{"question": "a?"}, {"question": "b?", "answer": "y"}]}
    (tmp_path / "some.jsonl").write_text(json.dumps(asked))
    with pytest.raises(InputError, match='expected "question" and "answer"'):
        data.examples(str(tmp_path / "some.jsonl"))
    (found,) = data.examples(str(tmp_path / "some.jsonl"), answered=False)
    assert [turn.answers for turn in found.turns] == [(), ("y",)]
    assert not found.turns[0].right("")
    row = {"image": str(tmp_path / "a.png"), "question": "a?"}
    assert data.from_dataset([row], answered=False)[0].turns[0].answers == ()
    for bad in ({"question": ""}, {"question": "a?", "answer": 3}):
        with pytest.raises(InputError, match="row 0"):
            data.from_dataset([row | bad], answered=False)


@pytest.mark.parametrize("key", ["question", "answer"])
def test_the_place_of_a_picture_is_refused_in_a_record(tmp_path: Path, key: str) -> None:
    picture(tmp_path / "a.png")
    said = {"question": "a?", "answer": "b"}
    said[key] = f"<image>\n{said[key]}"
    good = {"image": "a.png", "turns": [{"question": "a < image > b?", "answer": "b"}]}
    lines = [json.dumps(each) for each in (good, {"image": "a.png", "turns": [said]})]
    (tmp_path / "some.jsonl").write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"some\.jsonl:2: a question or an answer holds <image>"):
        data.examples(str(tmp_path / "some.jsonl"))


def test_a_dataset_that_is_a_script_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "old.py").write_text("import datasets\n")
    with pytest.raises(InputError, match="Dataset scripts are no longer supported"):
        data.examples(f"hf:{tmp_path / 'old.py'}")


def test_a_record_names_no_folder_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for source, said in (
        ("second-tiles", "second-tiles"),
        ("hf:owner/name:train", "hf:owner/name:train"),
        (f"hf:{tmp_path / 'set'}", "hf:set"),
        (f"gqa:{tmp_path / 'set'}", "gqa:set"),
        (f"{tmp_path / 'some.jsonl'}", "some.jsonl"),
    ):
        assert data.public(source) == said


def test_pictures_of_a_dataset_stay_on_disk_until_they_are_looked_at(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    shades = [Image.new("RGB", (3, 3), (i // 2, 9, 9)) for i in range(8)]
    rows = {"image": shades, "question": [f"{i}?" for i in range(8)], "answer": ["x"] * 8}
    rows["id"] = ["same"] * 8
    made = datasets.Dataset.from_dict(rows)
    made.save_to_disk(str(tmp_path / "set"))
    found = data.examples(f"hf:{tmp_path / 'set'}")
    assert all(isinstance(p, Stored) for each in found for p in each.pictures)
    assert [each.load()[0].getpixel((0, 0))[0] for each in found] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert len({each.name for each in found}) == 8
    assert found[0].pictures == found[1].pictures != found[2].pictures
    assert [len(part) for part in data.split(found, 0.25)] == [6, 2]
    drawn = data.examples(f"hf:{tmp_path / 'set'}", count=3, seed=4)
    assert drawn == random.Random(4).sample(found, 3)
    # A transform of one's own is kept.
    turned = made.with_transform(lambda batch: {**batch, "question": ["what ?"] * len(batch["id"])})
    assert data.from_dataset(turned)[0].turns[0].question == "what ?"


def test_a_turned_photograph_is_the_same_in_a_file_and_in_a_dataset(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    file = tmp_path / "a.jpg"
    Image.effect_noise((4, 2), 50).save(file, exif=exif)
    asked = {"question": ["q"], "answer": ["a"]}
    features = datasets.Features(
        {"image": datasets.Image(), "question": datasets.Value("string")}
        | {"answer": datasets.Value("string")}
    )
    stored = [{"bytes": file.read_bytes(), "path": None}]
    made = datasets.Dataset.from_dict({"image": stored, **asked}, features=features)
    rows = [
        *data.from_dataset([{"image": file, "question": "q", "answer": "a"}]),
        *data.from_dataset(made),
        *data.from_dataset(list(made)),  # decoded by the package datasets
    ]
    shown = [each.load()[0] for each in rows]
    assert [each.size for each in shown] == [(2, 4)] * 3
    assert len({pixels(each) for each in shown}) == 1


def test_lists_of_stored_pictures_and_broken_ones(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    pair = [Image.new("RGB", (2, 2), (shade, 0, 0)) for shade in (7, 8)]
    made = datasets.Dataset.from_dict({"images": [pair], "question": ["q"], "answer": ["a"]})
    (found,) = data.from_dataset(made)
    assert [one.getpixel((0, 0)) for one in found.load()] == [(7, 0, 0), (8, 0, 0)]
    rows = {"image": [{"bytes": b"no picture", "path": None}], "question": ["q"], "answer": ["a"]}
    features = datasets.Features(
        {"image": datasets.Image(), "question": datasets.Value("string")}
        | {"answer": datasets.Value("string")}
    )
    broken = datasets.Dataset.from_dict(rows, features=features)
    (found,) = data.from_dataset(broken, "mine")
    with pytest.raises(InputError, match="mine, row 0: the picture is no image"):
        found.load()
    rows["image"] = [{"bytes": None, "path": str(picture(tmp_path / "a.png", 5))}]
    (found,) = data.from_dataset(datasets.Dataset.from_dict(rows, features=features))
    assert found.pictures == (tmp_path / "a.png",)


# ---------------------------------------------------------------- sources


def test_sources_by_name(tmp_path: Path) -> None:
    gqa(tmp_path)
    assert len(data.examples(f"gqa:{tmp_path}")) == 2
    assert len(data.examples(f"gqa:{tmp_path}", count=1)) == 1
    scenes = data.examples("scenes", count=2)
    assert [d.name for d in scenes] == ["train-0", "train-1"]
    (tiled,), (clip,) = data.examples("tiles", count=1), data.examples("clips", count=1)
    assert tiled.name == "train-tiles-0" and clip.is_video
    line = {"image": str(picture(tmp_path / "a.png")), "turns": [{"question": "q", "answer": "a"}]}
    (tmp_path / "x.jsonl").write_text(json.dumps(line))
    assert len(data.examples(str(tmp_path / "x.jsonl"))) == 1
    with pytest.raises(UnknownName, match="gqa"):
        data.examples(f"gqaa:{tmp_path}")


def test_no_picture_is_in_both_parts() -> None:
    images = [Image.new("RGB", (2, 2), (i, 0, 0)) for i in range(10)]
    dialogues = [Dialogue(f"{i}", (images[i // 2],), (Turn("q", ("a",)),)) for i in range(20)]
    train, held = data.split(dialogues, 0.2, seed=3)
    assert len(train) == 16 and len(held) == 4
    assert not {id(d.pictures[0]) for d in train} & {id(d.pictures[0]) for d in held}
    assert data.split(dialogues, 0.2, seed=3) == (train, held)
    assert data.split(dialogues, 0.0) == (dialogues, [])
    assert all(data.split(dialogues[:4], 0.9))  # one picture of two stays to learn from
    first = {data.split(dialogues, 0.1, seed)[1][0].name for seed in range(6)}
    assert len(first) > 1
    with pytest.raises(InputError, match="same pictures"):
        data.split(dialogues[:2], 0.5)


def test_what_shares_a_picture_stays_together(tmp_path: Path) -> None:
    a, b, c, d = (picture(tmp_path / f"{name}.png") for name in "abcd")
    shown = [(a,), (b, a), (c,), (b,), (d,)]
    dialogues = [Dialogue(f"{i}", one, (Turn("q", ("a",)),)) for i, one in enumerate(shown)]
    for seed in range(6):
        parts = data.split(dialogues, 0.4, seed)
        pictures = [{p for each in part for p in each.pictures} for part in parts]
        assert not pictures[0] & pictures[1] and pictures[0] | pictures[1] == {a, b, c, d}
        assert all(parts)
    # The last one joins two that had nothing in common.
    shown = [(a,), (b,), (a, b)]
    dialogues = [Dialogue(f"{i}", one, (Turn("q", ("a",)),)) for i, one in enumerate(shown)]
    with pytest.raises(InputError, match="same pictures"):
        data.split(dialogues, 0.5)
    # One picture that was decoded twice is one picture.
    twice = [Dialogue(f"{i}", (Image.new("RGB", (2, 2)),), ()) for i in range(2)]
    with pytest.raises(InputError, match="same pictures"):
        data.split(twice, 0.5)


def test_single_turns() -> None:
    one = Dialogue("a", (Image.new("RGB", (2, 2)),), (Turn("q", ("a",)), Turn("r", ("b",))))
    assert [(d.name, d.turns[0].question) for d in data.single_turns([one])] == [
        ("a.0", "q"),
        ("a.1", "r"),
    ]


def test_clips_and_the_second_world_are_dialogues_of_their_own() -> None:
    clips = from_clips(2)
    assert all(each.is_video and len(each.pictures) == 16 for each in clips)  # one batch
    assert [each.name for each in clips] == ["test-clip-0", "test-clip-1"]
    first, second = from_reference(1), from_reference(1, world="second")
    assert (first[0].scene, second[0].scene) == ((0, "test"), None)  # an oracle knows the first
    assert first[0].name != second[0].name
    assert first[0].load()[0].tobytes() != second[0].load()[0].tobytes()
    (tiles,) = from_tiles(1, world="second")
    assert tiles.name == "test-tiles-second-0"

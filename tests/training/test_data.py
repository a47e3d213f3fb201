"""Training data: what a sample is, which are taken, which videos are held out, and the errors of it all."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter

import pytest

from lmms_flexselect.errors import OptionError
from lmms_flexselect.training.data import Sample, check_videos, read_samples, split_held_out

CHOICE = "Why?\nA. One.\nB. Two.\nPlease respond with only the letter of the correct answer."


def item(number, video=None, **more):
    """An item as the data set has it; four ask about one video."""
    said = talk((f"<image>\nQuestion {number}?", f"Answer {number}."))
    video = f"academic_source/v_{number // 4}.mp4" if video is None else video
    return {"id": f"v_{number // 4}", "conversations": said, "data_source": "0_30_s", "video": video} | more


def talk(*turns):
    roles = ("human", "gpt")
    return [{"from": role, "value": text} for turn in turns for role, text in zip(roles, turn, strict=True)]


def write(path, items):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in items), encoding="utf-8")
    else:
        path.write_text(json.dumps(items, ensure_ascii=False), encoding="utf-8")
    return path


def listing(folder, *entries):
    path = folder / "train.yaml"
    path.write_text("datasets:\n" + "".join(f"  - {json.dumps(entry)}\n" for entry in entries))
    return path


def only(folder, **more):
    (sample,) = read_samples(write(folder / "data.json", [item(0, **more)]), "/videos").samples
    return sample


def numbers(reading):
    return sorted(int(sample.answer.split()[1][:-1]) for sample in reading.samples)


def refuses(message, function, *arguments, **more):
    with pytest.raises(OptionError) as refused:
        function(*arguments, **more)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_sample(tmp_path):
    sample = only(tmp_path)
    assert (sample.video, sample.source) == ("/videos/academic_source/v_0.mp4", "0_30_s")
    assert (sample.question, sample.answer, sample.kind) == ("Question 0?", "Answer 0.", "open_ended")
    assert sample.id.startswith("v_0@")
    assert only(tmp_path, data_source=None).source == "data"
    assert only(tmp_path, video="/else/where.mp4").video == "/else/where.mp4"
    assert only(tmp_path, video="./a//b.mp4").video == "/videos/a/b.mp4"


@pytest.mark.parametrize(
    ("asked", "question"),
    [
        ("<image>\nWhy?", "Why?"),
        ("Why?\n<image>", "Why?"),
        ("<video>\n\nWhy?\n", "Why?"),
        ("<image><image>\nWhy?", "Why?"),
        ("Look at\n<image>\nand say why.", "Look at\nand say why."),
        ("Look at <video> and say why.", "Look at and say why."),
        ("Why?\n\nA. x\nB. y", "Why?\n\nA. x\nB. y"),
        ("<image>\n为什么\u3000🎬?", "为什么\u3000🎬?"),
        ("<image>\nhalf \ud83d a pair", "half ? a pair"),
    ],
)
def test_the_mark_goes(tmp_path, asked, question):
    path = tmp_path / "data.json"
    path.write_text(json.dumps([item(0, conversations=talk((asked, "Because 因为.")))]))
    (sample,) = read_samples(path, "/videos").samples
    assert (sample.question, sample.answer) == (question, "Because 因为.")


def test_one_turn_of_several_is_drawn(tmp_path):
    said = talk(*((f"{'<image>' * (turn == 0)}\nQ{turn}?", f"A{turn}.") for turn in range(3)))
    path = write(tmp_path / "data.json", [item(number, conversations=said) for number in range(0, 360, 4)])
    drawn = read_samples(path, "/").samples
    assert len(drawn) == 90
    assert all(s.question[1] == s.answer[1] and "<" not in s.question for s in drawn)
    assert all(count > 15 for count in Counter(s.question for s in drawn).values())
    assert len({s.question for s in drawn}) == 3
    assert read_samples(path, "/").samples == drawn
    other = {s.video: s.question for s in read_samples(path, "/", seed=1).samples}
    assert 20 < sum(other[s.video] != s.question for s in drawn) < 90
    # Another question is another sample, to whoever keeps a score by id.
    ids = {s.video: s.id for s in drawn}
    again = read_samples(path, "/", seed=1).samples
    assert all((ids[s.video] == s.id) == (s in drawn) for s in again)


def test_halves_of_turns_are_none(tmp_path):
    said = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "<image>\nNobody answers."},
        {"from": "human", "value": "Q?"},
        {"from": "gpt", "value": "A."},
        {"from": "gpt", "value": "And more."},
        {"from": "human", "value": "Empty?"},
        {"from": "gpt", "value": " "},
        {"from": "human", "value": "Null?"},
        {"from": "gpt", "value": None},
        "rubbish",
        {"from": "human", "value": "Last?"},
    ]
    path = write(tmp_path / "data.json", [item(number, conversations=said) for number in range(20)])
    drawn = read_samples(path, "/").samples
    assert [(sample.question, sample.answer) for sample in drawn] == [("Q?", "A.")] * 20


def test_what_is_left_out_is_counted(tmp_path):
    silent = item(5, conversations=[{"from": "human", "value": "<image>\nWhy?"}])
    image, text = item(1, video="", image="a.jpg"), item(2, video="")
    path = write(tmp_path / "data.json", [item(0), image, text, text, item(3, video=["a.mp4", "b.mp4"]), silent])
    reading = read_samples(path, "/")
    assert numbers(reading) == [0]
    counts = {"image": 1, "text": 2, "several videos": 1, "no question with an answer": 1}
    assert reading.left_out == counts
    message = refuses("no question about a video in 2 items", read_samples, write(path, [image, text]), "/")
    assert "image: 1, text: 1" in message
    refuses("no question about a video in 0 items", read_samples, write(path, []), "/")


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("0_30_s_academic_v0_1/0_30_s_academic_v0_1_cap_processed.json", "caption"),
        ("0_30_s_youtube_v0_1/0_30_s_youtube_oe_v0_1_qa_processed.json", "open_ended"),
        ("0_30_s_youtube_v0_1/2_3_m_youtube_mc_v0_1_qa_processed.json", "multiple_choice"),
        ("0_30_s_nextqa/0_30_s_nextqa_mc_qa_processed.json", "multiple_choice"),
        ("0_30_s_activitynetqa/0_30_s_activitynetqa_oe_qa_processed.json", "open_ended"),
        ("0_30_s_perceptiontest/0_30_s_perceptiontest_mc_qa_processed.json", "multiple_choice"),
        ("0_30_s_academic_v0_1/multi_choice/0000.json", "multiple_choice"),
        ("0_30_s_academic_v0_1/caption/0000.jsonl", "caption"),
        ("mc/0_30_s_youtube_OE.json", "open_ended"),
        ("llava_hound/sharegptvideo_qa_255k_processed.json", None),
        ("mine/escape_mcdonalds.json", None),
        ("mine/oe_and_mc.json", None),
    ],
)
def test_kinds(tmp_path, name, kind):
    path = write(tmp_path / name, [item(0), item(1, conversations=talk((CHOICE, "A.")))])
    kinds = [sample.kind for sample in sorted(read_samples(path, "/").samples, key=lambda s: s.question)]
    assert kinds == ([kind] * 2 if kind else ["open_ended", "multiple_choice"])


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("Why?\nOptions:\nA. x\nB. y", "multiple_choice"),
        ("Why?\n(A) x\n(B) y", "multiple_choice"),
        ("Why? Answer with the option's letter from the given choices directly.", "multiple_choice"),
        ("Why? Please provide your answer by stating the letter followed by the full option.", "multiple_choice"),
        ("Who is A. Smith?", "open_ended"),
        ("What letter of the alphabet is on the wall?", "open_ended"),
    ],
)
def test_kinds_of_questions(tmp_path, question, kind):
    assert only(tmp_path, conversations=talk((question, "x"))).kind == kind


def test_kinds_are_filtered(tmp_path):
    choices = [item(number, conversations=talk((CHOICE, f"A {number}."))) for number in range(3)]
    path = write(tmp_path / "data.json", [*choices, item(3), item(4)])
    reading = read_samples(path, "/", kinds=["multiple_choice"])
    assert (numbers(reading), reading.left_out) == ([0, 1, 2], {"kind": 2})
    assert numbers(read_samples(path, "/", kinds="open_ended")) == [3, 4]
    assert numbers(read_samples(path, "/", kinds={"open_ended", "multiple_choice"})) == [0, 1, 2, 3, 4]
    message = refuses("none of 5 samples is of kinds=caption", read_samples, path, "/", kinds=["caption"])
    assert "there are multiple_choice: 3, open_ended: 2" in message
    refuses("kinds=captions: must be among caption, open_ended, mult", read_samples, path, "/", kinds=["captions"])


@pytest.mark.parametrize("count", [1, 7, 100, 333])
def test_shares_are_exact_and_nested(tmp_path, count):
    path = write(tmp_path / "data.json", [item(number) for number in range(count)])
    within: set[Sample] = set()
    for share in (0.001, 0.01, 0.02, 0.05, 0.5, 0.99, 1):
        reading = read_samples(path, "/", share=share)
        assert len(reading.samples) == max(1, round(share * count))
        assert len(reading.samples) + reading.left_out.get("share", 0) == count
        assert within <= set(reading.samples)
        within = set(reading.samples)
    assert len(within) == count


def test_shares_are_drawn(tmp_path):
    path = write(tmp_path / "data.json", [item(number) for number in range(400)])
    half = [set(numbers(read_samples(path, "/", share=0.5, seed=seed))) for seed in range(3)]
    assert all(70 < len(a & b) < 130 for a, b in itertools.pairwise(half))
    assert all(70 < len(drawn & set(range(200))) < 130 for drawn in half)


@pytest.mark.parametrize("share", [0, -0.1, 1.01, 5, float("nan")])
def test_shares_out_of_range(tmp_path, share):
    refuses(f"share={share}: must be greater than 0 and at most 1", read_samples, tmp_path, "/", share=share)


def test_order_does_not_matter(tmp_path):
    items = [item(number) for number in range(60)]
    items += [items[0], items[0] | {"id": None}, items[1] | {"video": "other.mp4"}]
    items.append(item(9, conversations=talk(*((f"Q{turn}", "A 9.") for turn in range(5)))))
    path = write(tmp_path / "data.json", items)
    first = [read_samples(path, "/", share=share, seed=3).samples for share in (0.1, 1)]
    random.Random(0).shuffle(items)
    write(path, items)
    assert [read_samples(path, "/", share=share, seed=3).samples for share in (0.1, 1)] == first
    write(tmp_path / "data.jsonl", items)
    assert [read_samples(tmp_path / "data.jsonl", "/", share=share, seed=3).samples for share in (0.1, 1)] == first


def test_ids_never_collide(tmp_path):
    items = [item(0, id=given) for given in ("x", "x", "x", 0, "0", None, "", "x@y")]
    items += [{key: value for key, value in item(0).items() if key != "id"}, item(1, id="x"), item(0, "o.mp4", id="x")]
    reading = read_samples(write(tmp_path / "data.json", items), "/")
    ids = [sample.id for sample in reading.samples]
    assert len(set(ids)) == len(items)
    assert sum(name.startswith("academic_source/v_0.mp4@") for name in ids) == 3
    assert sum(name.startswith("0@") for name in ids) == 2


def test_ids_say_what_is_asked_wherever_it_lies(tmp_path):
    cap, oe = write(tmp_path / "cap.json", [item(0)]), write(tmp_path / "oe.json", [item(1)])
    alone = {sample.question: sample.id for path in (cap, oe) for sample in read_samples(path, "/a").samples}
    both = read_samples(tmp_path / "{cap,oe}.json", "/b").samples
    assert {sample.question: sample.id for sample in both} == alone
    assert len(set(alone.values())) == 2


def test_draws_are_the_same_everywhere(tmp_path):
    """In every process and on every machine; scores kept by id, and what was held out, rest on it."""
    path = write(tmp_path / "data.json", [item(number) for number in range(50)])
    samples = read_samples(path, "/", 0.1).samples
    pinned = ["v_10@60e1f13543c12fb0", "v_3@6c6d40d3362784d3", "v_1@3f08d86591460e77", "v_2@eef09ffdd59bf0fb"]
    assert [sample.id for sample in samples] == [*pinned, "v_11@66358cec6b5aeadf"]
    assert [sample.id for sample in split_held_out(samples, 1, 0)[1]] == pinned[3:]


@pytest.mark.parametrize(
    ("strategy", "taken"),
    [
        ("all", range(30)),
        ("first:7", range(7)),
        ("first:5%", range(2)),  # upwards, as LLaVA-NeXT does
        ("first:2.5%", range(1)),
        ("first: 1000", range(30)),
        ("end:4", range(26, 30)),
        ("end:100%", range(30)),
        ("end:31", range(30)),
        ("random:100%", range(30)),
    ],
)
def test_sampling_strategies(tmp_path, strategy, taken):
    write(tmp_path / "data.json", [item(number) for number in range(30)])
    path = listing(tmp_path, {"json_path": "data.json", "sampling_strategy": strategy})
    reading = read_samples(path, "/")
    assert numbers(reading) == list(taken)
    assert reading.left_out.get("sampling_strategy", 0) == 30 - len(taken)
    assert numbers(read_samples(listing(tmp_path, {"json_path": "data.json"}), "/")) == list(range(30))


def test_random_strategy(tmp_path):
    items = [item(number) for number in range(400)]
    write(tmp_path / "a.json", items)
    write(tmp_path / "b.jsonl", [item(number) for number in range(400, 800)])

    def drawn(amount, seed=0):
        path = listing(tmp_path, {"json_path": "a.json", "sampling_strategy": f"random:{amount}"})
        return set(numbers(read_samples(path, "/", seed=seed)))

    assert len(drawn(10)) == 10
    assert drawn(10) < drawn("5%") < drawn("50%")
    assert 70 < len(drawn("50%") & drawn("50%", seed=1)) < 130
    before = drawn("50%")
    write(tmp_path / "a.json", items[::-1])
    assert drawn("50%") == before
    # A share of both is a share of each.
    both = listing(tmp_path, {"json_path": "a.json", "sampling_strategy": "random:25%"}, {"json_path": "b.jsonl"})
    kept = numbers(read_samples(both, "/", share=0.2))
    assert len(kept) == 100
    assert 10 <= sum(number < 400 for number in kept) <= 30


@pytest.mark.parametrize(
    "strategy",
    ["some", "first", "first:", "first:0", "first:0%", "end:101%", "random:x", "first:2.5", "last:5", "first:-1", None],
)
def test_unknown_strategies(tmp_path, strategy):
    write(tmp_path / "data.json", [item(0)])
    path = listing(tmp_path, {"json_path": "data.json"}, {"json_path": "data.json", "sampling_strategy": strategy})
    message = refuses(f"entry 2: sampling_strategy={strategy}: must be all, or first", read_samples, path, "/")
    assert message.startswith(str(path))


def test_a_listing(tmp_path, monkeypatch):
    write(tmp_path / "sets" / "a_mc.json", [item(0), item(1)])
    write(tmp_path / "sets" / "b_cap.json", [item(2), item(3)])
    write(tmp_path / "sets" / "c_oe.jsonl", [item(4)])
    elsewhere = write(tmp_path / "elsewhere.json", [item(5)])
    path = listing(
        tmp_path,
        {"json_path": "sets/{a_mc,b_cap}.json", "sampling_strategy": "first:3", "data_folder": "one"},
        {"json_path": "./sets/c_oe.jsonl", "video_folder": "/two"},
        {"json_path": str(elsewhere), "sampling_strategy": "end:9"},
    )
    monkeypatch.chdir("/")
    reading = read_samples(str(path), "/videos")
    told = {sample.answer: (sample.video, sample.kind) for sample in reading.samples}
    assert told == {
        "Answer 0.": ("/videos/one/academic_source/v_0.mp4", "multiple_choice"),
        "Answer 1.": ("/videos/one/academic_source/v_0.mp4", "multiple_choice"),
        "Answer 2.": ("/videos/one/academic_source/v_0.mp4", "caption"),
        "Answer 4.": ("/two/academic_source/v_1.mp4", "open_ended"),
        "Answer 5.": ("/videos/academic_source/v_1.mp4", "open_ended"),
    }
    assert reading.left_out == {"sampling_strategy": 1}
    assert len({sample.id for sample in reading.samples}) == 5


def test_a_video_folder_makes_another_video(tmp_path):
    write(tmp_path / "a.json", [item(0)])
    path = listing(tmp_path, *({"json_path": "a.json", "data_folder": folder} for folder in "xy"))
    assert {s.id[-2] != "." for s in read_samples(path, "/").samples} == {True}


def test_a_set_listed_twice_counts_twice(tmp_path):
    write(tmp_path / "a.json", [item(number) for number in range(5)])
    path = listing(tmp_path, {"json_path": "a.json"}, {"json_path": "a.json", "sampling_strategy": "first:2"})
    reading = read_samples(path, "/")
    assert numbers(reading) == [0, 0, 1, 1, 2, 3, 4]
    assert len({sample.id for sample in reading.samples}) == 7


def test_braces(tmp_path):
    for number, name in enumerate(("ax", "ay", "bx", "by")):
        write(tmp_path / name[0] / f"{name[1]}.json", [item(number)])
    assert numbers(read_samples(tmp_path / "{a,b}" / "{x,y}.json", "/")) == [0, 1, 2, 3]
    assert numbers(read_samples(tmp_path / "a" / "{y}.json", "/")) == [1]
    assert numbers(read_samples(write(tmp_path / "{a,b}.json", [item(7)]), "/")) == [7]
    refuses(f"{tmp_path}/c/x.json: no such file", read_samples, tmp_path / "{a,c}" / "x.json", "/")


def test_lines(tmp_path):
    path = write(tmp_path / "data.jsonl", [item(0, video="vidéo/电影 🎬.mp4"), item(1, id="é")])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n\r\n") + b"  \n\n")
    reading = read_samples(path, "/videos")
    assert numbers(reading) == [0, 1]
    by_answer = {sample.answer: sample for sample in reading.samples}
    assert by_answer["Answer 0."].video == "/videos/vidéo/电影 🎬.mp4"
    assert by_answer["Answer 1."].id.startswith("é@")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", None, "a.json: no such file of training data"),
        ("a.jsonl", None, "a.jsonl: no such file of training data"),
        ("a.yaml", None, "a.yaml: cannot be read as YAML (No such file"),
        ("a.txt", "[]", "a.txt: unknown kind of file; must end in .json, .jsonl, .yaml or .yml"),
        ("a.json", '[\n{"a": 1},\n{"b" 2}]', "a.json: line 3 is not JSON ("),
        ("a.json", "{}\n{}", "line 2 is not JSON (Extra data); one object a line is read from a file ending in .jsonl"),
        ("a.json", '{"conversations": []}', "a.json: must hold a list of conversations; this is a dict"),
        ("a.json", '[{"conversations": []}, {"id": 1}]', "a.json: item 2 is no conversation"),
        ("a.json", '[{"conversations": "x"}]', "a.json: item 1 is no conversation"),
        ("a.json", "[null]", "a.json: item 1 is no conversation"),
        ("a.json", b"\xff", "a.json: cannot be read ("),
        ("a.jsonl", '{"conversations": []}\n\n{"b" 2}\n', "a.jsonl: line 3 is not JSON ("),
        ("a.jsonl", "[]\n", "a.jsonl: line 1 is no conversation"),
        ("a.yaml", "datasets: [", "a.yaml: cannot be read as YAML ("),
        ("a.yaml", "- json_path: a.json", "a.yaml: must hold a list `datasets:`"),
        ("a.yml", "datasets: a.json", "a.yml: must hold a list `datasets:`"),
        ("a.yml", "datasets: []", "a.yml: must hold a list `datasets:`"),
        ("a.yml", "datasets: [a.json]", "a.yml: entry 1: has no json_path"),
        ("a.yml", "datasets: [{json_path: b.json, strategy: all}]", "unknown key strategy; must be among data_folder"),
        ("a.yml", "datasets: [{json_path: b.json}]", "b.json: no such file of training data"),
        ("a.yml", "datasets: [{json_path: b.yml}]", "b.yml: unknown kind of file"),
    ],
)
def test_what_cannot_be_read(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    told = refuses(message, read_samples, tmp_path / name, "/")
    assert told.startswith(str(tmp_path))


def test_a_folder_is_no_file(tmp_path):
    (tmp_path / "a.json").mkdir()
    refuses("a.json: is a folder, not file of training data", read_samples, tmp_path / "a.json", "/")


def samples_of(videos, each=3):
    names = [(video, number) for video in range(videos) for number in range(each)]
    return [Sample(f"{v}-{n}", f"/v/{v}.mp4", "Q?", "A.", "s", "caption") for v, n in names]


@pytest.mark.parametrize(("wanted", "count"), [(0, 0), (0.0, 0), (1, 1), (7, 7), (39, 39), (0.1, 4), (0.001, 1)])
@pytest.mark.parametrize("seed", [0, 1])
def test_videos_are_held_out_whole(wanted, count, seed):
    samples = samples_of(40)
    train, held_out = split_held_out(samples, wanted, seed)
    assert len({sample.video for sample in held_out}) == count
    assert len(held_out) == 3 * count
    assert not {sample.video for sample in held_out} & {sample.video for sample in train}
    # Each part in the order given.
    assert train == [sample for sample in samples if sample in set(train)]
    assert held_out == [sample for sample in samples if sample in set(held_out)]
    assert len(train) + len(held_out) == len(samples)
    shuffled = random.Random(0).sample(samples, len(samples))
    assert set(split_held_out(shuffled, wanted, seed)[1]) == set(held_out)
    assert set(held_out) <= set(split_held_out(samples, max(count, 39), seed)[1])


def test_held_out_videos_are_drawn():
    samples = samples_of(200, 1)
    half = [set(split_held_out(samples, 100, seed)[1]) for seed in range(2)]
    assert 30 < len(half[0] & half[1]) < 70
    assert 30 < len(half[0] & set(samples[:100])) < 70


@pytest.mark.parametrize("wanted", [40, 41, -1, 1.0, 1.5, -0.1, 0.999, float("nan")])
def test_held_out_leaves_something(wanted):
    refuses(f"held out: {wanted} of 40 videos; must be", split_held_out, samples_of(40), wanted, 0)


def test_nothing_held_out_of_nothing():
    assert split_held_out([], 0, 0) == ([], [])


def test_videos_that_are_not_there(tmp_path):
    there, empty, gone = (str(tmp_path / name) for name in ("there.mp4", "empty.mp4", "gone.mp4"))
    (tmp_path / "there.mp4").write_bytes(b"x")
    (tmp_path / "empty.mp4").touch()
    samples = [
        Sample(str(number), video, "Q?", "A.", "s", "caption")
        for number, video in enumerate([gone, there, empty, gone, there, str(tmp_path)])
    ]
    present, missing = check_videos(samples)
    assert [sample.id for sample in present] == ["1", "4"]
    complaints = ["no such video file", "the video file is empty", "is a folder, not a video file"]
    assert missing == list(zip([gone, empty, str(tmp_path)], complaints, strict=True))
    assert check_videos(present) == (present, [])
    assert check_videos([]) == ([], [])
    message = refuses("no such video file", check_videos, [samples[0], samples[2], samples[3]])
    assert message.startswith(gone)
    assert "2 videos" in message
    assert "video_root" in message

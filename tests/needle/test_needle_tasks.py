from pathlib import Path

import pytest
from lmms_eval.tasks import TaskManager

from lmms_flexselect.needle.benchmark import CHART_LENGTHS, LENGTHS

TASKS = Path(__file__).parents[2] / "tasks" / "needle"


@pytest.fixture(scope="module")
def manager() -> TaskManager:
    return TaskManager(include_path=str(TASKS), include_defaults=False)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    # Any working directory must do: data files are found beside the YAML.
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_length_is_a_task_of_the_group(manager: TaskManager) -> None:
    groups = {
        "flexselect_needle": [f"flexselect_needle_{units}" for units in LENGTHS],
        "flexselect_needle_chart": [f"flexselect_needle_chart_{units}" for units in CHART_LENGTHS],
    }
    assert set(manager.all_subtasks) == {name for names in groups.values() for name in names}
    assert set(manager.all_groups) == set(groups)
    for group, names in groups.items():
        assert manager._get_config(group)["task"] == names


@pytest.mark.parametrize("kind", ["simple", "chat"])
def test_a_document_reaches_the_model(manager: TaskManager, offline: Path, kind: str) -> None:
    task = manager.load_task_or_group("flexselect_needle_64", task_type=kind)["flexselect_needle_64"]
    assert len(task.test_docs()) == 204
    doc = task.test_docs()[5]
    (path,) = task.doc_to_visual(doc)
    assert Path(path) == offline / "flexselect_needle" / doc["video"]
    assert Path(path).stat().st_size > 0
    assert task.doc_to_text(doc) == f"What shape is the {doc['colour']} glyph?"
    assert task.doc_to_target(doc) == doc["shape"]
    assert task.config.generation_kwargs["max_new_tokens"] == 1
    if kind == "chat":
        (turn,) = task.doc_to_messages(doc)
        assert [part["type"] for part in turn["content"]] == ["video", "text"]


def test_scores_average_and_cluster(manager: TaskManager, offline: Path) -> None:
    task = manager.load_task_or_group("flexselect_needle_16")["flexselect_needle_16"]
    docs = [task.test_docs()[index] for index in range(4)]
    answers = [docs[0]["shape"], docs[1]["shape"].upper() + ".", "banana", ""]
    items = [task.process_results(doc, [answer])["needle_acc"] for doc, answer in zip(docs, answers, strict=True)]
    assert task.aggregation()["needle_acc"](items) == 0.5
    assert {item[task.config.cluster_key] for item in items} == {docs[0]["video"]}
    assert [item[task.config.score_key] for item in items] == [1.0, 1.0, 0.0, 0.0]

"""The paper's task files: loaded by lmms-eval, and held against the stock ones."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import lmms_eval
import pytest
from lmms_eval.utils import load_yaml_config

from lmms_flexselect.errors import FlexSelectError
from lmms_flexselect.models.upstream import use_upstream_prompts
from lmms_flexselect.tools.preparation.benchmarks import BENCHMARKS
from tests.support.paper_tasks import lvbench_lines
from tests.tasks.conftest import PAPER

STOCK = Path(lmms_eval.__file__).parent / "tasks"
FILES = {
    "flexselect_paper_videomme": "videomme/videomme.yaml",
    "flexselect_paper_mlvu": "mlvu/mlvu_dev.yaml",
    "flexselect_paper_longvideobench": "longvideobench/longvideobench_val_v.yaml",
    "flexselect_paper_longvideobench_sub": "longvideobench/longvideobench_val_v.yaml",
    "flexselect_paper_lvbench": "lvbench/lvbench.yaml",
}
TOKENS = {"flexselect_paper_mlvu": 16}


def config(path: Path) -> dict:
    return load_yaml_config(yaml_path=str(path), mode="simple")


@pytest.fixture(params=FILES)
def pair(request):
    return request.param, config(PAPER / f"{request.param}.yaml"), config(STOCK / FILES[request.param])


def test_the_groups(manager):
    assert set(manager.all_subtasks) == set(FILES)
    llava, internvl = (manager._get_config(f"flexselect_paper{tail}")["task"] for tail in ("", "_internvl"))
    assert set(llava) == set(FILES) - {"flexselect_paper_longvideobench_sub"}
    assert set(internvl) == set(FILES) - {"flexselect_paper_longvideobench"}


def test_data_and_metrics_are_the_stock_tasks(pair):
    name, ours, stock = pair
    assert ours["task"] == name
    assert ours["metric_list"][0]["metric"] == stock["metric_list"][0]["metric"]
    assert ours["doc_to_target"] == stock["doc_to_target"]
    if name != "flexselect_paper_lvbench":  # asks the data set's own file
        assert ours["dataset_path"] == stock["dataset_path"]
        assert ours["test_split"] == stock["test_split"]
        assert {**ours["dataset_kwargs"], "token": True} == stock["dataset_kwargs"]


def test_generation(pair):
    name, ours, stock = pair
    assert ours["generation_kwargs"] == {
        "max_new_tokens": TOKENS.get(name, 1),
        "temperature": 0,
        "top_p": 1.0,
        "num_beams": 1,
        "do_sample": False,
    }
    assert (
        ours["generation_kwargs"].items()
        >= {**stock["generation_kwargs"], "max_new_tokens": TOKENS.get(name, 1)}.items()
    )


def test_videomme_asks_what_the_stock_task_asks():
    ours, stock = (config(path)["lmms_eval_specific_kwargs"] for path in
                   (PAPER / "flexselect_paper_videomme.yaml", STOCK / "videomme/videomme.yaml"))  # fmt: skip
    for block in ("default", "llava_vid"):
        assert ours[block]["post_prompt"] == stock[block]["post_prompt"]
    assert set(ours) == {"default", "llava_vid"}  # qwen3_vl was not in the paper


def test_the_tables_agree():
    """Repository, folder and tasks of each benchmark are stated once more where nothing heavy may be imported."""
    listed = {task: (benchmark, questions) for benchmark in BENCHMARKS.values() for questions in benchmark.questions
              for task in questions.tasks}  # fmt: skip
    for name, file in FILES.items():
        stock = config(STOCK / file)
        benchmark, questions = listed[name]
        assert benchmark.folder == stock["dataset_kwargs"]["cache_dir"]
        assert benchmark.repository == stock["dataset_path"]
        assert listed[stock["task"]][1].repository == stock["dataset_path"]
        assert listed[stock["task"]][1].split == stock["test_split"]
        assert questions.split == config(PAPER / f"{name}.yaml")["test_split"]
    assert set(listed) == set(FILES) | {config(STOCK / file)["task"] for file in FILES.values()}
    source = json.loads((PAPER / "lvbench_source.json").read_text())
    assert source == {"repository": questions.repository, "file": questions.pattern}


@pytest.mark.parametrize("kind", ["simple", "chat"])
def test_every_task_loads_and_asks(manager, paper_data, kind, pair):
    name, *_ = pair
    task = manager.load_task_or_group(name, task_type=kind)[name]
    assert len(task.test_docs()) == 4
    for doc in task.test_docs():
        (path,) = task.doc_to_visual(doc)
        assert Path(path).is_relative_to(paper_data)
        assert Path(path).stat().st_size > 0
        assert doc["question"].splitlines()[0] in task.doc_to_text(doc)
        scored = task.process_results(doc, ["B"])
        for metric, item in scored.items():
            assert isinstance(item[task.config.score_key], float)
            assert item[task.config.cluster_key] in (
                doc.get("videoID"),
                doc.get("video_name"),
                doc.get("video_id"),
                doc.get("key"),
            )
            assert item[task.config.cluster_key] is not None
            assert 0 <= task.aggregation()[metric]([item]) <= 100


@pytest.mark.parametrize(
    ("task", "model", "ends"),
    [
        ("videomme", "llava_vid_flexselect", "D. A none.\nThe best answer is:"),
        ("videomme", "qwen2_5_vl_flexselect", "\n\nAnswer with the option's letter from the given choices directly."),
        ("videomme", "internvl_hf_flexselect", "\n\nAnswer with the option's letter from the given choices directly."),
        ("lvbench", "llava_vid_flexselect", "D none\nThe best answer is:"),
        ("lvbench", "internvl2_flexselect", "\n\nAnswer with the option's letter from the given choices directly."),
        ("mlvu", "llava_vid_flexselect", "\nBest option: ("),
        (
            "longvideobench",
            "llava_vid_flexselect",
            "\nAnswer with the option's letter from the given choices directly.\n",
        ),
        (
            "longvideobench_sub",
            "internvl2_flexselect",
            "\nAnswer with the option's letter from the given choices directly.\n",
        ),
    ],
)
def test_prompts_by_model(manager, paper_data, monkeypatch, task, model, ends):
    use_upstream_prompts()
    monkeypatch.setattr(manager, "model_name", model)
    name = f"flexselect_paper_{task}"
    built = manager.load_task_or_group(name)[name]
    assert built.doc_to_text(built.test_docs()[0]).endswith(ends)


def test_lvbench_questions_are_those_of_its_own_file(manager, paper_data):
    task = manager.load_task_or_group("flexselect_paper_lvbench")["flexselect_paper_lvbench"]
    expected = [(line["key"], qa["uid"]) for line in lvbench_lines() for qa in line["qa"]]
    assert [(doc["key"], doc["uid"]) for doc in task.test_docs()] == expected


@pytest.mark.parametrize("source", [{"file": "no_such.jsonl"}, {"repository": "no/such"}])
def test_lvbench_file_that_is_not_there(utils, paper_data, source):
    row = {"repository": "zai-org/LVBench", "file": "video_info.meta.jsonl", **source}
    with pytest.raises(FlexSelectError, match="run lmms-flexselect prepare lvbench") as caught:
        utils.lvbench_process_docs(datasets.Dataset.from_list([row]))
    assert "\n" not in str(caught.value)

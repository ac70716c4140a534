"""What was called MaskCLIP before the project had other methods: names, paths, configs, runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from helpers.paths import REPOSITORY
from helpers.tiny_run import changed, own_loggers, train, write_tiny_dataset

from tagclip import TagCLIPPredictor, load_config, model_zoo
from tagclip.errors import ConfigError
from tagclip.projects import current_path, import_projects
from tagclip.projects.training_free import CLIPViTValues, MaskCLIPHead

LEAF = "maskclip_minibench_composition.yaml"
OLD = (
    "PROJECTS", ["maskclip"],
    "MODEL.BACKBONE.NAME", "CLIPViTValues",
    "MODEL.SEM_SEG_HEAD.NAME", "MaskCLIPHead",
    "MODEL.CLIP.LAST_BLOCK", "clip",
)  # fmt: skip


def test_zoo_names_and_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = load_config(f"trainingfree/{LEAF}")
    monkeypatch.chdir(REPOSITORY)
    old = f"projects/MaskCLIP/configs/{LEAF}"
    assert model_zoo.get_config_file(f"maskclip/{LEAF}").endswith(f"TrainingFree/configs/{LEAF}")
    for number, name in enumerate((f"maskclip/{LEAF}", old, str(REPOSITORY / old))):
        assert load_config(name) == expected
        mine = tmp_path / f"{number}.yaml"
        mine.write_text(f"_BASE_: {name if number != 1 else REPOSITORY / name}\nSEED: 3\n")
        assert load_config(mine).MODEL.CLIP.LAST_BLOCK == "maskclip"
    with pytest.raises(ConfigError, match="no such config"):
        load_config("maskclip/maskclip_minibench_nothing.yaml")


def test_a_file_of_the_old_name_is_taken_as_it_is(tmp_path: Path) -> None:
    mine = tmp_path / "projects" / "MaskCLIP" / "configs" / "a.yaml"
    mine.parent.mkdir(parents=True)
    mine.write_text("SEED: 5\n")
    assert load_config(mine).SEED == 5
    assert current_path("data/maskclip/a.yaml") == "data/maskclip/a.yaml"


@torch.no_grad()
def test_old_parts_are_the_new_ones(maskclip_cfg: CfgNode) -> None:
    old = changed(maskclip_cfg, *OLD)
    import_projects(old.PROJECTS)
    models = [build_model(cfg).eval() for cfg in (maskclip_cfg, old)]
    assert isinstance(models[1].backbone, CLIPViTValues)
    assert isinstance(models[1].sem_seg_head, MaskCLIPHead)
    image = {"image": torch.randint(0, 256, (3, 70, 90), dtype=torch.uint8)}
    new, found = (model([image])[0]["sem_seg_scores"] for model in models)
    assert torch.equal(new, found)
    assert load_config("", ["PROJECTS", "['maskclip']"]).PROJECTS == ["maskclip"]
    with pytest.raises(ConfigError, match="found 'maskclop', expected some of .*training_free"):
        import_projects(["maskclop"])


def test_an_old_checkpoint_is_the_same_model(maskclip_cfg: CfgNode, tmp_path: Path) -> None:
    """Its config has the old names of everything."""
    write_tiny_dataset(tmp_path)
    cfg = changed(
        maskclip_cfg, *OLD,
        "MODEL.TAGCLIP.TRUSTY.ENABLED", True,
        "MODEL.TAGCLIP.TRUSTY.KIND", "conv",
        "MODEL.TAGCLIP.TRUSTY.CONV.STEPS", 2,
        "MODEL.TAGCLIP.TRUSTY.CONV.REPLAY_BATCHES", 2,
        "DATASETS.TEST", (),
        "SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 2, "SOLVER.WARMUP_ITERS", 1,
    )  # fmt: skip
    with own_loggers():
        trainer = train(cfg)
    trainer.checkpointer.save("model_final")
    path = tmp_path / "output" / "model_final.pth"
    saved = torch.load(path, weights_only=True)
    config = saved["tagclip"]["config"]
    assert "CLIPViTValues" in config and "LAST_BLOCK: maskclip" in config
    # As it was written before the key was there.
    saved["tagclip"]["config"] = config.replace("    LAST_BLOCK: maskclip\n", "")
    torch.save(saved, path)
    predictor = TagCLIPPredictor.from_checkpoint(path)
    assert predictor.model.backbone.last_block == "maskclip"
    image = {"image": torch.randint(0, 256, (3, 70, 90), dtype=torch.uint8)}
    found, expected = (m.eval()([image])[0] for m in (predictor.model, trainer.model))
    assert torch.equal(found["trusty"], expected["trusty"])
    assert torch.equal(found["sem_seg_labels"], expected["sem_seg_labels"])

"""Counts of tools/analyze_model.py against formulas, and against a real model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from helpers.clip_files import write_json
from helpers.tiny_run import load_tool
from torch.utils.flop_counter import FlopCounterMode

from tagclip import Vocabulary, load_config
from tagclip.analysis.model_cost import ModelAnalysis
from tagclip.errors import ConfigError
from tagclip.structures.vocabulary_class import ClassEntry

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
VOC = CONFIGS / "voc" / "tagclip_vitb16_voc_inductive.yaml"
COCO = CONFIGS / "coco-stuff" / "tagclip_vitb16_coco_stuff_inductive.yaml"
# ViT-B/16 and an image of 512 x 512.
WIDTH, DIM, LAYERS, PATCHES = 768, 512, 12, 1024


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_tool(CONFIGS.parent / "tools" / "analyze_model.py")


@pytest.fixture(scope="module")
def voc() -> ModelAnalysis:
    return ModelAnalysis(load_config(VOC))


@pytest.fixture(scope="module")
def coco() -> ModelAnalysis:
    return ModelAnalysis(load_config(COCO))


def trainable(analysis: ModelAnalysis) -> int:
    return sum(row.trainable for row in analysis.parameters())


def block_stack(tokens: int, width: int, layers: int) -> int:
    """Multiply-accumulates of transformer blocks with an MLP of four times the width."""
    return layers * (12 * tokens * width**2 + 2 * tokens**2 * width)


def decoder(queries: int, patches: int, dim: int, layers: str = "ann") -> int:
    """Self-attention where the letter says so; per layer projections, matching, FFN.

    The last layer has no values, no projection behind them and no FFN.
    """
    q, n = queries, patches
    self_attention = layers.count("a") * (4 * q * dim**2 + 2 * q**2 * dim)
    layer = 2 * q * dim**2 + 2 * n * dim**2 + 2 * q * n * dim + 8 * q * dim**2
    dead = n * dim**2 + q * n * dim + q * dim**2 + 8 * q * dim**2
    return self_attention + len(layers) * layer - dead


def test_trained_parameters_of_the_released_models(voc: ModelAnalysis, coco: ModelAnalysis) -> None:
    """The released 11,720,448 and 12,549,888 without 2,629,120 that nothing reads."""
    assert trainable(voc) == 9_091_328 == 11_720_448 - 2_629_120
    assert trainable(coco) == 9_920_768 == 12_549_888 - 2_629_120
    # CLIP's ViT-B/16 and its text tower.
    assert sum(row.frozen for row in voc.parameters()) == 86_192_640
    assert voc.text_parameters() == 63_428_096


def test_trained_parameters_do_not_depend_on_the_classes() -> None:
    cfg = load_config(COCO, ["MODEL.CLIP.PROMPT.NUM_TOKENS", 10])
    assert trainable(ModelAnalysis(cfg)) == 9_091_328


@pytest.mark.parametrize(("name", "prompts", "classes"), [("voc", 10, 20), ("coco", 100, 171)])
def test_forward_macs_follow_the_formulas(
    name: str, prompts: int, classes: int, request: pytest.FixtureRequest
) -> None:
    macs = request.getfixturevalue(name).forward_macs(classes, (512, 512))
    tokens, queries = 1 + prompts + PATCHES, classes + 1
    expected = {
        "backbone.patch_embed": PATCHES * 3 * 16**2 * WIDTH,
        "backbone.prompts": LAYERS * prompts * WIDTH**2,
        "backbone.blocks": block_stack(tokens, WIDTH, LAYERS),
        "backbone": (1 + PATCHES) * WIDTH * DIM,
        "sem_seg_head.relation": 2 * queries * DIM**2,
        "sem_seg_head.decoder": decoder(queries, PATCHES, DIM),
    }
    assert {part: count for part, count in macs.items() if count} == pytest.approx(
        expected, rel=1e-9
    )
    # The budget of 512 x 512 pixels.
    assert sum(macs.values()) < {"voc": 112e9, "coco": 124e9}[name]


def test_text_macs_follow_the_formula_for_the_tokens_that_are_read(voc: ModelAnalysis) -> None:
    def tower(tokens: int) -> int:
        return block_stack(tokens, DIM, LAYERS) + DIM**2

    assert voc.macs_per_text() == tower(77)
    text = voc.text(voc.model.vocabulary)
    # Start and end token, "a photo of a", and at most three for a name such as pottedplant.
    assert (text.prompts, text.tokens) == (20, 9)
    assert text.macs == 20 * tower(9)


def test_a_name_is_encoded_once_with_every_template(tiny_cfg: CfgNode) -> None:
    tiny_cfg.MODEL.CLIP.TEMPLATES = ["a {}", "one {} in a scene"]
    classes = (ClassEntry(0, "cat", ("cat", "kitten")), ClassEntry(1, "pup", ("pup", "kitten")))
    text = ModelAnalysis(tiny_cfg).text(Vocabulary("pets", classes))
    assert (text.prompts, text.tokens) == (2 * 3, 7)


@pytest.mark.parametrize(
    ("opts", "patches", "layers", "relation"),
    [
        (["MODEL.TAGCLIP.LAYERS", "nn"], 16, "nn", 2),
        (["MODEL.TAGCLIP.RELATION", "none", "MODEL.TAGCLIP.LAYERS", "a"], 16, "a", 1),
    ],
)
def test_other_heads(
    tiny_cfg: CfgNode, opts: list[str], patches: int, layers: str, relation: int
) -> None:
    tiny_cfg.merge_from_list(opts)
    macs = ModelAnalysis(tiny_cfg).forward_macs(7, (64, 64))
    assert macs["sem_seg_head.relation"] == relation * 8 * 32**2
    assert macs["sem_seg_head.decoder"] == decoder(8, patches, 32, layers)


def kept_by_autograd(cfg: CfgNode, step: Callable[[torch.nn.Module], object]) -> int:
    """Bytes that a real model on the CPU keeps for the backward pass, each address once."""
    torch.manual_seed(0)
    model = build_model(cfg).train()
    own = {parameter.data_ptr() for parameter in model.parameters()}
    kept = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        # The storage itself is kept, so that its address is not used again.
        kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = step(model)
    del result
    return sum(storage.nbytes() for address, storage in kept.items() if address not in own)


@pytest.mark.parametrize("key", ["", "MODEL.BACKBONE.CHECKPOINT", "SOLVER.AMP.ENABLED"])
def test_activations_are_those_of_a_real_model(tiny_cfg: CfgNode, key: str) -> None:
    if key:
        tiny_cfg.merge_from_list([key, True])
    memory = ModelAnalysis(tiny_cfg).activations()

    def networks(model: torch.nn.Module) -> object:
        with torch.autocast("cpu", torch.bfloat16, enabled=tiny_cfg.SOLVER.AMP.ENABLED):
            features = model.backbone(torch.zeros(4, 3, 64, 64))
            return model.sem_seg_head.layers(features, torch.ones(3, 32))

    expected = 4 * (memory.backbone + memory.head) + memory.fixed
    assert kept_by_autograd(tiny_cfg, networks) == pytest.approx(expected, rel=0.01)
    assert memory.loss > 0


def test_activations_of_the_vit_follow_the_formula(voc: ModelAnalysis) -> None:
    """Per block: two inputs of norms, q, k, v, their mix, and one of the MLP's four-fold width."""
    formula = LAYERS * 10 * 4 * (1 + 10 + PATCHES) * WIDTH
    assert voc.activations().backbone == pytest.approx(formula, rel=0.03)


def test_recomputed_blocks_keep_a_tenth() -> None:
    memory = ModelAnalysis(load_config(VOC, ["MODEL.BACKBONE.CHECKPOINT", True])).activations()
    assert memory.backbone < 0.1 * 2**30


def test_patches_that_do_not_divide_the_image(tiny_cfg: CfgNode, tmp_path: Path) -> None:
    clip = json.loads(Path(tiny_cfg.MODEL.CLIP.NAME).read_text())
    clip["vision_cfg"]["patch_size"] = 14
    (tmp_path / "clip14.json").write_text(json.dumps(clip))
    tiny_cfg.MODEL.CLIP.NAME = str(tmp_path / "clip14.json")
    analysis = ModelAnalysis(tiny_cfg)
    assert analysis.train_size == (70, 70)
    assert analysis.windows(64, 100) == (2, (70, 70))
    macs = analysis.forward_macs(5, analysis.train_size)
    assert macs["backbone.blocks"] == block_stack(1 + 3 + 5 * 5, 64, 4)


def test_randomness_of_the_caller_is_left_alone(tiny_cfg: CfgNode) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    ModelAnalysis(tiny_cfg).forward_macs(2, (64, 64))
    assert torch.equal(torch.get_rng_state(), before)
    assert type(torch.zeros(1)) is torch.Tensor


def test_tables_and_json_hold_the_same_numbers(
    tool: ModuleType, tiny_cfg: CfgNode, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_cfg.MODEL.CLIP.PRETRAINED = "openai"  # not looked at: nothing is downloaded
    config = tmp_path / "tiny.yaml"
    config.write_text(tiny_cfg.dump())
    tool.main(tool.parse_args(["--config-file", str(config), "--json"]))
    report = json.loads(capsys.readouterr().out)
    model = build_model(load_config(config, ["MODEL.CLIP.PRETRAINED", ""]))
    sizes = {True: 0, False: 0}
    for parameter in model.parameters():
        sizes[parameter.requires_grad] += parameter.numel()
    counts = report["parameters"]
    assert (counts["trainable"], counts["frozen"]) == (sizes[True], sizes[False])
    forward = {row["name"]: row for row in report["forward"]}
    assert {name: row["classes"] for name, row in forward.items()} == {
        "training": 3,
        tiny_cfg.DATASETS.TEST[0]: 5,
    }
    assert report["training_memory"]["optimizer"] == 8 * sizes[True]
    text = tool.format_report(report)
    gmac = [f"{row['macs_total'] / 1e9:.3f}" for row in forward.values()]
    for number in (f"{sizes[True]:,}", f"{sizes[False]:,}", "64 x 64 px", *gmac):
        assert number in text


def test_mistakes_are_named(tool: ModuleType) -> None:
    with pytest.raises(ConfigError, match="DATASETS.TRAIN: found no dataset.*--config-file"):
        tool.analyze(load_config(CONFIGS / "Base-ZeroShot.yaml"))
    with pytest.raises(ConfigError, match="SOLVER.OPTIMIZER: found 'ADAM'"):
        tool.analyze(load_config(VOC, ["SOLVER.OPTIMIZER", "ADAM"]))


def timm_cfg(path: Path, name: str, size: int) -> CfgNode:
    """VOC's config with a small network of timm as image tower."""
    vision = {"timm_model_name": name, "timm_pool": "", "image_size": size}
    text = {"width": 32, "heads": 4, "layers": 1, "context_length": 77, "vocab_size": 49408}
    write_json(path / "model.json", {"embed_dim": 64, "vision_cfg": vision, "text_cfg": text})
    cfg = load_config(VOC)
    cfg.MODEL.CLIP.NAME, cfg.MODEL.CLIP.PRETRAINED = str(path / "model.json"), ""
    cfg.MODEL.BACKBONE.NAME = "build_clip_backbone"
    return cfg


@pytest.mark.parametrize("prompts", [0, 10])
def test_macs_of_a_vit_of_timm_follow_the_formulas(prompts: int, tmp_path: Path) -> None:
    cfg = timm_cfg(tmp_path, "vit_tiny_patch16_224", 224)
    cfg.MODEL.CLIP.PROMPT.NUM_TOKENS = prompts
    macs = ModelAnalysis(cfg).forward_macs(20, (512, 512))
    found = sum(count for part, count in macs.items() if part.startswith("backbone"))
    width, layers = 192, 12
    blocks = block_stack(1 + prompts + PATCHES, width, layers)
    ends = PATCHES * 3 * 16**2 * width + (1 + PATCHES) * width * 64
    assert found == blocks + ends + layers * prompts * width**2


def test_macs_of_a_feature_map_are_those_of_a_real_pass(tmp_path: Path) -> None:
    cfg = timm_cfg(tmp_path, "test_convnext", 160)
    cfg.MODEL.CLIP.PROMPT.NUM_TOKENS, cfg.MODEL.DEVICE = 0, "cpu"
    macs = ModelAnalysis(cfg).forward_macs(20, (512, 512))
    model = build_model(cfg).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.backbone(torch.zeros(1, 3, 512, 512))
    found = sum(count for part, count in macs.items() if part.startswith("backbone"))
    assert found == counter.get_total_flops() // 2 > 10**6
